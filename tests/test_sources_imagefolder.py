"""Folders with ImageFolder's metadata files, or with COCO's annotations."""

import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmdata import sources
from vlmdata.download.local import local_path
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import FolderSource


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def rows(path: Path, **options: object) -> list[dict[str, object]]:
    source = FolderSource.model_validate({"kind": "folder", "name": "pics", "path": str(path), **options})
    sources.check(source)
    return pa.Table.from_batches(list(sources.read(source, str(path))), sources.ROWS).to_pylist()


def told(found: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(row["url"], row["caption"]) for row in found]


def test_metadata_files_of_every_format_in_the_folder_and_below(tmp_path: Path) -> None:
    root = tmp_path / "with [signs] & spaces"
    for name in ("a b.png", "train/1.png", "test/deep/2.png", "beside.png"):
        picture(root / name)
    (root / "beside.txt").write_text("not read: the metadata files say what there is")
    lines = [{"file_name": "a b.png", "text": "in the root"}, {"file_name": "test/deep/2.png", "text": ""}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "train/metadata.csv").write_text('file_name,caption\n1.png,"one, in train"\nnone.png,not there\n')
    table = pa.table({"file_name": ["deep/2.png", "../../out.png"], "caption": ["two", "outside"], "score": [1, 2]})
    pq.write_table(table, root / "test/metadata.parquet")
    found = rows(root)
    assert told(found) == [
        ("pics:/a%20b.png", "in the root"),
        ("pics:/test/deep/2.png", "two"),
        ("pics:/../out.png", "outside"),  # the download refuses it, and its row stays
        ("pics:/train/1.png", "one, in train"),
        ("pics:/train/none.png", "not there"),
    ]
    assert {row["source"] for row in found} == {"pics"}
    assert told(rows(root, limit=3)) == told(found)[:3]


def test_names_of_folders_and_files_are_what_they_are(tmp_path: Path) -> None:
    """A folder's name is no pattern, and blanks in a file's name are its own."""
    for folder in ("[12]", "1"):
        picture(tmp_path / folder / "a  b .png")
        line = {"file_name": "a  b .png", "text": f"in  {folder}"}
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps(line))
    found = told(rows(tmp_path))
    assert [caption for _, caption in found] == ["in 1", "in [12]"]
    for (url, _), folder in zip(found, ("1", "[12]"), strict=True):
        path = os.fsencode(f"{folder}/a  b .png")
        assert local_path(str(url), {"pics": str(tmp_path)}) == (os.fsencode(tmp_path), path)


def test_metadata_without_its_columns_is_refused_with_the_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for text in ("name,text\na.png,x\n", "file_name,label\na.png,3\n"):
        (tmp_path / "metadata.csv").write_text(text)
        with pytest.raises(InputError, match=r"metadata\.csv.*file_name"):
            rows(tmp_path)


COCO = {
    "licenses": [{"id": 4, "url": "http://creativecommons.org/licenses/by/2.0/", "name": "Attribution"}],
    "images": [
        {"id": 9, "file_name": "000009.png", "coco_url": "http://images.example.org/000009.png", "license": 4},
        {"id": 25, "file_name": "000025.png", "coco_url": "http://images.example.org/000025.png?sig=x", "license": 1},
        {"id": 30, "file_name": "gone.png"},
        {"id": 31, "file_name": "../out.png"},
        {"id": 32, "height": 5},
        {"id": [1], "file_name": "x.png"},
        "not an image",
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "a red square\n"},
        {"id": 2, "image_id": 25, "caption": "somewhere else"},
        {"id": 3, "image_id": 9, "caption": "a square in red"},
        {"id": 4, "image_id": 30, "caption": "not there"},
        {"id": 5, "image_id": 31, "caption": "outside"},
        {"id": 6, "image_id": 32, "caption": "nowhere"},
        {"id": 7, "image_id": 77, "caption": "unknown"},
        {"id": 8, "image_id": [1], "caption": "odd"},
        {"id": 9, "image_id": 9, "caption": 5},
        {"id": 10, "image_id": 9, "caption": " "},
        7,
    ],
}


def test_each_coco_annotation_is_a_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "val/000009.png")
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    caplog.set_level("INFO")
    found = rows(tmp_path / "val", annotations=str(tmp_path / "captions.json"))
    assert [(row["url"], row["caption"], row["source_id"]) for row in found] == [
        ("pics:/000009.png", "a red square", "1"),
        ("http://images.example.org/000025.png", "somewhere else", "2"),
        ("pics:/000009.png", "a square in red", "3"),
        ("pics:/gone.png", "not there", "4"),
        ("pics:/../out.png", "outside", "5"),
    ]
    assert [row["license"] for row in found[:2]] == ["http://creativecommons.org/licenses/by/2.0/", None]
    assert found[1]["fetch_url"] == "http://images.example.org/000025.png?sig=x"
    assert [line.removeprefix("pics: ") for line in caplog.messages] == [
        "2 annotations without a caption are left aside",
        "4 annotations without an image are left aside",
        "1 images without a URL or a file's name that can be one are left aside",
        "2 images without an id are left aside",
    ]


def coco(path: Path, images: list[dict], **more: object) -> Path:
    """A captions file in which every image has a caption that is its id."""
    captions = [{"image_id": image["id"], "caption": str(image["id"])} for image in images]
    path.write_text(json.dumps({"annotations": captions, "info": [[1]], "images": images, **more}))
    return path


def test_names_that_no_file_can_have_cost_their_image_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    picture(root / "a.png")
    picture(tmp_path / "out.png")
    (root / "link.png").symlink_to(tmp_path / "out.png")
    web = "http://h/x.png"
    images = [
        {"id": 1, "file_name": "\ud800.jpg"},
        {"id": 2, "file_name": "nul\0.jpg"},
        {"id": 3, "file_name": "\udfff", "coco_url": web},
        {"id": 4, "file_name": "../out.png", "coco_url": web},
        {"id": 5, "file_name": "link.png", "coco_url": web},
        {"id": 6, "file_name": "x" * 5000},
        {"id": 7, "coco_url": "http://h/\ud800.png"},
        {"id": "\ud800", "file_name": "a.png"},
    ]
    found = rows(root, annotations=str(coco(tmp_path / "captions.json", images)))
    assert told(found) == [
        *((web, str(number)) for number in (3, 4, 5)),
        (f"pics:/{'x' * 5000}", "6"),
        ("http://h/%EF%BF%BD.png", "7"),
        ("pics:/a.png", "\ufffd"),
    ]
    assert caplog.messages == [
        "pics: 2 annotations without an image are left aside",
        "pics: 2 images without a URL or a file's name that can be one are left aside",
    ]


def test_a_coco_file_is_not_held_in_memory_but_for_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(100)]
    captions = [{"image_id": number % 100, "caption": "w" * 1000} for number in range(20_000)]
    path = coco(tmp_path / "captions.json", images)
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    source = FolderSource(kind="folder", name="pics", path=str(tmp_path / "root"), annotations=str(path))
    tracemalloc.start()
    assert sum(batch.num_rows for batch in sources.read(source, "")) == 20_000
    assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 1.5
    tracemalloc.stop()
    monkeypatch.setattr("vlmdata.sources.coco._MOST", 30_000)
    with pytest.raises(DataError, match=r"captions\.json: its images take more than 30,000 bytes of memory"):
        list(sources.read(source, ""))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"images": []}',
        '{"images": [' + "9" * 5000 + "]}",
        '{"images": [], "annotations": {}}',
        "[" * 100_000,
    ],
)
def test_what_is_not_coco_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(DataError, match=r"captions\.json.*not (JSON|COCO)"):
        rows(tmp_path, annotations=str(tmp_path / "captions.json"))
    with pytest.raises(InputError, match="there is no file"):
        rows(tmp_path, annotations=str(tmp_path / "none.json"))
