"""Balancing: what matches, how often each entry draws, and that neither order nor cut of the rows changes anything."""

import math
from collections import Counter
from pathlib import Path

import made_wordnet
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dataset import RECIPE, pair, picture, publish

from vlmdata import snapshot
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError
from vlmdata.ingest import connect
from vlmdata.ordered import by_bucket
from vlmdata.parts import part_name
from vlmdata.pipelines import balance as stage
from vlmdata.plan import make_plan
from vlmdata.recipe import Balance, Recipe, Runner
from vlmdata.report import write_report
from vlmdata.select import balance, entries

WORDS = ["a", "black", "cat", "dog", "sat", "Straße", "niño", "猫"]


def uid(number):
    return f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}"


def matched(listed, captions):
    """{row: set of entries}, by the code that the stage runs."""
    found = balance.match(balance.automaton(listed), pa.array(captions)).to_pylist()
    assert len({(m["row"], m["entry"]) for m in found}) == len(found), "an entry counts once in a caption"
    return {
        row: {listed[m["entry"]] for m in found if m["row"] == row} for row in range(len(captions))
    }  # fmt: skip


def test_whole_words_match_and_neighbours_share_their_blank():
    listed = entries.tidy(["Black cat", "cat", "CAT!", "sat", "a", "don't", "é", "C++ "])
    assert listed == ["a", "black cat", "c", "cat", "don t", "sat", "é"]
    captions = ["A black cat sat, sat.", "concatenate", "Don’t", "e\u0301", "BLACK-CAT", "", "!!", "the c"]
    assert list(matched(listed, captions).values()) == [
        {"a", "black cat", "cat", "sat"}, set(), {"don t"}, {"é"}, {"black cat", "cat"}, set(), set(), {"c"},
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=8),
    st.lists(st.lists(st.sampled_from([*WORDS, "x", "..."]), max_size=9).map(" ".join), max_size=6),
)
def test_matches_are_those_of_a_plain_search(asked, captions):
    listed = entries.tidy(asked)
    found = matched(listed, captions)
    for row, caption in enumerate(captions):
        words = " ".join(word.lower() for word in caption.split() if word != "...")
        assert found[row] == {entry for entry in listed if f" {entry} " in f" {words} "}


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 200), st.integers(1, 30), st.integers(0, 5), st.data())
def test_draws_depend_on_seed_uid_and_entry_alone(rows, limit, seed, data):
    random = np.random.default_rng(rows)
    listed = entries.tidy(WORDS)
    captions = [" ".join(random.choice(listed, 3)) for _ in range(rows)]
    uids = [uid(n) for n in range(rows)]
    matches = balance.match(balance.automaton(listed), pa.array(captions))
    total = balance.count(matches, len(listed))
    chance = balance.probabilities(total, limit)

    def kept(order, listed=listed, chance=chance):
        found = balance.match(balance.automaton(listed), pa.array([captions[n] for n in order], pa.string()))
        drawn = balance.draw(found, balance.keys([uids[n] for n in order]), balance.keys(listed), chance, seed)
        return {n for n, keep in zip(order, balance.keep(found, drawn, len(order), "drop"), strict=True) if keep}

    whole = kept(range(rows))
    cut = data.draw(st.integers(0, rows))
    order = data.draw(st.permutations(range(rows)))
    assert kept(order) == whole
    assert kept(order[:cut]) | kept(order[cut:]) == whole
    turned = list(reversed(range(len(listed))))
    assert kept(range(rows), [listed[n] for n in turned], chance[turned]) == whole, "places in the list mean nothing"
    rare = {n for n in range(rows) if any(total[listed.index(word)] <= limit for word in captions[n].split())}
    assert rare <= whole, "an entry within the limit keeps all its pairs"


def test_an_entry_is_drawn_as_often_as_its_probability_says():
    rows, limit = 40_000, 5_000
    listed = ["common", "usual"]
    captions = ["common" if n % 4 else "common usual" for n in range(rows)]
    matches = balance.match(balance.automaton(listed), pa.array(captions))
    chance = balance.probabilities(np.array([rows, rows // 4]), limit)
    assert chance.tolist() == [0.125, 0.5]
    drawn = balance.draw(matches, balance.keys([uid(n) for n in range(rows)]), balance.keys(listed), chance, 0)
    other = balance.draw(matches, balance.keys([uid(n) for n in range(rows)]), balance.keys(listed), chance, 1)
    kept = balance.keep(matches, drawn, rows, "drop")

    def near(found, n, p):
        return abs(found - n * p) < 5 * math.sqrt(n * p * (1 - p))  # wrong once in two million times

    both = np.arange(rows) % 4 == 0
    entry = matches["entry"].to_numpy()
    assert near(drawn[entry == 0].sum(), rows, 0.125)
    assert near(drawn[entry == 1].sum(), rows / 4, 0.5)
    assert near(kept[~both].sum(), rows * 3 / 4, 0.125)
    assert near(kept[both].sum(), rows / 4, 1 - 0.875 * 0.5), "the two entries draw independently"
    assert near((drawn & other)[entry == 0].sum(), rows, 0.125**2), "another seed draws independently"


def test_unmatched_pairs_go_unless_the_recipe_keeps_them():
    matches = balance.match(balance.automaton(["cat"]), pa.array(["a cat", "a dog"]))
    drawn = np.ones(matches.num_rows, bool)
    assert balance.keep(matches, drawn, 2, "drop").tolist() == [True, False]
    assert balance.keep(matches, drawn, 2, "keep").tolist() == [True, True]


def test_the_pools_words_and_bigrams_are_those_of_a_plain_count(tmp_path):
    random = np.random.default_rng(0)
    words = [f"w{n}" for n in range(30)]
    captions = [" ".join(random.choice(words, random.integers(0, 9))) for _ in range(400)]
    captions += ["hot dog"] * 20 + ["hot w1", "w2 dog"]
    parts = [captions[:100], captions[100:], []]
    grams = pa.concat_tables([entries.count_grams(entries.normalise(pa.array(p, pa.string()))) for p in parts])
    single = Counter(word for caption in captions for word in caption.split())
    double = Counter(
        f"{x} {y}" for caption in captions for x, y in zip(caption.split(), caption.split()[1:], strict=False)
    )
    summed = Counter()
    for row in grams.to_pylist():
        summed[row["gram"]] += row["count"]
    assert summed == single + double
    options = Balance(kind="metaclip", entries=["unigrams", "bigrams"], min_count=10, min_pmi=3)
    dealt = by_bucket(grams, entries.bucket_of(grams, 3), 3)
    assert all(rows.num_rows for rows in dealt)
    added, totals = zip(*(entries.add_up(connect(tmp_path), rows.to_reader(), 10) for rows in dealt), strict=True)
    summed = {words: sum(total.get(words, 0) for total in totals) for words in (1, 2)}
    connection = connect(tmp_path)
    connection.register("grams", pa.concat_tables(added))
    found = entries.frequent(connection, summed, options)
    words, pairs = single.total(), double.total()
    told = {w for w, n in single.items() if n >= 10}
    for both, n in double.items():
        x, y = both.split()
        if n >= 10 and math.log2((n / pairs) / ((single[x] / words) * (single[y] / words))) >= 3:
            told.add(both)
    assert set(found) == told
    assert "hot dog" in told
    assert len(found) == len(set(found))


def test_a_list_that_holds_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt: No such file"):
        entries.identity(Balance(kind="metaclip", entries=str(tmp_path / "nowhere.txt")))
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="holds no entry"):
        entries.listed(Balance(kind="metaclip", entries=[str(tmp_path / "blank.txt")]))
    with pytest.raises(DataError, match="no word of the pool stands 100 times"):
        entries.united(Balance(kind="metaclip", entries=["unigrams"]), [])


def test_wordnets_names_are_entries(tmp_path):
    asked = Balance(kind="metaclip", entries="wordnet", wordnet=made_wordnet.write(tmp_path / "wordnet"))
    assert {"hot dog", "domestic dog", "adam", "galore"} <= set(entries.united(asked, ["Hot  DOG", "pool"]))
    before = entries.identity(asked)
    for path in [*(tmp_path / "wordnet").glob("index.*"), *(tmp_path / "wordnet").glob("*.exc")]:
        path.unlink()
    assert entries.identity(asked) == before, "data.* is all that is read"
    nouns = tmp_path / "wordnet" / "data.noun"
    nouns.write_text(nouns.read_text().replace("hot_dog", "hot_cat"))
    assert entries.identity(asked) != before
    assert "hot cat" in entries.united(asked, [])
    with pytest.raises(InputError, match="wordnet-base"):
        entries.identity(Balance(kind="metaclip", wordnet=str(tmp_path)))


def made(extra=()):
    """60 pairs about a house, of which six also name a rare thing; two duplicates; two that match no entry."""
    texts = [f"a house number {n}" + (" with a heron" if n % 10 == 0 else "") for n in range(60)]
    found = [pair(text, picture(n)) for n, text in enumerate(texts)]
    found += [pair("a house again", picture(0)), pair("a house once more", picture(0))]
    return [*found, pair("nothing of it", picture(90)), pair("qqq", picture(91)), *extra]


def recipe(select):
    return {"signals": ["text"], "dedup": ["exact"], "select": select}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run that balances by a file's entries, then draws 100 samples with replacement."""
    folder = tmp_path_factory.mktemp("balance")
    (folder / "entries.txt").write_text("House\nheron\nunicorn\n<b>number</b> 7\n")
    select = {
        "rules": {"chars": "chars > 3"},
        "balance": {"kind": "metaclip", "limit": 12, "entries": str(folder / "entries.txt")},
        "sample": {"count": 100, "replacement": True, "weights": "1 + chars"},
    }
    return publish(folder, made(), recipe(select), part_rows=40)


def rows_of(published):
    dataset, manifest = published
    return pa.concat_tables([dataset.read_part(part["path"]) for part in manifest["samples"]]).to_pylist()


def test_a_run_balances_after_duplicates_and_records_what_it_did(published):
    dataset, manifest = published
    assert [(step["reason"], step["left"]) for step in manifest["funnel"][:3]] == [
        (None, 64), ("chars", 63), ("duplicate: exact", 61)
    ]  # fmt: skip
    assert [step["reason"] for step in manifest["funnel"][3:]] == ["balance", "sample"]
    rows = rows_of(published)
    kept = [row["caption"] for row in rows if row["reason"] in (None, "sample")]
    assert manifest["funnel"][3] == {"reason": "balance", "rejected": 61 - len(kept), "left": len(kept)}
    came = [row["caption"] for row in rows if row["reason"] in (None, "sample", "balance")]
    herons = sum("heron" in caption for caption in came)
    assert sum("heron" in caption for caption in kept) == herons, "a rare entry keeps all its pairs"
    assert 6 < len(kept) < 40
    assert next(row["reason"] for row in rows if row["caption"] == "nothing of it") == "balance"
    recorded = manifest["balance"]
    with dataset.open(recorded["path"]) as file:
        table = {row["entry"]: row for row in pq.read_table(file).to_pylist()}
    assert table["house"] == {"entry": "house", "matches": 60, "kept": len(kept), "probability": 12 / 60}
    assert table["unicorn"] == {"entry": "unicorn", "matches": 0, "kept": 0, "probability": 1.0}
    assert table["heron"]["kept"] == table["heron"]["matches"] == herons
    mass = recorded["mass"]
    assert (mass["head_entries"], mass["head_before"], mass["head_after"]) == (1, 60, len(kept))
    assert (mass["tail_before"], mass["tail_after"]) == (herons, herons)
    assert (mass["pairs"], mass["unmatched"], mass["kept"]) == (61, 1, len(kept))
    assert mass["largest"][0] == {"entry": "house", "matches": 60, "kept": len(kept)}
    assert not dataset.exists("tables/matches")


def test_every_copy_is_in_the_shards_under_a_name_of_its_own(published):
    dataset, manifest = published
    rows = {row["uid"]: row for row in rows_of(published)}
    assert sum(row["copies"] for row in rows.values()) == sum(manifest["splits"].values()) == 100
    assert max(row["copies"] for row in rows.values()) > 1
    wanted, names, order = Counter({uid: row["copies"] for uid, row in rows.items() if row["copies"]}), [], {}
    for shard in manifest["shards"]:
        name = shard["path"].rsplit("/", 1)[1].rsplit(".", 1)[0]
        if shard["format"] == "webdataset":
            read = webdataset.WebDataset(dataset.path(shard["path"]), shardshuffle=False, empty_check=False)
            keys = [sample["__key__"] for sample in read if sample["jpg"]]
            names += keys
            order |= {(name, place): key for place, key in enumerate(keys)}
            assert len(keys) == shard["rows"]
        else:
            with dataset.open(shard["path"]) as file:
                uids = pq.read_table(file)["uid"].to_pylist()
            assert uids == [order[name, place].partition("_")[0] for place in range(shard["rows"])]
    assert len(names) == len(set(names)) == 100
    assert Counter(name.partition("_")[0] for name in names) == wanted
    for uid, row in rows.items():
        if row["kept"]:
            places = [(row["shard"], row["index"])]
            places += [(s, int(n)) for s, n in (p.split(":") for p in (row["further_copies"] or "").split())]
            assert [order[place] for place in places] == [uid, *(f"{uid}_{n}" for n in range(2, row["copies"] + 1))]
        else:
            assert (row["copies"], row["further_copies"]) == (0, None)


def test_card_croissant_and_report_count_pairs_and_samples(published, tmp_path):
    dataset, manifest = published
    pairs = manifest["funnel"][-1]["left"]
    card = dataset.read_bytes("snapshots/000001/README.md").decode()
    assert f"{pairs} image-text pairs in 100 samples" in card
    assert "- 100 samples drawn with replacement, by weight: `1 + chars`" in card
    described = dataset.read_json("snapshots/000001/croissant.json")
    assert "key" not in described["recordSet"][0], "a uid stands in the shards more than once"
    told = [shard["rows"] for shard in manifest["shards"] if shard["format"] == "parquet"]
    assert sum(told) == 100
    page = Path(write_report(dataset, manifest)).read_text()
    assert "The head has 91" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "<b>number" not in page
    assert "1 pair matched no entry" in " ".join(page.split())


def test_a_changed_list_of_entries_is_seen(published):
    dataset, manifest = published
    assert list(snapshot.verify(dataset)) == []
    content = dataset.read_bytes(manifest["balance"]["path"])
    dataset.write_bytes(manifest["balance"]["path"], b"something else")
    try:
        assert [difference[0] for difference in snapshot.verify(dataset)] == [manifest["balance"]["path"]]
    finally:
        dataset.write_bytes(manifest["balance"]["path"], content)


def test_neither_parts_nor_workers_change_the_outcome(tmp_path):
    texts = [
        ("gone " if n % 9 == 4 else "") + f"a house number {n % 7}" + (" with a heron" if n % 10 == 0 else "")
        for n in range(60)
    ]
    options = Balance(kind="metaclip", limit=12, entries=["unigrams", "bigrams"], min_count=5, min_pmi=1)
    uids = [uid(n) for n in range(60)]
    outcomes = []
    for rows, workers in ((60, 1), (17, 2)):
        dataset = Dataset(str(tmp_path / str(rows)))
        elements = []
        for number, start in enumerate(range(0, 60, rows)):
            table = pa.table({"uid": uids[start : start + rows], "caption": texts[start : start + rows]})
            left = pa.array([n % 9 != 4 for n in range(start, start + table.num_rows)])
            elements.append((dataset.write_part("pairs", "k", part_name(number), table, {}), None, left))
        kept, recorded = stage.run(dataset, options, "k", elements, 1, Runner(workers=workers))
        outcomes.append((pa.concat_arrays(kept).to_pylist(), recorded))
    assert outcomes[0] == outcomes[1]
    kept, recorded = outcomes[0]
    assert not any(kept[n] for n in range(60) if n % 9 == 4)
    listed = dataset.read_part(recorded["path"])["entry"].to_pylist()
    assert {"house", "heron", "a heron"} <= set(listed)
    assert "gone" not in listed, "pairs that are rejected already bring no entries"
    assert recorded["mass"]["pairs"] == 53


def test_the_lists_content_is_part_of_the_key(tmp_path):
    (tmp_path / "entries.txt").write_text("house\n")
    (tmp_path / "list.csv").write_text("url,caption\nhttp://example.org/a.jpg,a\n")
    asked = {"balance": {"kind": "metaclip", "entries": [str(tmp_path / "entries.txt")]}}
    data = {
        **RECIPE,
        "dataset": "d",
        "select": asked,
        "sources": [{"kind": "table", "path": str(tmp_path / "list.csv")}],
    }
    first = make_plan(Recipe.model_validate(data)).select
    assert make_plan(Recipe.model_validate(data)).select == first
    (tmp_path / "entries.txt").write_text("horse\n")
    assert make_plan(Recipe.model_validate(data)).select != first
