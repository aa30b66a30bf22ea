"""Faces in the shards are blurred, and nothing else is touched."""

import json
import re
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from made_dataset import pair, publish
from photos import photo

from vlmdata.blur import blur_faces, blurred
from vlmdata.errors import DataError, InputError
from vlmdata.plan import make_plan
from vlmdata.recipe import Recipe
from vlmdata.report import write_report
from vlmdata.report.sheets import thumbnail
from vlmdata.schemas import BOX
from vlmdata.signals import faces


def jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95, "RGB", "420")


def boxes(pixels: np.ndarray) -> list[dict[str, float]]:
    names = ("left", "top", "right", "bottom", "score")
    return [dict(zip(names, box, strict=True)) for box in faces.detect(pixels, 640, 0.4).tolist()]


CHANGES = {
    "signals": ["faces"],
    "dedup": [],
    "select": {"rules": {}},
    "shards": {"samples": 10, "blur_faces": True},
    "jobs": [],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset with two images of faces, one of which two pairs share, and two without."""
    folder = tmp_path_factory.mktemp("blurred")
    images = {name: jpeg(photo(name)) for name in ("astronaut", "camera", "coffee", "grass")}
    pairs = [pair(f"the photo {name}", content) for name, content in images.items()]
    pairs.append(pair("the astronaut once more", images["astronaut"]))
    dataset, manifest = publish(folder, pairs, CHANGES)
    return dataset, manifest, images


def samples(dataset, manifest):
    """Caption -> (image's bytes, JSON) of the tars."""
    found = {}
    for shard in manifest["shards"]:
        if shard["format"] == "webdataset":
            with tarfile.open(dataset.path(shard["path"])) as tar:
                content = {member.name: tar.extractfile(member).read() for member in tar}
            for name in content:
                if name.endswith(".txt"):
                    stem = name.removesuffix(".txt")
                    found[content[name].decode()] = content[f"{stem}.jpg"], json.loads(content[f"{stem}.json"])
    return found


def detail(pixels: np.ndarray, face: dict[str, float]) -> float:
    """Variance of the Laplacian inside the face's box: what is left of eyes, nose and mouth."""
    height, width = pixels.shape[:2]
    rows = slice(round(face["top"] * height), round(face["bottom"] * height))
    columns = slice(round(face["left"] * width), round(face["right"] * width))
    grey = cv2.cvtColor(np.ascontiguousarray(pixels[rows, columns]), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


@pytest.mark.parametrize("name", ["astronaut", "camera"])
def test_nothing_of_a_face_is_left_and_the_rest_of_the_photo_stays(name):
    content = jpeg(photo(name))
    before = simplejpeg.decode_jpeg(content, "RGB")
    (face,) = boxes(before)
    after = simplejpeg.decode_jpeg(blur_faces(content, [face], 95), "RGB")
    assert detail(after, face) < 0.02 * detail(before, face)
    # Even of its coarse shape: a face of 8 x 8 pixels differs.
    left, top, right, bottom = (round(face[side] * 512) for side in ("left", "top", "right", "bottom"))
    small = [cv2.resize(p[top:bottom, left:right], (8, 8), interpolation=cv2.INTER_AREA) for p in (before, after)]
    assert np.abs(small[0].astype(int) - small[1]).mean() > 10
    margin = (bottom - top) // 4
    outside = np.ones((512, 512), bool)
    outside[top - margin : bottom + margin, left - margin : right + margin] = False
    assert np.abs(after.astype(int) - before)[outside].mean() < 1


def test_boxes_at_the_edge_tiny_and_empty_ones_do_no_harm():
    content = jpeg(photo("coffee"))
    edges = [(0, 0, 0.1, 0.1), (0.9, 0.9, 1, 1), (0.5, 0.5, 0.501, 0.501), (0.3, 0.3, 0.3, 0.3), (0, 0, 1, 1)]
    faces = [dict(zip(("left", "top", "right", "bottom"), edge, strict=True)) for edge in edges]
    assert simplejpeg.decode_jpeg(blur_faces(content, faces, 80), "RGB").shape == (400, 600, 3)
    assert blur_faces(content, [], 80) is content


def test_shards_hold_blurred_faces_and_the_very_bytes_of_the_others(made):
    dataset, manifest, images = made
    found = samples(dataset, manifest)
    counts = {caption: document["faces_blurred"] for caption, (_, document) in found.items()}
    assert counts == {
        "the photo astronaut": 1, "the astronaut once more": 1, "the photo camera": 1,
        "the photo coffee": 0, "the photo grass": 0,
    }  # fmt: skip
    for name in ("coffee", "grass"):
        assert found[f"the photo {name}"][0] == images[name]
    for name in ("astronaut", "camera"):
        content = found[f"the photo {name}"][0]
        assert content != images[name]
        before, after = (simplejpeg.decode_jpeg(each, "RGB") for each in (images[name], content))
        (face,) = boxes(before)
        assert detail(after, face) < 0.02 * detail(before, face)
    assert found["the astronaut once more"][0] == found["the photo astronaut"][0]


def test_parquet_shards_hold_the_same(made):
    dataset, manifest, _ = made
    tables = [pq.read_table(dataset.path(s["path"])) for s in manifest["shards"] if s["format"] == "parquet"]
    rows = {row["txt"]: row for table in tables for row in table.to_pylist()}
    for caption, (content, document) in samples(dataset, manifest).items():
        assert rows[caption]["jpg"] == content
        assert rows[caption]["faces_blurred"] == document["faces_blurred"]


def test_card_and_croissant_say_so(made):
    dataset, manifest, _ = made
    folder = dataset.path(f"snapshots/{manifest['number']:06d}")
    assert "Faces that a detector found are blurred" in Path(folder, "README.md").read_text("utf-8")
    fields = json.loads(Path(folder, "croissant.json").read_text("utf-8"))["recordSet"][0]["field"]
    assert "faces in the image that are blurred" in {field["description"] for field in fields}
    assert manifest["recipe"]["shards"]["blur_faces"] is True


def test_the_report_shows_no_face_either(made):
    dataset, manifest, images = made
    write_report(dataset, manifest)
    page = dataset.read_bytes("snapshots/000001/report.html").decode()
    shown = set(re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page))
    assert len(shown) == len(images)
    for name in ("coffee", "grass"):
        assert thumbnail(images[name]).partition(",")[2] in shown
    for name in ("astronaut", "camera"):
        assert thumbnail(images[name]).partition(",")[2] not in shown
        content = blur_faces(images[name], boxes(simplejpeg.decode_jpeg(images[name], "RGB")), 95)
        assert thumbnail(content).partition(",")[2] in shown


def test_a_pair_whose_faces_were_not_looked_for_is_neither_in_shards_nor_shown(tmp_path):
    changes = {
        **CHANGES,
        "signals": [{"kind": "faces", "after": ["wide"]}],
        "select": {"rules": {"wide": "original_width > 550"}},
    }
    pairs = [pair("wide", jpeg(photo("coffee"))), pair("square", jpeg(photo("astronaut")))]
    dataset, manifest = publish(tmp_path, pairs, changes)
    assert list(samples(dataset, manifest)) == ["wide"]
    write_report(dataset, manifest)
    assert dataset.read_bytes("snapshots/000001/report.html").count(b"data:image/webp") == 1


def test_blurring_without_the_signal_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("url,caption\nhttp://example.org/a.jpg,a\n")
    source = {"kind": "table", "path": str(tmp_path / "list.csv")}
    recipe = {"dataset": "x", "sources": [source], "shards": {"blur_faces": True}}
    with pytest.raises(InputError, match=r"shards\.blur_faces: `signals` must have `faces`"):
        make_plan(Recipe.model_validate(recipe))
    made = [
        make_plan(Recipe.model_validate({**recipe, "signals": ["faces"], "shards": {"blur_faces": blur}})).shards
        for blur in (False, True)
    ]
    assert made[0] != made[1]


def test_a_kept_pair_without_boxes_is_refused_with_the_count():
    kept = pa.table({"offset": [0, 1], "face_boxes": pa.array([[], None], pa.list_(BOX))})
    with pytest.raises(DataError, match="not looked for in 1 kept pairs: add a rule such as `faces is not null`"):
        blurred(kept, lambda offset, length: b"", 95)
