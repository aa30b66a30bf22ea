"""A finished img2dataset folder is taken over by the command line as it is, and the pipeline goes on from there."""

import json
import tarfile

import img2dataset_folder
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import here

from vlmdata.recipe import WebdatasetSource
from vlmdata.sources import read, signals


@pytest.fixture(scope="module")
def adopted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adopt")
    img2dataset_folder.make(folder / "laion [x]")
    before = {path.name: path.read_bytes() for path in (folder / "laion [x]").iterdir()}
    run = here(folder, "adopt", "laion [x]", "runs/laion")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(folder / "runs/laion/recipe.yaml")
    assert before == {path.name: path.read_bytes() for path in (folder / "laion [x]").iterdir()}
    (folder / "adopt.log").write_text(run.stderr)
    return folder


def table(folder, path):
    dataset = folder / "runs/laion"
    parts = json.loads(next(dataset.glob(f"{path}/*/manifest.json")).read_text())["parts"]
    return pa.concat_tables([pq.read_table(dataset / part["path"]) for part in parts])


def theirs(folder):
    """caption -> (Parquet row, bytes in the tar or None)."""
    found = {}
    for path in sorted((folder / "laion [x]").glob("*.parquet")):
        with tarfile.open(path.with_suffix(".tar")) as tar:
            stored = {member.name: tar.extractfile(member).read() for member in tar}
        for row in pq.read_table(path).to_pylist():
            found[row["caption"]] = row, stored.get(f"{row['key']}.jpg")
    return found


def test_every_row_is_there_with_its_status_and_its_very_bytes(adopted):
    pairs = table(adopted, "tables/pairs").to_pylist()
    rows = table(adopted, "images").to_pylist()
    known = theirs(adopted)
    assert len(pairs) == len(rows) == len(known) == 34
    kept = 0
    for pair, image in zip(pairs, rows, strict=True):
        row, jpeg = known[pair["caption"]]
        assert image["uid"] == pair["uid"]
        assert (image["download_status"] == "success") == (row["status"] == "success")
        assert image["sha256"] == row["sha256"]
        for side in ("width", "height", "original_width", "original_height"):
            assert image[side] == row[side]
        if jpeg is not None:
            kept += 1
            data = (adopted / "runs/laion" / image["stored_tar"]).read_bytes()
            assert data[image["offset"] :][: image["length"]] == jpeg
    assert kept == 24
    counts = {
        status: [row["download_status"] for row in rows].count(status) for status in ("4xx", "5xx", "decode", "blocked")
    }
    assert counts == {"4xx": 4, "5xx": 2, "decode": 2, "blocked": 2}
    assert "secret" not in str(rows)
    log = (adopted / "adopt.log").read_text()
    assert "success                 24" in log


def test_the_recipe_is_never_written_over_and_the_same_command_finds_all_done(adopted):
    recipe = adopted / "runs/laion/recipe.yaml"
    text = recipe.read_text()
    again = here(adopted, "adopt", "laion [x]", "runs/laion")
    assert (again.returncode, again.stdout.strip()) == (0, str(recipe)), again.stderr
    recipe.write_text(text + "# mine\n")
    try:
        refused = here(adopted, "adopt", "laion [x]", "runs/laion")
        assert refused.returncode == 2
        assert "is there already" in refused.stderr
        assert recipe.read_text() == text + "# mine\n"
    finally:
        recipe.write_text(text)


def test_what_is_no_output_of_img2dataset_is_refused_before_anything_is_written(adopted, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none"):
        run = here(tmp_path, "adopt", folder, "runs/x")
        assert run.returncode == 2
        assert folder in run.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("form", ["parquet", "tfrecord"])
def test_formats_that_are_not_read_are_named(tmp_path, form):
    img2dataset_folder.make(tmp_path / "out", 1, "ParquetSampleWriter")
    if form == "tfrecord":  # its writer needs TensorFlow; it puts the same Parquet file, without images, beside it
        about = tmp_path / "out/00000.parquet"
        pq.write_table(pq.read_table(about).drop_columns(["jpg"]), about)
        (tmp_path / "out/00000.tfrecord").write_bytes(b"x")
    run = here(tmp_path, "adopt", "out", "data")
    assert run.returncode == 2
    assert "`webdataset` and `files` are read, `parquet` and `tfrecord` are not" in run.stderr
    assert not (tmp_path / "data/recipe.yaml").exists()


def test_the_run_goes_on_to_shards_and_these_are_a_source_that_keeps_its_signals(adopted, tmp_path):
    recipe = yaml.safe_load((adopted / "runs/laion/recipe.yaml").read_text())
    assert recipe["download"]["size"] == 96
    recipe["signals"] = ["text", "image"]
    recipe["select"] = {"rules": {"similar": "source_similarity >= 0.3", "words": "words > 3"}}
    recipe["shards"] = {"columns": ["original_width", "sharpness", "phash"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = here(tmp_path, "run", "recipe.yaml")
    assert run.returncode == 0, run.stderr
    snapshot = adopted / "runs/laion/snapshots/000001"
    samples = pa.concat_tables([pq.read_table(path) for path in (snapshot / "samples").glob("*.parquet")]).to_pylist()
    reasons = [row["reason"] for row in samples]
    assert reasons.count("similar") == 10
    assert reasons.count("download: 4xx") == 4
    kept = {row["uid"]: row for row in samples if row["kept"]}
    assert len(kept) == 14
    source = WebdatasetSource(kind="webdataset", path=str(snapshot / "shards/*.tar"))
    columns = {field.name: str(field.type) for field in signals(source)}
    assert columns["source_sharpness"] == columns["source_similarity"] == "double"
    assert columns["source_words"] == "int64"
    assert columns["source_phash"] in ("int64", "uint64")
    (batch,) = read(source, str(tmp_path))
    again = batch.to_pylist()
    assert {row["source_id"] for row in again} == set(kept)
    for row in again:
        sample = kept[row["source_id"]]
        assert (row["url"], row["caption"]) == (sample["url"], sample["caption"])
        assert row["source_phash"] == sample["phash"]
        assert row["source_sharpness"] == pytest.approx(sample["sharpness"])
