"""An evaluation set's own images are found in the pool, however they were encoded again, and nothing else is."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_dataset import pair, publish
from PIL import Image
from selectolax.lexbor import LexborHTMLParser as HTMLParser
from test_signals_sscd import jpeg, scene

from vlmdata import recipe, signals
from vlmdata.catalog import connect
from vlmdata.dedup import evaluation
from vlmdata.dedup.decontaminate import Index, tables
from vlmdata.errors import DataError, InputError
from vlmdata.pipelines import decontaminate
from vlmdata.plan import make_plan
from vlmdata.report import write_report

EVALUATION, OTHERS = range(5), range(100, 105)
HOSTILE = "<img src=x onerror=alert(1)>.png"
CHANGES = {
    "signals": ["image", {"kind": "sscd", "model": "distilled"}],
    "select": {"rules": {}},
    "shards": {},
    "jobs": [],
}


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def copies(image):
    """What a pool may hold of an evaluation image."""
    width, height = image.size
    made = {f"JPEG {quality}": jpeg(image, quality) for quality in (30, 60, 95)}
    made["half"] = jpeg(image.resize((width // 2, height // 2), Image.Resampling.LANCZOS))
    made["crop"] = jpeg(image.crop((width // 20, height // 20, width - width // 20, height - height // 20)))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The evaluation set as a folder, one of its images with a hostile name."""
    folder = tmp_path_factory.mktemp("evaluation") / "evals"
    (folder / "deep").mkdir(parents=True)
    for seed in EVALUATION:
        name = HOSTILE if seed == 0 else f"deep/{seed}.png"
        (folder / name).write_bytes(png(scene(seed)))
    (folder / "labels.txt").write_text("what is no image is passed over")
    return folder


def method(path, **more):
    return {"kind": "decontaminate", "against": str(path), "embeddings": "sscd", "similarity": 0.8, **more}


@pytest.fixture(scope="module")
def published(tmp_path_factory, folder):
    made = [pair(f"{name} of {seed}", content) for seed in EVALUATION for name, content in copies(scene(seed)).items()]
    made += [pair(f"other {seed}", jpeg(scene(seed))) for seed in OTHERS]
    made += [pair("failed", download_status="4xx", error="404")]
    changes = {**CHANGES, "dedup": ["exact", method(folder)]}
    dataset, manifest = publish(tmp_path_factory.mktemp("pool"), made, changes)
    return dataset, manifest


def rows(dataset, sql):
    with connect(dataset) as connection:
        return connection.sql(sql).fetchall()


def test_every_copy_of_the_evaluation_set_is_rejected_and_nothing_else(published):
    dataset, manifest = published
    reasons = dict(rows(dataset, "SELECT caption, reason FROM samples"))
    for caption, reason in reasons.items():
        want = {"other": None, "failed": "download: 4xx"}.get(caption.split()[0], "duplicate: decontaminate")
        assert reason == want, caption
    assert {step["reason"]: step["rejected"] for step in manifest["funnel"]}["duplicate: decontaminate"] == 25


def test_the_table_says_which_image_it_was_and_how_it_was_found(published):
    found = rows(
        published[0], "SELECT caption, evaluation, method, similarity FROM contamination JOIN samples USING (uid)"
    )
    for caption, name, how, similarity in found:
        seed = caption.split()[-1]
        assert name == (f"evals/{HOSTILE}" if seed == "0" else f"deep/{seed}.png")
        assert similarity >= {"perceptual": 1 - 4 / 64, "embeddings": 0.8}[how] - 1e-6
    by = {(caption, how) for caption, _, how, _ in found}
    assert all((f"crop of {seed}", "embeddings") in by for seed in EVALUATION)
    assert sum(how == "perceptual" for _, how in by) >= 15
    assert rows(published[0], "SELECT count(*) FROM duplicates WHERE dup_method = 'decontaminate'") == [(25,)]


def test_the_report_shows_both_images_side_by_side_and_names_as_text(published):
    dataset, manifest = published
    write_report(dataset, manifest)
    page = HTMLParser(dataset.read_bytes("snapshots/000001/report.html").decode())
    pairs = page.css("#contamination .group")
    assert len(pairs) == 24
    for group in pairs:
        sources = [image.attributes["src"] for image in group.css("img")]
        assert len(sources) == 2
        assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not page.css("#contamination [onerror]")
    assert any(HOSTILE in group.text() for group in pairs)
    assert "and 1 more" in page.css_first("#contamination").text()
    assert not any("decontaminate" in heading.text() for heading in page.css("#duplicates h3"))


def test_the_digest_of_the_files_is_in_the_key(tmp_path, folder):
    def key(path, **more):
        changes = {"sources": [{"kind": "folder", "path": str(photos)}], "dataset": str(tmp_path / "data")}
        made = recipe.Recipe.model_validate({**changes, "signals": CHANGES["signals"], "dedup": [method(path, **more)]})
        return make_plan(made).tables["duplicates"]

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(jpeg(scene(0)))
    (photos / "a.txt").write_text("a")
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.png").write_bytes(png(scene(1)))
    first = key(own)
    assert key(own) == first
    assert key(own, distance=5) != first
    (own / "a.png").write_bytes(png(scene(2)))
    assert key(own) != first


def options(path, **more):
    return recipe.DecontaminateDedup.model_validate(method(path, **more))


def measured(path, **more):
    """The evaluation table of these files, measured by the image's signal and SSCD as a pool is."""
    chosen = recipe.SscdSignal(kind="sscd", model="distilled")
    wanted = [
        signals.Measurement(some, signals.family(some.kind).schemas(some), {})
        for some in (recipe.ImageSignal(kind="image"), chosen)
    ]
    cut = evaluation.pieces(evaluation.find(options(path, **more).against))
    done = [evaluation.measure(piece, recipe.Download(), wanted, "embeddings_sscd", 512) for piece in cut]
    return pa.concat_tables(done)


def test_tars_parquet_hashes_and_vectors_are_evaluation_sets_too(tmp_path, folder):
    want = measured(folder)
    assert want.num_rows == len(EVALUATION)
    contents = [png(scene(seed)) for seed in EVALUATION]
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for number, content in enumerate(contents):
            for name, data in ((f"{number}.png", content), (f"{number}.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    pq.write_table(pa.table({"image": [{"bytes": c, "path": "x"} for c in contents]}), tmp_path / "structs.parquet")
    pq.write_table(pa.table({"label": [1] * 5, "jpg": contents}), tmp_path / "bytes.parquet", row_group_size=2)

    def values(table):
        return sorted(zip(*(table[name].to_pylist() for name in ("sha256", "phash", "vector")), strict=True))

    for name in ("set.tar", "structs.parquet", "bytes.parquet"):
        found = measured(tmp_path / name)
        assert values(found) == values(want), name
    assert found["evaluation"].to_pylist() == [f"bytes.parquet#{n}" for n in range(5)]
    vectors = np.array(want["vector"].to_pylist(), np.float32)
    np.save(tmp_path / "v.npy", 3 * vectors)
    np.savez(tmp_path / "v.npz", labels=np.arange(5), embeddings=vectors.astype(np.float16))
    hexes = [f"{value:016x}" for value in want["phash"].to_pylist()]
    signed = want["phash"].combine_chunks().view(pa.int64())
    pq.write_table(pa.table({"phash": hexes, "sha256": want["sha256"]}), tmp_path / "hex.parquet")
    pq.write_table(pa.table({"phash": signed, "v": vectors.tolist()}), tmp_path / "signed.parquet")
    pool = {
        "images": pa.table({"sha256": want["sha256"]}),
        "image": want.select(["phash", "entropy"]),
        "embeddings_sscd": want.select(["vector"]),
    }
    for name, ways in (("v.npy", {2}), ("v.npz", {2}), ("hex.parquet", {0, 1}), ("signed.parquet", {1, 2})):
        matches = Index(measured(tmp_path / name), options(tmp_path / name)).search(pool)
        assert set(matches.method.tolist()) == ways, name
        assert (matches.row == matches.image).all()
        assert len(matches.row) == 5 * len(ways)
        assert matches.similarity.min() > 0.999


def test_what_cannot_be_read_is_told(tmp_path, caplog):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    found = measured(tmp_path / "broken.jpg")
    assert "compared by its bytes alone" in caplog.text
    assert found["sha256"].to_pylist() == [hashlib.sha256(b"\xff\xd8\xff no picture").hexdigest()]
    assert found["phash"].null_count == 1
    with pytest.raises(InputError, match=r"matches no file"):
        evaluation.find([str(tmp_path / "nothing")])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"no file that ends in"):
        evaluation.find([str(tmp_path / "notes.txt")])
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"bad\.tar"):
        measured(tmp_path / "bad.tar")
    np.save(tmp_path / "short.npy", np.ones((3, 7), np.float32))
    with pytest.raises(InputError, match="`embeddings` must name the model"):
        measured(tmp_path / "short.npy")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="objects"):
        measured(tmp_path / "objects.npy")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(InputError, match="label"):
        measured(tmp_path / "labels.parquet")


def test_flat_and_empty_images_are_not_one_by_their_hash(tmp_path):
    flat = [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in (0, 128, 255)]
    for number, image in enumerate(flat):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    some = measured(tmp_path)
    pool = {"images": pa.table({"sha256": ["f" * 64] * 3}), "image": some.select(["phash", "entropy"])}
    looks = recipe.DecontaminateDedup(kind="decontaminate", against=[str(tmp_path)], distance=10)
    assert not len(Index(some, looks).search(pool).row)


def test_a_group_is_what_shows_one_image_and_is_named_by_its_smallest_uid():
    uids = np.array([c * 32 for c in "dacb"], "S32")
    matches = decontaminate.Matches(
        np.arange(4), np.array([7, 7, 3, 7]), np.array([1, 2, 0, 1]), np.array([0.9, 0.8, 1, 0.95], np.float32)
    )
    names = pa.chunked_array([[f"image {n}" for n in range(8)]])
    groups, found = tables(uids, matches, names, {7: "data:x"})
    assert [(row["uid"][0], row["dup_group"][0]) for row in groups.to_pylist()] == [
        ("a", "a"), ("b", "a"), ("d", "a"), ("c", "c"),
    ]  # fmt: skip
    assert [(row["uid"][0], row["evaluation"], row["method"], row["picture"]) for row in found.to_pylist()] == [
        ("a", "image 7", "embeddings", "data:x"), ("b", "image 7", "perceptual", "data:x"),
        ("c", "image 3", "sha256", None), ("d", "image 7", "perceptual", "data:x"),
    ]  # fmt: skip
    assert json.dumps(groups["similarity"].to_pylist()).startswith("[0.8")


def test_a_threshold_belongs_to_a_model(tmp_path):
    with pytest.raises(ValueError, match="go together"):
        recipe.DecontaminateDedup(kind="decontaminate", against=["x"], embeddings="sscd")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(jpeg(scene(0)))
    (photos / "a.txt").write_text("a")
    made = {"dataset": "x", "sources": [{"kind": "folder", "path": str(photos)}], "signals": ["image"]}
    with pytest.raises(InputError, match="embeddings_sscd"):
        make_plan(recipe.Recipe.model_validate({**made, "dedup": [method(photos)]}))
