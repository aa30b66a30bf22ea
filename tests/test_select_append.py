"""New pairs are judged beside what is published, by what the last full selection settled."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from selection import looking_at

from vlmdata.recipe import Sample, Shards, Top
from vlmdata.rules import check_number, check_order, check_rule
from vlmdata.schemas import table_schema
from vlmdata.select import Choice, judge_part, settle
from vlmdata.select.append import STANDING, append

COLUMNS = pa.schema(
    [("uid", pa.string()), ("caption", pa.string()), ("download_status", pa.string()), ("sha256", pa.string()),
     ("width", pa.int32()), ("score", pa.float32())]
)  # fmt: skip
NEAR = pa.schema([("uid", pa.string()), ("other", pa.string()), ("equal", pa.bool_())])


def row(uid, width=20, score=0.9, sha256=None):
    digest = hashlib.sha256((sha256 or uid).encode()).hexdigest()
    return {"uid": uid, "caption": uid, "download_status": "success", "sha256": digest, "width": width, "score": score}


def choice(methods=(), **more):
    order = tuple(check_order("select.survivor", "width desc", COLUMNS))
    return Choice({"wide": check_rule("wide", "width >= 10", COLUMNS)}, frozenset(), methods, order, **more)


def judged(rows, chosen):
    return judge_part(pa.Table.from_pylist(rows, COLUMNS), chosen)


def groups(*members, method="exact"):
    rows = [
        {"uid": uid, "dup_method": method, "dup_group": min(group), "similarity": 1.0}
        for group in members
        for uid in group
    ]
    return pa.Table.from_pylist(rows, table_schema("duplicates"))


def added(rows, chosen, folder, standing=(), alike=None, settled=None, first=None, near=None, shards=None):
    standing = pa.Table.from_pylist(
        [{"uid": u, "sha256": row(u)["sha256"], "split": split} for u, split in standing], STANDING
    )
    shards = shards or Shards(samples=2)
    parts, counts, splits = append(
        looking_at(folder, judged(rows, chosen), alike, near), standing, [len(rows)], chosen, shards,
        first or {"train": 0}, settled or {}, None, alike is not None, list(near or {}),
    )  # fmt: skip
    (part,) = parts
    return {entry["uid"]: entry for entry in part.to_pylist()}, counts, splits


def test_a_published_pair_beats_its_new_duplicate_and_a_rejected_one_does_not(tmp_path):
    rows = [row("new1", width=90), row("new2", width=80), row("new3", width=70)]
    # old9 was rejected: it is not among the standing
    found, counts, _ = added(
        rows, choice(("exact",)), tmp_path, [("old1", "train")], groups(("old1", "new1"), ("old9", "new2", "new3"))
    )
    assert {uid: entry["reason"] for uid, entry in found.items()} == {
        "new1": "duplicate: exact", "new2": None, "new3": "duplicate: exact",
    }  # fmt: skip
    assert counts == {None: 1, "duplicate: exact": 2}


def test_two_published_pairs_that_a_new_one_joins_stay_as_they_are(tmp_path):
    found, counts, splits = added(
        [row("new")], choice(("exact",)), tmp_path, [("old1", "train"), ("old2", "train")],
        groups(("old1", "old2", "new")),
    )  # fmt: skip
    assert list(found) == ["new"]
    assert (counts, splits) == ({"duplicate: exact": 1}, {"train": 0})


def test_new_shards_are_numbered_behind_the_old_ones(tmp_path):
    rows = [row(f"new{n}") for n in range(5)]
    found, _, splits = added(rows, choice(), tmp_path, first={"train": 7})
    places = sorted((entry["shard"], entry["index"]) for entry in found.values())
    assert places == [("train-0000007", 0), ("train-0000007", 1), ("train-0000008", 0), ("train-0000008", 1),
                      ("train-0000009", 0)]  # fmt: skip
    assert splits == {"train": 5}


def test_a_new_pair_goes_to_the_split_of_the_published_one_that_it_is_like(tmp_path):
    """By SemDeDup's rule several of a group stay; 40 new ones would else be spread over both splits."""
    rows = [row(f"new{n}") for n in range(40)]
    alike = groups(("old", *(r["uid"] for r in rows)), method="semantic")
    near = {"semantic": pa.Table.from_pylist([], NEAR)}
    shards = Shards(samples=10, splits={"train": 0.5, "test": 0.5})
    for split in ("train", "test"):
        found, _, splits = added(
            rows, choice(("semantic",)), tmp_path, [("old", split)], alike, near=near, shards=shards,
            first={"train": 1, "test": 1},
        )  # fmt: skip
        assert {entry["split"] for entry in found.values()} == {split}
        assert splits[split] == 40


@pytest.mark.parametrize("of", ["passed", "pool"])
def test_the_top_is_told_by_the_threshold_that_was_settled(tmp_path, of):
    top = choice(top=Top(by="score", fraction=0.25, of=of), top_by=check_number("select.top.by", "score", COLUMNS))
    settled = {}
    first = [row(f"old{n:02d}", score=n / 100) for n in range(100)]
    list(settle(looking_at(tmp_path, judged(first, top)), [100], top, Shards(), settled=settled)[0])
    rows = [row("low", score=0.74), row("edge", score=0.75), row("high", score=0.99), row("none", score=None)]
    found, _, _ = added(rows, top, tmp_path, settled=settled)
    assert {uid: entry["reason"] for uid, entry in found.items()} == {
        "low": "top", "edge": None, "high": None, "none": "top",
    }  # fmt: skip


@pytest.mark.parametrize("replacement", [False, True])
def test_later_pairs_are_drawn_at_the_rate_of_the_first_draw(tmp_path, replacement):
    weight = check_number("select.sample.weights", "width / 20.0", COLUMNS)
    drawn = choice(sample=Sample(weights="width / 20.0", count=500, replacement=replacement), weight=weight)
    settled = {}
    first = [row(f"old{n}") for n in range(1000)]
    list(settle(looking_at(tmp_path, judged(first, drawn)), [1000], drawn, Shards(), settled=settled)[0])
    rows = [row(f"new{n}", width=20 if n % 2 else 60) for n in range(2000)]
    found, _, splits = added(rows, drawn, tmp_path, settled=settled, shards=Shards())
    shares = [np.mean([found[f"new{n}"]["copies"] for n in range(m, 2000, 2)]) for m in (1, 0)]
    # without: 1 - 0.5 ** (weight), by the exponential keys; with: 0.5 and 1.5 copies
    assert shares == pytest.approx([0.5, 1.5] if replacement else [0.5, 1 - 0.5**3], abs=0.06)
    assert splits["train"] == sum(entry["copies"] for entry in found.values())
    # what is drawn does not hang on what else is new
    again, _, _ = added(rows[:100], drawn, tmp_path, settled=settled, shards=Shards())
    assert all(again[uid]["copies"] == found[uid]["copies"] for uid in again)


@pytest.mark.parametrize("replacement", [False, True])
def test_a_published_pair_beside_the_new_ones_is_not_drawn_again(tmp_path, replacement):
    weight = check_number("select.sample.weights", "width / 20.0", COLUMNS)
    asked = Sample(weights="width / 20.0", count=1, replacement=replacement)
    settled = {"sample": {"rate": 1.0} if replacement else {"key": -1e9}}
    found, counts, _ = added(
        [row("new1"), row("new2"), row("new3")], choice(("exact",), sample=asked, weight=weight), tmp_path,
        [("old", "train")], groups(("old", "new1")), settled,
    )  # fmt: skip
    assert {uid: entry["reason"] for uid, entry in found.items()} == {
        "new1": "duplicate: exact", "new2": None, "new3": None,
    }  # fmt: skip
    assert counts == {None: 2, "duplicate: exact": 1}
