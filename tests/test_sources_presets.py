"""Published lists in the forms in which they are given out, read by their presets; Hugging Face datasets."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmdata import sources
from vlmdata.errors import InputError
from vlmdata.recipe import TableSource
from vlmdata.sources.presets import PRESETS


def rows(**options: object) -> list[dict[str, object]]:
    source = TableSource.model_validate(
        {"kind": "table", **{k: str(v) if k == "path" else v for k, v in options.items()}}
    )
    sources.check(source)
    schema = pa.schema([*sources.ROWS, *sources.signals(source)])
    found = pa.Table.from_batches(list(sources.read(source, ".")), schema).to_pylist()
    return [{name: value for name, value in row.items() if value is not None and name != "source"} for row in found]


def test_every_preset_of_the_recipe_is_there() -> None:
    choices = TableSource.model_json_schema()["properties"]["preset"]["anyOf"][0]["enum"]
    assert set(choices) == set(PRESETS)
    for preset in PRESETS.values():
        assert {"url", "caption"} <= set(preset.columns)


def test_laion(tmp_path: Path) -> None:
    """laion2B-en-joined's columns and types, and the forms with an MD5 and with LAION-400M's columns."""
    joined = {
        "URL": ["http://a/1"], "TEXT": ["one"], "WIDTH": pa.array([640], pa.int32()),
        "HEIGHT": pa.array([480], pa.int32()), "similarity": [0.31], "hash": [-5], "LANGUAGE": ["en"],
        "punsafe": pa.array([0.5], pa.float32()), "pwatermark": pa.array([0.25], pa.float32()),
    }  # fmt: skip
    pq.write_table(pa.table(joined), tmp_path / "a.parquet")
    assert rows(path=tmp_path / "a.parquet", preset="laion") == [
        {"url": "http://a/1", "caption": "one", "caption_from": "TEXT", "source_id": "-5", "source_width": 640,
         "source_height": 480, "source_similarity": 0.31, "source_punsafe": 0.5, "source_pwatermark": 0.25,
         "source_language": "en"}
    ]  # fmt: skip
    first = {
        "SAMPLE_ID": [1581282014547.0, None], "URL": ["http://a/1", "http://a/2"], "TEXT": ["one", "two"],
        "HEIGHT": [480.0, None], "WIDTH": [640.0, None], "LICENSE": ["?", "CC"], "NSFW": ["UNLIKELY", None],
        "similarity": [0.31, 0.4], "md5": ["0" * 32, None],
    }  # fmt: skip
    pq.write_table(pa.table(first), tmp_path / "b.parquet")
    one, two = rows(path=tmp_path / "b.parquet", preset="laion")
    assert (one["source_id"], one["source_width"], one["expected_hash"]) == ("1581282014547", 640, "md5:" + "0" * 32)
    assert "license" not in one
    assert (two["license"], two.get("source_width"), two.get("source_nsfw")) == ("CC", None, None)


def test_relaion(tmp_path: Path) -> None:
    columns = {"url": ["http://a/1"], "caption": ["one"], "similarity": [0.3], "hash": [7], "punsafe": [0.1]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    [row] = rows(path=tmp_path / "a.parquet", preset="relaion")
    assert (row["url"], row["caption"], row["source_id"], row["source_punsafe"]) == ("http://a/1", "one", "7", 0.1)


def test_datacomps_uid_is_the_source_id(tmp_path: Path) -> None:
    columns = {
        "uid": ["139e4a9b22a614771f06c700a8ebe150"], "url": ["http://a/1"], "text": ["one"], "original_width": [980],
        "original_height": [405], "clip_b32_similarity_score": pa.array([0.25], pa.float32()),
        "clip_l14_similarity_score": pa.array([0.125], pa.float32()), "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]]],
        "sha256": ["AB" * 32],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert rows(path=tmp_path / "a.parquet", preset="datacomp") == [
        {"url": "http://a/1", "caption": "one", "caption_from": "text", "source_id": "139e4a9b22a614771f06c700a8ebe150",
         "expected_hash": "sha256:" + "ab" * 32, "source_original_width": 980, "source_original_height": 405,
         "source_clip_b32_similarity_score": 0.25, "source_clip_l14_similarity_score": 0.125}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "line"),
    [("cc3m", 'a "man"\thttp://a/1\n"no end\thttp://a/2\n'), ("cc12m", 'http://a/1\ta "man"\nhttp://a/2\t"no end\n')],
)
@pytest.mark.parametrize("names", [False, True])
def test_conceptual_captions_have_no_names_on_top_and_no_quotes(
    preset: str, line: str, names: bool, tmp_path: Path
) -> None:
    """Unless somebody has put the names there."""
    top = "\t".join(PRESETS[preset].header) + "\n" if names else ""
    (tmp_path / "a.tsv").write_text(top + line)
    found = rows(path=tmp_path / "a.tsv", preset=preset)
    assert [(r["url"], r["caption"]) for r in found] == [("http://a/1", 'a "man"'), ("http://a/2", '"no end')]


def test_coyo(tmp_path: Path) -> None:
    columns = {
        "id": [4896263451343], "url": ["http://a/1"], "text": ["one"], "width": [640], "height": [480],
        "image_phash": ["c3f0e5a1b2d49687"], "clip_similarity_vitb32": pa.array([0.25], pa.float32()),
        "watermark_score": pa.array([0.5], pa.float32()),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    [row] = rows(path=tmp_path / "a.parquet", preset="coyo")
    assert (row["source_id"], row["source_image_phash"]) == ("4896263451343", "c3f0e5a1b2d49687")
    assert (row["source_clip_similarity_vitb32"], row["source_watermark_score"]) == (0.25, 0.5)


def test_sbu_is_lists_side_by_side(tmp_path: Path) -> None:
    lists = {"image_urls": ["http://a/1", "http://a/2"], "user_ids": ["x", "y"], "captions": ["one", "two"]}
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps(lists))
    found = rows(path=tmp_path / "sbu-captions-all.json", preset="sbu")
    assert [(r["url"], r["caption"]) for r in found] == [("http://a/1", "one"), ("http://a/2", "two")]


def test_redcaps(tmp_path: Path) -> None:
    annotation = {
        "image_id": "8pfq1l", "author": "somebody", "url": "https://i.redd.it/x.jpg", "raw_caption": "One!",
        "caption": "one", "subreddit": "roses", "score": 12, "created_utc": 1514797190,
        "permalink": "/r/roses/comments/8pfq1l/one/", "crosspost_parents": None,
    }  # fmt: skip
    (tmp_path / "roses_2020.json").write_text(json.dumps({"info": {"url": "x"}, "annotations": [annotation]}))
    assert rows(path=tmp_path / "roses_2020.json", preset="redcaps") == [
        {"url": "https://i.redd.it/x.jpg", "caption": "one", "caption_from": "caption", "source_id": "8pfq1l",
         "page_url": "https://www.reddit.com/r/roses/comments/8pfq1l/one/", "source_subreddit": "roses",
         "source_score": 12, "source_created_utc": 1514797190}
    ]  # fmt: skip
    [row] = rows(path=tmp_path / "roses_2020.json", preset="redcaps", caption="raw_caption", keep=[])
    assert row["caption"] == "One!"
    assert "source_score" not in row


def test_a_preset_without_its_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"urls": ["u"], "TEXT": ["t"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"table\.url: .* no column 'URL'"):
        rows(path=tmp_path / "a.parquet", preset="laion")


@pytest.fixture
def pairs() -> datasets.Dataset:
    columns = {
        "url": [f"http://a/{n}" for n in range(12)],
        "caption": ["text"] * 12,
        "score": [n / 4 for n in range(12)],
    }
    return datasets.Dataset.from_dict(columns)


def test_a_saved_hugging_face_dataset(pairs: datasets.Dataset, tmp_path: Path) -> None:
    pairs.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": pairs, "test": pairs.select([3])}).save_to_disk(tmp_path / "splits")
    assert len(rows(hf=str(tmp_path / "one"), keep=["score"])) == 12
    [row] = rows(hf=str(tmp_path / "splits"), split="test", keep=["score"])
    assert row == {"url": "http://a/3", "caption": "text", "caption_from": "caption", "source_score": 0.75}
    with pytest.raises(InputError, match=r"no split 'tests'; did you mean 'test'"):
        rows(hf=str(tmp_path / "splits"), split="tests")


def test_a_folder_of_parquet_as_a_hugging_face_dataset(
    pairs: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "list" / "data").mkdir(parents=True)
    pairs.to_parquet(tmp_path / "list" / "data" / "train-00000-of-00001.parquet")
    found = rows(hf=str(tmp_path / "list"), keep=["score"])
    assert [(row["url"], row["source_score"]) for row in found] == [(f"http://a/{n}", n / 4) for n in range(12)]
    with pytest.raises(InputError, match=r"sources\.table\.hf"):
        rows(hf=str(tmp_path / "list"), split="validation")
    with pytest.raises(InputError, match=r"has no column 'URL'; did you mean 'url'"):
        rows(hf=str(tmp_path / "list"), url="URL")
