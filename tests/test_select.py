"""Every pair ends with one verdict, and the first thing that rejects it is its reason."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import looking_at

from vlmdata.recipe import Shards
from vlmdata.rules import check_order, check_rule
from vlmdata.schemas import table_schema
from vlmdata.select import Choice, denials, judge_part, settle

COLUMNS = pa.schema(
    [("uid", pa.string()), ("caption", pa.string()), ("download_status", pa.string()), ("sha256", pa.string()),
     ("width", pa.int32()), ("clip_score", pa.float32())]
)  # fmt: skip


def choice(methods=()):
    rules = {"wide": "width >= 10", "aligned": "clip_score >= 0.5"}
    return Choice(
        {name: check_rule(name, text, COLUMNS) for name, text in rules.items()},
        frozenset({"clip_score"}),
        methods,
        tuple(check_order("select.survivor", "width desc", COLUMNS)),
    )


def row(uid, status="success", width=20, score=0.9):
    return {
        "uid": uid,
        "caption": uid,
        "download_status": status,
        "sha256": uid * 8,
        "width": width,
        "clip_score": score,
    }


def duplicates(*groups):
    rows = [
        {"uid": uid, "dup_method": method, "dup_group": min(members), "similarity": 1.0}
        for method, members in groups
        for uid in members
    ]
    return pa.Table.from_pylist(rows, table_schema("duplicates"))


def verdicts(rows, chosen, groups=None, shards=None, cut=None, tmp=None):
    table = pa.Table.from_pylist(rows, COLUMNS)
    judged = judge_part(table, chosen)
    sizes = cut or [len(rows)]
    looked_at = looking_at(tmp, judged, groups)
    parts, funnel, splits = settle(looked_at, sizes, chosen, shards or Shards(), duplicates=groups is not None)
    parts = list(parts)
    assert [part.num_rows for part in parts] == sizes
    return {entry["uid"]: entry for part in parts for entry in part.to_pylist()}, funnel, splits


def test_reasons_come_in_their_order(tmp_path):
    rows = [
        row("a"),
        row("b", status="robots", width=1),
        row("c", status="4xx", width=1),
        row("d", width=1, score=None),
        row("e", score=None),
        row("f", score=0.1),
        row("g", width=None),
    ]
    found, funnel, _ = verdicts(rows, choice(), tmp=tmp_path)
    assert {uid: entry["reason"] for uid, entry in found.items()} == {
        "a": None,
        "b": "consent: robots",
        "c": "download: 4xx",
        "d": "wide",
        "e": "aligned: not measured",
        "f": "aligned",
        "g": "wide",
    }
    assert funnel[0] == {"reason": None, "rejected": 0, "left": 7}
    assert [(step["reason"], step["rejected"]) for step in funnel[1:]] == [
        ("consent: robots", 1), ("download: 4xx", 1), ("wide", 2), ("aligned: not measured", 1), ("aligned", 1),
    ]  # fmt: skip
    assert funnel[-1]["left"] == 1


def said(*words):
    """A consent column: for each row the words that said no; None where nothing was asked."""
    kind = table_schema("images").field("consent").type
    return pa.chunked_array([[None if w is None else dict.fromkeys(w, "deny") | {"tdm": "allow"} for w in words]], kind)


def test_what_was_said_is_held_against_what_is_respected_today():
    page = said((), ("noml",), None, ("noai", "noml"), ("noml",), ())
    host = said((), (), ("robots",), None, ("noai",), ("noai", "noml"))
    heard = [denials(page, host, respect).to_pylist() for respect in ([], ["noml"], ["noml", "robots", "noai", "tdm"])]
    assert heard == [
        [None] * 6,
        [None, "noml", None, "noml", "noml", "noml"],
        [None, "noml", "robots", "noai", "noml", "noai"],  # the page comes first: then nobody would have been asked
    ]


def test_a_word_comes_before_lists_and_failures_and_never_lifts_a_refusal(tmp_path):
    statuses = ["success", "4xx", "noai", "success", "optout", "dns"]
    rows = [row(f"{place:02d}", status) for place, status in enumerate(statuses)]
    table = pa.Table.from_pylist(rows, COLUMNS).append_column("known", pa.array([None, None, True, True, False, None]))
    denied = pa.chunked_array([["noml", "robots", "noml"], ["noml", "tdm", None]])
    listed = np.array([False, True, True, False, False, True])
    judged = judge_part(table, choice(), listed, denied)
    assert judged["reason"].to_pylist() == [
        f"consent: {w}" for w in ("noml", "robots", "noai", "noml", "optout", "optout")
    ]
    _, funnel, _ = settle(looking_at(tmp_path, judged), [6], choice(), Shards())
    assert [step["reason"] for step in funnel if step["rejected"]] == [
        "consent: robots", "consent: noai", "consent: noml", "consent: optout",
    ]  # fmt: skip
    assert judge_part(table, choice())["reason"].to_pylist()[:2] == [None, "download: 4xx"]


def test_the_survivor_is_chosen_among_those_that_pass(tmp_path):
    rows = [row("a", width=99, score=0.1), row("b", width=30), row("c", width=40), row("d", width=40)]
    found, _, _ = verdicts(rows, choice(("exact",)), duplicates(("exact", "abcd")), tmp=tmp_path)
    assert [uid for uid, entry in found.items() if entry["kept"]] == ["c"]  # ties by uid
    assert found["a"]["reason"] == "aligned"
    assert found["b"]["reason"] == found["d"]["reason"] == "duplicate: exact"


def test_a_later_method_chooses_among_the_survivors_of_an_earlier_one(tmp_path):
    rows = [row("a", width=50), row("b", width=60), row("c", width=40)]
    groups = duplicates(("exact", "ab"), ("perceptual", "ac"))
    found, funnel, _ = verdicts(rows, choice(("exact", "perceptual")), groups, tmp=tmp_path)
    # a loses to b; c is then alone in its group and stays
    assert found["a"]["reason"] == "duplicate: exact"
    assert found["b"]["kept"]
    assert found["c"]["kept"]
    assert funnel[-1] == {"reason": "duplicate: perceptual", "rejected": 0, "left": 2}


def test_places_do_not_depend_on_how_the_rows_are_cut(tmp_path):
    rows = [row(f"{number:02d}") for number in range(40)]
    shards = Shards(samples=8, splits={"train": 0.7, "test": 0.3})
    whole, _, splits = verdicts(rows, choice(), shards=shards, tmp=tmp_path)
    cut, _, _ = verdicts(rows, choice(), shards=shards, cut=[13, 13, 14], tmp=tmp_path)
    assert whole == cut
    assert sum(splits.values()) == 40
    assert all(splits.values())
    for split, count in splits.items():
        places = sorted((e["shard"], e["index"]) for e in whole.values() if e["split"] == split)
        assert places == [(f"{split}-{rank // 8:07d}", rank % 8) for rank in range(count)]
    other, _, _ = verdicts(rows, choice(), shards=Shards(samples=8, seed=1), tmp=tmp_path)
    assert [e["index"] for e in other.values()] != [e["index"] for e in whole.values()]


def test_one_image_is_never_in_two_splits(tmp_path):
    rows = [{**row(f"{number:02d}"), "sha256": f"{number % 5}" * 64} for number in range(40)]
    found, _, _ = verdicts(rows, choice(), shards=Shards(splits={"train": 0.5, "test": 0.5}), tmp=tmp_path)
    for image in range(5):
        assert len({found[f"{number:02d}"]["split"] for number in range(40) if number % 5 == image}) == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["success", "success", "success", "robots", "dns", "decode"]),
            st.one_of(st.none(), st.integers(0, 20)),
            st.one_of(st.none(), st.just(float("nan")), st.floats(0, 1, width=32)),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_every_pair_has_exactly_one_verdict(tmp_path_factory, drawn):
    rows = [row(f"{n:02d}", status, width, score) for n, (status, width, score, _) in enumerate(drawn)]
    members = {}
    for n, (*_, group) in enumerate(drawn):
        members.setdefault(group, []).append(f"{n:02d}")
    groups = duplicates(*[("exact", uids) for uids in members.values() if len(uids) > 1])
    tmp = tmp_path_factory.mktemp("spill")
    found, funnel, splits = verdicts(rows, choice(("exact",)), groups, tmp=tmp)
    assert len(found) == len(rows)
    kept = [uid for uid, entry in found.items() if entry["kept"]]
    assert all((entry["reason"] is None) == entry["kept"] == (entry["shard"] is not None) for entry in found.values())
    assert funnel[-1]["left"] == len(kept) == sum(splits.values())
    assert sum(step["rejected"] for step in funnel) + len(kept) == len(rows)
    for uids in members.values():
        passed = [uid for uid in uids if found[uid]["kept"] or found[uid]["reason"] == "duplicate: exact"]
        if len(uids) > 1:
            assert sum(found[uid]["kept"] for uid in passed) == (1 if passed else 0)


@pytest.mark.parametrize("hostile", ["'; drop table verdict; --", "\0", "💥" * 1000])
def test_captions_are_data(tmp_path, hostile):
    rows = [{**row("a"), "caption": hostile}]
    found, _, _ = verdicts(rows, choice(), tmp=tmp_path)
    assert found["a"]["kept"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1, width=32)), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_tighter_rule_never_keeps_more_before_duplicates(scores, one, other):
    rows = pa.Table.from_pylist([row(f"{n:02d}", score=score) for n, score in enumerate(scores)], COLUMNS)
    passed = []
    for threshold in sorted([one, other]):
        rules = {"aligned": check_rule("aligned", f"clip_score >= {threshold!r}", COLUMNS)}
        judged = judge_part(rows, Choice(rules, frozenset(), (), ()))
        passed.append(set(judged.filter(judged["reason"].is_null())["uid"].to_pylist()))
    assert passed[1] <= passed[0]
