"""A survivor gets the captions of the pairs that it replaces, and only of those that passed everything before."""

import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_dataset import pair, picture, publish
from selection import looking_at
from test_select import COLUMNS, choice, duplicates, row

from vlmdata.recipe import Shards
from vlmdata.select import judge_part, settle, with_merged
from vlmdata.select.captions import MERGED


def merged(rows, captions, groups, methods, merging, tmp_path, near=None):
    """uid -> what it gets; captions: uid -> list, default [uid]."""
    chosen = replace(choice(methods), merging=frozenset(merging))
    judged = judge_part(pa.Table.from_pylist(rows, COLUMNS), chosen)
    if merging:
        own = pa.array([captions.get(uid, [uid]) for uid in judged["uid"].to_pylist()], pa.list_(pa.string()))
        judged = judged.append_column("captions", own)
    connection = looking_at(tmp_path, judged, groups, near)
    parts, _, _ = settle(connection, [len(rows)], chosen, Shards(), duplicates=True, near=list(near or {}))
    return {entry["uid"]: entry["merged"] for part in parts for entry in part.to_pylist() if entry["merged"]}


def test_the_survivor_gets_what_passed_in_the_survivors_order(tmp_path):
    rows = [row("a", width=30), row("b", width=20), row("c", width=25), row("d", score=0.1), row("e", status="4xx")]
    groups = duplicates(("exact", "abcde"))
    assert merged(rows, {}, groups, ("exact",), {"exact"}, tmp_path) == {"a": ["c", "b"]}
    assert merged(rows, {}, groups, ("exact",), set(), tmp_path) == {}


def test_no_caption_stands_there_twice(tmp_path):
    captions = {"a": ["one", "two"], "b": ["two", "three"], "c": ["three", "one", "four"]}
    rows = [row("a", width=30), row("b"), row("c")]
    got = merged(rows, captions, duplicates(("exact", "abc")), ("exact",), {"exact"}, tmp_path)
    assert got == {"a": ["three", "four"]}


def test_captions_go_on_with_the_survivor_that_is_replaced_itself(tmp_path):
    rows = [row("a", width=30), row("b", width=20), row("c", width=40)]
    groups = duplicates(("exact", "ab"), ("perceptual", "ac"))
    methods = ("exact", "perceptual")
    assert merged(rows, {}, groups, methods, set(methods), tmp_path) == {"c": ["b", "a"]}
    # where the later method does not merge, what the replaced pair had got is gone with it
    assert merged(rows, {}, groups, methods, {"exact"}, tmp_path) == {}
    assert merged(rows, {}, groups, methods, {"perceptual"}, tmp_path) == {"c": ["a"]}


def test_by_semdedups_rule_captions_go_to_the_earliest_kept_one_that_is_near(tmp_path):
    # a-b-c-d-e by pairs, and f as b; in the order a, d, b, c, e, f
    rows = [row(uid, width=90 - 10 * place) for place, uid in enumerate("adbcef")]
    pairs = [("b", "a", False), ("c", "b", False), ("d", "c", False), ("e", "d", False), ("f", "b", True)]
    uid, other, equal = zip(*pairs, strict=True)
    near = {"perceptual": pa.table({"uid": uid, "other": other, "equal": equal})}
    groups, about = duplicates(("perceptual", "abcdef")), (("perceptual",), {"perceptual"}, tmp_path)
    assert merged(rows, {}, groups, *about, near) == {"a": ["b", "f"], "d": ["c", "e"]}
    # in the order b, a, c, d, e: what is near to none that stays gives its captions to nobody
    rows = [row(uid, width=90 - 10 * place) for place, uid in enumerate("bacde")]
    assert merged(rows, {}, groups, *about, near) == {"b": ["a", "c"]}


def test_the_number_is_bounded(tmp_path):
    rows = [row("a", width=30), *(row(f"b{n:02}") for n in range(40))]
    members = [entry["uid"] for entry in rows]
    got = merged(rows, {}, duplicates(("exact", members)), ("exact",), {"exact"}, tmp_path)
    assert got == {"a": members[1 : 1 + MERGED]}


def test_a_group_found_by_decontamination_has_no_survivor(tmp_path):
    rows = [row("a", width=30), row("b"), row("c")]
    chosen = choice(("decontaminate", "exact"))
    groups = duplicates(("decontaminate", "ab"), ("exact", "bc"))
    judged = judge_part(pa.Table.from_pylist(rows, COLUMNS), chosen)
    parts, funnel, _ = settle(looking_at(tmp_path, judged, groups), [3], chosen, Shards(), duplicates=True)
    reasons = [entry["reason"] for part in parts for entry in part.to_pylist()]
    assert reasons == ["duplicate: decontaminate", "duplicate: decontaminate", None]
    assert [step["rejected"] for step in funnel if step["reason"] == "duplicate: decontaminate"] == [2]


@pytest.mark.parametrize("start", [0, 1])
def test_merged_captions_stand_behind_the_own_ones(start):
    kind = pa.list_(pa.string())
    own = pa.chunked_array([pa.array([["x"], ["a", "b"], ["c"], ["d"]], kind)]).slice(start)
    got = pa.chunked_array([pa.array([["y"], None, ["e", "f"], []], kind)]).slice(start)
    want = [["x", "y"], ["a", "b"], ["c", "e", "f"], ["d"]]
    assert with_merged(own, got).to_pylist() == want[start:]


def test_samples_and_shards_hold_them(tmp_path):
    made = [pair("first", picture(0), original_width=500), pair("second", picture(0)), pair("alone", picture(1))]
    changes = {
        "signals": [],
        "dedup": [{"kind": "exact", "merge": "captions"}],
        "select": {"rules": {}, "survivor": "original_width desc"},
        "shards": {},
        "jobs": [],
    }
    dataset, manifest = publish(tmp_path, made, changes)
    want = {"first": ["first", "second"], "alone": ["alone"], "second": ["second"]}
    samples = pa.concat_tables([dataset.read_part(part["path"]) for part in manifest["samples"]])
    assert dict(zip(samples["caption"].to_pylist(), samples["captions"].to_pylist(), strict=True)) == want
    for shard in manifest["shards"]:
        if shard["format"] == "webdataset":
            with tarfile.open(dataset.path(shard["path"])) as tar:
                found = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
            found = [sample["captions"] for sample in found]
        else:
            found = pq.read_table(dataset.path(shard["path"]))["captions"].to_pylist()
        assert sorted(found) == [["alone"], ["first", "second"]]
