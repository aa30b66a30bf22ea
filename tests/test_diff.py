"""What came, went and changed between two snapshots."""

import json

import pytest
from made_snapshots import publish

from vlmdata import diff
from vlmdata.dataset import Dataset


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "it"))


def test_every_kind_of_change_is_counted_by_verdict_with_examples(dataset):
    before = publish(dataset, [("a", None), ("b", None), ("c", "words"), ("d", "words"), ("e", "size"), ("f", None)])
    after = publish(dataset, [("a", None), ("b", "words"), ("c", None), ("d", "size"), ("e", "size"), ("g", None),
                              ("h", "size"), ("i", "size"), ("j", "size"), ("k", "size")])  # fmt: skip
    found = diff.diff(dataset, before, after)
    told = {
        name: {(verdict["from"], verdict["to"]): verdict["pairs"] for verdict in change["verdicts"]}
        for name, change in found["changes"].items()
    }
    assert told == {
        "new": {("absent", "size"): 4, ("absent", None): 1},
        "gone": {(None, "absent"): 1},
        "kept now": {("words", None): 1},
        "no longer kept": {(None, "words"): 1},
        "other reason": {("words", "size"): 1},
    }
    assert found["changes"]["new"]["pairs"] == 5
    assert [example["uid"] for example in found["changes"]["new"]["examples"]] == ["g", "h", "i"]
    assert found["changes"]["gone"]["examples"] == [
        {"uid": "f", "caption": "caption of f", "from": None, "to": "absent"}
    ]
    assert found["shards"] == {"came": 1, "went": 1, "stayed": 0}
    assert json.loads(json.dumps(found)) == found
    lines = diff.lines(found)
    assert "snapshot 2: 3 kept of 10 pairs" in lines
    assert any(line.split() == ["words", "->", "kept", "1"] for line in lines)


def test_a_refresh_is_compared_by_its_own_parts(dataset):
    before = publish(dataset, [("a", None), ("b", "words")])
    after = publish(dataset, [("c", None)], parent=before)
    found = diff.diff(dataset, before, after)
    assert {name: change["pairs"] for name, change in found["changes"].items() if change["pairs"]} == {"new": 1}
    back = diff.diff(dataset, after, before)
    assert {name: change["pairs"] for name, change in back["changes"].items() if change["pairs"]} == {"gone": 1}
    assert found["shards"] == {"came": 1, "went": 0, "stayed": 1}


def test_a_snapshot_is_like_itself(dataset):
    only = publish(dataset, [("a", None), ("b", "words")])
    found = diff.diff(dataset, only, only)
    assert {name: change["pairs"] for name, change in found["changes"].items()} == dict.fromkeys(
        ("new", "gone", "kept now", "no longer kept", "other reason"), 0
    )
    assert found["shards"] == {"came": 0, "went": 0, "stayed": 1}
