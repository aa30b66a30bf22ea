"""Balancing's passes over the parts: frequent words are counted, captions matched, matches counted, pairs drawn."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import layers
from vlmdata.catalog import view_files
from vlmdata.dataset import Dataset
from vlmdata.ingest import connect
from vlmdata.parts import File, Part, part_from, part_name, snapshot_folder, write_parquet
from vlmdata.pipelines import scattered
from vlmdata.pipelines.runner import combine, run_parts, shuffle
from vlmdata.recipe import Balance, Runner
from vlmdata.select import balance, entries
from vlmdata.signals.models import loaded_once

# A part of `pairs`, which of its rows are in force where not all are, and which of those in force are left.
_Element = tuple[Part, pa.BooleanArray | None, pa.BooleanArray]
# Work of this stage, removed when it has ended; `balance` is the list of entries.
_GRAMS = "work_words"
_WORK = (_GRAMS, *(f"tables/{name}" for name in ("frequent", "balance", "matches", "drawn", "balanced")))
_BUCKET = 1_000_000  # captions whose words and bigrams are added up at once, about


def _left(dataset: Dataset, element: _Element, column: str) -> pa.ChunkedArray:
    """A column of the rows that are left."""
    part, in_force, left = element
    return layers.read_in_force(dataset, part, [column], in_force)[column].filter(left)


@dataclass(frozen=True)
class _Grams:
    """A part's words and bigrams, in a file by bucket; the buckets that have some, and the file."""

    dataset: str
    buckets: int

    def __call__(self, element: _Element) -> list[tuple[int, str]]:
        dataset = Dataset(self.dataset)
        grams = entries.count_grams(entries.normalise(_left(dataset, element, "caption")))
        path = f"{_GRAMS}/{element[0].name}.arrow"
        return scattered.send(dataset, path, grams, entries.bucket_of(grams, self.buckets), self.buckets)


@dataclass(frozen=True)
class _AddUp:
    """A bucket's frequent words and bigrams, and how many there were."""

    dataset: str
    key: str
    least: int

    def __call__(self, element: tuple[int, list[str]]) -> dict[str, Any]:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        tables = (scattered.read(dataset, path, bucket) for path in paths)
        grams = pa.RecordBatchReader.from_batches(
            entries.GRAMS, (batch for table in tables for batch in table.to_batches())
        )
        with dataset.spool() as spill, connect(spill) as connection:
            frequent, totals = entries.add_up(connection, grams, self.least)
        part = dataset.write_part("frequent", self.key, f"{bucket:07d}", frequent, {})
        return {"part": asdict(part), "totals": [totals.get(words, 0) for words in (1, 2)]}


@loaded_once
def _automaton(dataset: str, path: str, sha256: str) -> Any:
    """sha256: of the list, so that another run's list at the same path is another one."""
    return balance.automaton(Dataset(dataset).read_part(path, ["entry"])["entry"].to_pylist())


@loaded_once
def _chances(dataset: str, path: str, sha256: str) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [entries], float64 [entries]: the entries' keys and probabilities."""
    rows = Dataset(dataset).read_part(path, ["entry", "probability"])
    return balance.keys(rows["entry"].to_pylist()), rows["probability"].to_numpy()


@dataclass(frozen=True)
class _Match:
    dataset: str
    key: str
    entries: Part

    def __call__(self, element: _Element) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        found_by = _automaton(self.dataset, self.entries.path, self.entries.sha256)
        matches = balance.match(found_by, _left(dataset, element, "caption"))
        return asdict(dataset.write_part("matches", self.key, element[0].name, matches, {}))


@dataclass(frozen=True)
class _Count:
    """How many matches of a part each entry has."""

    dataset: str
    entries: int

    def __call__(self, part: Part) -> np.ndarray:
        return balance.count(Dataset(self.dataset).read_part(part), self.entries)


@dataclass(frozen=True)
class _Draw:
    dataset: str
    key: str
    entries: Part
    options: Balance

    def __call__(self, element: tuple[_Element, Part]) -> dict[str, Any]:
        pairs, matched = element
        dataset = Dataset(self.dataset)
        uids = _left(dataset, pairs, "uid").to_pylist()
        matches = dataset.read_part(matched)
        keys, probability = _chances(self.dataset, self.entries.path, self.entries.sha256)
        drawn = balance.draw(matches, balance.keys(uids), keys, probability, self.options.seed)
        kept = balance.keep(matches, drawn, len(uids), self.options.unmatched)
        after = matches.filter(pa.array(kept[matches["row"].to_numpy()]))
        name = matched.name
        return {
            "drawn": asdict(dataset.write_part("drawn", self.key, name, after, {})),
            "balanced": asdict(dataset.write_part("balanced", self.key, name, pa.table({"kept": kept}), {})),
            "unmatched": int((~balance.matched_rows(matches, len(uids))).sum()),
            "kept": int(kept.sum()),
        }


def run(
    dataset: Dataset,
    options: Balance,
    key: str,
    elements: list[_Element],
    number: int,
    runner: Runner,
    recorded: dict[str, Any] | None = None,
) -> tuple[list[pa.BooleanArray], dict[str, Any]]:
    """Balance the pairs that are left for snapshot `number`.

    recorded: what an earlier snapshot's manifest records, for pairs that come later: its entries and probabilities are
    taken, and its counts go on.

    Returns for each element which of its rows in force are kept (bool, False where none is left), and what the manifest
    records: the file with every entry's matches and probability, and the masses of head and tail.
    """
    with dataset.spool() as spill:
        earlier = dataset.read_part(recorded["path"]) if recorded else None
        if earlier is None:
            listed = entries.united(options, _pool(dataset, options, key, elements, spill, runner))
        else:
            listed = earlier["entry"].to_pylist()
        work = dataset.write_part("balance", key, part_name(0), pa.table({"entry": listed}), {})
        results = run_parts(dataset, "match", _Match(dataset.absolute, key, work), elements, runner)
        matches = [part_from(result) for result in results]
        count = _Count(dataset.absolute, len(listed))
        before = combine(dataset, "matches", count, matches, runner)
        probability = balance.probabilities(before, options.limit)
        if earlier is not None:
            probability = earlier["probability"].to_numpy()
        chances = balance.table(listed, before, np.zeros_like(before), probability)
        work = dataset.write_part("balance", key, part_name(1), chances, {})
        draw = _Draw(dataset.absolute, key, work, options)
        outcomes = run_parts(dataset, "balance", draw, list(zip(elements, matches, strict=True)), runner)
        drawn = [part_from(outcome["drawn"]) for outcome in outcomes]
        after = combine(dataset, "drawn", count, drawn, runner)
        if earlier is not None:
            before, after = before + earlier["matches"].to_numpy(), after + earlier["kept"].to_numpy()
        aside = spill / "balance.parquet"
        write_parquet(balance.table(listed, before, after, probability), aside)
        file: File = dataset.commit(aside, f"{snapshot_folder(number)}/balance.parquet")
    kept = [
        _spread(left, dataset.read_part(part_from(outcome["balanced"]))["kept"])
        for (_, _, left), outcome in zip(elements, outcomes, strict=True)
    ]
    came = sum(left.true_count for _, _, left in elements)
    unmatched, stayed = (sum(outcome[name] for outcome in outcomes) for name in ("unmatched", "kept"))
    if recorded:
        came, unmatched, stayed = (
            count + recorded["mass"][name]
            for count, name in ((came, "pairs"), (unmatched, "unmatched"), (stayed, "kept"))
        )
    mass = balance.mass(listed, before, after, options.limit, came, unmatched, stayed)
    for name in _WORK:
        dataset.remove(name)
    return kept, {**asdict(file), "mass": asdict(mass)}


def _pool(
    dataset: Dataset, options: Balance, key: str, elements: list[_Element], spill: Path, runner: Runner
) -> list[str]:
    """The pool's own frequent words and bigrams, where the recipe asks for them."""
    if not {"unigrams", "bigrams"} & set(options.entries):
        return []
    grams = _Grams(dataset.absolute, max(1, sum(left.true_count for _, _, left in elements) // _BUCKET))
    add_up = _AddUp(dataset.absolute, key, options.min_count)
    counted = shuffle(dataset, "words", grams, add_up, elements, runner)
    totals = np.sum([outcome["totals"] for outcome in counted] or [[0, 0]], axis=0).tolist()
    with connect(spill) as connection:
        view_files(connection, dataset, "grams", [part_from(outcome["part"]) for outcome in counted], entries.GRAMS)
        return entries.frequent(connection, {1: totals[0], 2: totals[1]}, options)


def _spread(left: pa.BooleanArray, kept: pa.ChunkedArray) -> pa.BooleanArray:
    """bool [rows in force]: `kept` at the places that `left` names, False elsewhere."""
    spread = np.zeros(len(left), bool)
    spread[np.flatnonzero(left.to_numpy(zero_copy_only=False))] = kept.to_numpy()
    return pa.array(spread)
