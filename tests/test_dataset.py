"""Parts are committed in one step, and are the same bytes for the same rows."""

import pyarrow as pa
import pytest

from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError
from vlmdata.parts import Table, make_key, part_name

ROWS = pa.table({"uid": ["a", "b"], "value": pa.array([1.5, None], pa.float32())})


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "a folder [1]"))


def test_a_part_is_found_current_only_with_its_inputs(dataset):
    part = dataset.write_part("text", "k", part_name(0), ROWS, {"pairs": "x"})
    assert dataset.current_part("text", "k", part_name(0), {"pairs": "x"}) == part
    assert dataset.current_part("text", "k", part_name(0), {"pairs": "y"}) is None
    assert dataset.current_part("text", "k", part_name(1), {"pairs": "x"}) is None
    assert dataset.read_part(part).equals(ROWS)
    assert dataset.read_part(part, ["value"]).column_names == ["value"]


def test_a_part_of_vectors_is_known_again_too(dataset):
    vectors = pa.array([[1, 2], None], pa.list_(pa.float16(), 2))
    part = dataset.write_part("embeddings_clip", "k", "1", pa.table({"uid": ["a", "b"], "vector": vectors}), {"a": "b"})
    assert dataset.current_part("embeddings_clip", "k", "1", {"a": "b"}) == part
    assert dataset.inputs(part) == {"a": "b"}
    assert dataset.read_part(part)["vector"].to_pylist() == [[1, 2], None]


def test_equal_rows_give_equal_bytes_however_they_are_chunked(dataset):
    chunked = pa.concat_tables([ROWS.slice(0, 1), ROWS.slice(1)])
    first = dataset.write_part("text", "k", "1", ROWS, {})
    second = dataset.write_part("text", "k", "2", chunked, {})
    assert first.sha256 == second.sha256


def test_a_damaged_part_is_made_again_and_its_reading_is_an_error(dataset):
    part = dataset.write_part("text", "k", "1", ROWS, {})
    with open(dataset.path(part.path), "r+b") as handle:
        handle.truncate(part.bytes - 3)
    assert dataset.current_part("text", "k", "1", {}) is None
    with pytest.raises(DataError, match="vlmdata verify"):
        dataset.read_part(part)


def test_a_part_whose_tar_is_gone_is_not_current(dataset):
    tar = dataset.write_bytes("images/k/1.tar", b"tar")
    dataset.write_part("images", "k", "1", ROWS, {}, also=(tar,))
    assert dataset.current_part("images", "k", "1", {}) is not None
    dataset.remove("images/k/1.tar")
    assert dataset.current_part("images", "k", "1", {}) is None


def test_nothing_is_left_aside(dataset):
    dataset.write_bytes("a/b", b"x")
    with dataset.spool() as folder:
        (folder / "half").write_bytes(b"half")
    assert dataset.fs.find(dataset.path(".spool")) == []


def test_a_table_comes_back_from_its_manifest(dataset):
    part = dataset.write_part("text", "k", "1", ROWS, {})
    table = Table("text", "k", (part,), {"pairs": "x"}, {"base": "b"})
    dataset.write_table(table)
    assert dataset.read_table("text", "k") == table
    assert dataset.tables_named("text") == [table]
    assert dataset.read_table("text", "other") is None


def test_a_key_depends_on_everything_that_changes_values():
    keys = {
        make_key("clip", 1, {"model": "a"}, []),
        make_key("clip", 2, {"model": "a"}, []),
        make_key("clip", 1, {"model": "b"}, []),
        make_key("clip", 1, {"model": "a"}, ["x"]),
        make_key("nsfw", 1, {"model": "a"}, []),
    }
    assert len(keys) == 5
    assert make_key("clip", 1, {"a": 1, "b": 2}, []) == make_key("clip", 1, {"b": 2, "a": 1}, [])


def test_an_unknown_protocol_is_the_users_error():
    with pytest.raises(InputError, match="nosuch"):
        Dataset("nosuch://bucket/x")


def test_a_dataset_in_memory_works_like_one_on_disk():
    dataset = Dataset("memory://somewhere")
    part = dataset.write_part("text", "k", "1", ROWS, {"a": "b"})
    assert dataset.current_part("text", "k", "1", {"a": "b"}) == part
    assert dataset.read_part(part).equals(ROWS)


def test_vectors_that_were_not_measured_are_null_and_come_back(dataset):
    vectors = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float16(), 2))
    part = dataset.write_part("embeddings_clip", "k", "1", pa.table({"uid": ["a", "b", "c"], "vector": vectors}), {})
    assert dataset.read_part(part)["vector"].to_pylist() == [[1, 2], None, [3, 4]]


def test_a_kept_folder_outlives_an_error_and_goes_when_its_work_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for dataset in (Dataset(str(tmp_path / "d")), Dataset("memory://d")):
        with pytest.raises(FileNotFoundError), dataset.kept("reading/k") as folder:
            (folder / "held").write_text("it") and (folder / "not there").read_text()
        dataset.clean_spool()
        with dataset.kept("reading/k") as folder:
            assert (folder / "held").read_text() == "it"
        assert not folder.parent.exists()


def test_a_kill_while_a_document_is_replaced_by_renaming_loses_neither(monkeypatch):
    dataset = Dataset("memory://killed-between-renames")
    real = dataset.fs.mv
    for kill in (1, 2):
        dataset.write_json("latest.json", {"snapshot": kill})
        calls = []

        def mv(*arguments, calls=calls, kill=kill, **more):
            calls.append(arguments)
            if len(calls) == kill:
                raise KeyboardInterrupt
            return real(*arguments, **more)

        with monkeypatch.context() as killed:
            killed.setattr(dataset.fs, "mv", mv)
            with pytest.raises(KeyboardInterrupt):
                dataset.write_json("latest.json", {"snapshot": 9})
        assert dataset.exists("latest.json")
        assert dataset.read_json("latest.json") == {"snapshot": kill}
    dataset.write_json("latest.json", {"snapshot": 10})
    assert dataset.read_json("latest.json") == {"snapshot": 10}
    assert not any(path.endswith(".old") for path in dataset.files(""))
    calls.clear()
    monkeypatch.setattr(dataset.fs, "mv", mv)
    with pytest.raises(KeyboardInterrupt):
        dataset.write_json("latest.json", {"snapshot": 11})
    dataset.remove("latest.json")
    assert not dataset.exists("latest.json")
