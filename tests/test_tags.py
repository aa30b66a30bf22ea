"""Names of snapshots."""

import pytest
from made_snapshots import publish

from vlmdata import gc, tags
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError


@pytest.fixture
def dataset(tmp_path):
    made = Dataset(str(tmp_path / "a dataset"))
    publish(made, [("a", None)])
    publish(made, [("a", "words")])
    return made


def test_a_name_means_its_snapshot_wherever_a_number_does(dataset):
    assert tags.tag(dataset, "paper", "1") == 1
    assert tags.tag(dataset, "now") == 2
    for word, number in (("paper", 1), ("now", 2), ("000001", 1), ("2", 2)):
        found, manifest = tags.opened(f"{dataset.root}@{word}")
        assert (found.root, manifest["number"]) == (dataset.root, number)
    assert tags.opened(dataset.root)[1]["number"] == 2


def test_a_name_moves_and_is_taken_away(dataset):
    tags.tag(dataset, "paper", "1")
    tags.tag(dataset, "paper", "2")
    assert tags.tags(dataset) == {"paper": 2}
    tags.remove(dataset, "paper")
    assert tags.tags(dataset) == {}
    with pytest.raises(InputError, match="no snapshot is called 'paper'"):
        tags.remove(dataset, "paper")


def test_what_is_no_name_or_no_snapshot_is_refused(dataset):
    for name in ("1", "", "a/b", "../x", "a b", "-a", "é"):
        with pytest.raises(InputError, match="no name for a snapshot"):
            tags.tag(dataset, name)
    with pytest.raises(InputError, match="has no snapshot 3: the newest one is 2"):
        tags.tag(dataset, "new", "3")
    tags.tag(dataset, "paper", "1")
    with pytest.raises(InputError, match="did you mean 'paper'"):
        tags.opened(f"{dataset.root}@papers")
    assert tags.find("nowhere@paper") is None


def test_names_are_sealed_and_a_damaged_file_is_told(dataset):
    tags.tag(dataset, "checksum", "1")
    assert dataset.is_sealed("tags.json")
    for wrong in ([], {"tags": ["a"]}, {"tags": {"a": "1"}}, {"a": 1}):
        dataset.write_json("tags.json", wrong)
        with pytest.raises(DataError, match=r"tags\.json: not names of snapshots"):
            tags.tags(dataset)
    dataset.write_json("removed.json", {"snapshots": 1})
    with pytest.raises(DataError, match=r"removed\.json: not numbers of snapshots"):
        dataset.numbers()


def test_a_name_of_a_snapshot_that_is_gone_means_none(dataset):
    tags.tag(dataset, "paper", "1")
    dataset.write_sealed("removed.json", {"snapshots": [1]})
    with pytest.raises(InputError, match="has no snapshot 1 any more"):
        tags.opened(f"{dataset.root}@paper")
    assert gc.garbage(dataset, 1).stay == {2: ""}


def test_a_folder_with_an_at_sign_in_its_name_is_a_dataset(tmp_path):
    dataset = Dataset(str(tmp_path / "me@home"))
    publish(dataset, [("a", None)])
    assert tags.opened(dataset.root)[1]["number"] == 1
