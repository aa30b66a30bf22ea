"""Balancing's passes over the parts: frequent words are counted, captions matched, matches counted, pairs drawn."""

from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from vlmdata import layers
from vlmdata.dataset import Dataset, File, Part, part_from, part_name, snapshot_folder, write_parquet
from vlmdata.ingest import connect
from vlmdata.pipelines.runner import run_parts
from vlmdata.recipe import Balance, Runner
from vlmdata.select import balance, entries
from vlmdata.signals.models import loaded_once

# A part of `pairs`, which of its rows are in force where not all are, and which of those in force are left.
_Element = tuple[Part, pa.BooleanArray | None, pa.BooleanArray]
# Work of this stage, removed when it has ended; `balance` is the list of entries.
_WORK = ("grams", "balance", "matches", "matched", "drawn", "balanced")


def _left(dataset: Dataset, element: _Element, column: str) -> pa.ChunkedArray:
    """A column of the rows that are left."""
    part, in_force, left = element
    return layers.read_in_force(dataset, part, [column], in_force)[column].filter(left)


@dataclass(frozen=True)
class _Grams:
    dataset: str
    key: str

    def __call__(self, element: _Element) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        grams = entries.count_grams(entries.normalise(_left(dataset, element, "caption")))
        return asdict(dataset.write_part("grams", self.key, element[0].name, grams, {}))


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

    def __call__(self, element: _Element) -> list[dict[str, Any]]:
        dataset = Dataset(self.dataset)
        found_by = _automaton(self.dataset, self.entries.path, self.entries.sha256)
        matches = balance.match(found_by, _left(dataset, element, "caption"))
        name = element[0].name
        written = [("matches", matches), ("matched", balance.count(matches))]
        return [asdict(dataset.write_part(table, self.key, name, rows, {})) for table, rows in written]


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
        after = balance.count(matches.filter(pa.array(kept[matches["row"].to_numpy()])))
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
        connection = connect(spill)
        earlier = dataset.read_part(recorded["path"]) if recorded else None
        if earlier is None:
            listed = entries.united(options, _pool(dataset, options, key, elements, connection, runner))
        else:
            listed = earlier["entry"].to_pylist()
        work = dataset.write_part("balance", key, part_name(0), pa.table({"entry": listed}), {})
        results = run_parts(dataset, "match", _Match(dataset.absolute, key, work), elements, runner)
        matches, matched = ([part_from(result[place]) for result in results] for place in (0, 1))
        before = balance.merge(connection, dataset.scan(matched, balance.COUNTS), len(listed))
        probability = balance.probabilities(before, options.limit)
        if earlier is not None:
            probability = earlier["probability"].to_numpy()
        chances = balance.table(listed, before, np.zeros_like(before), probability)
        work = dataset.write_part("balance", key, part_name(1), chances, {})
        draw = _Draw(dataset.absolute, key, work, options)
        outcomes = run_parts(dataset, "balance", draw, list(zip(elements, matches, strict=True)), runner)
        drawn = [part_from(outcome["drawn"]) for outcome in outcomes]
        after = balance.merge(connection, dataset.scan(drawn, balance.COUNTS), len(listed))
        connection.close()
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
        dataset.remove(f"tables/{name}")
    return kept, {**asdict(file), "mass": asdict(mass)}


def _pool(
    dataset: Dataset,
    options: Balance,
    key: str,
    elements: list[_Element],
    connection: duckdb.DuckDBPyConnection,
    runner: Runner,
) -> list[str]:
    """The pool's own frequent words and bigrams, where the recipe asks for them."""
    if not {"unigrams", "bigrams"} & set(options.entries):
        return []
    counted = run_parts(dataset, "words", _Grams(dataset.absolute, key), elements, runner)
    return entries.frequent(connection, dataset.scan([part_from(result) for result in counted], entries.GRAMS), options)


def _spread(left: pa.BooleanArray, kept: pa.ChunkedArray) -> pa.BooleanArray:
    """bool [rows in force]: `kept` at the places that `left` names, False elsewhere."""
    spread = np.zeros(len(left), bool)
    spread[np.flatnonzero(left.to_numpy(zero_copy_only=False))] = kept.to_numpy()
    return pa.array(spread)
