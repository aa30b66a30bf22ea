"""Names of snapshots."""

import pytest
from made_snapshots import publish

from vlmdata import tags
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError


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


def test_a_folder_with_an_at_sign_in_its_name_is_a_dataset(tmp_path):
    dataset = Dataset(str(tmp_path / "me@home"))
    publish(dataset, [("a", None)])
    assert tags.opened(dataset.root)[1]["number"] == 1
