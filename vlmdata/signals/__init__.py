"""What is measured, one file a family. A family gives columns for the rows of a part; `measure_part` runs them all.

A family's module has `VERSION`, `IMAGES` (whether it reads pixels; may be a function of the options),
`schemas(options)` (its tables), `identity(options)` (hashes of its model's files) and `measure(rows, images, options)`.
It may have `reads(options)` (other signals' tables whose vectors it is given, each as a column of the table's name),
`columns(options)` (other tables' columns, beside uid and caption, whose values go into its own),
`device(options)` (where its model runs) and `absolute(options)` (with paths that workers find).
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from vlmdata.catalog import beside
from vlmdata.errors import DataError
from vlmdata.recipe import FilterSignal, NearTargetSignal, Signal
from vlmdata.rules import Expression, passing
from vlmdata.schemas import conform
from vlmdata.signals.pictures import Pictures

# The images of so many rows, and of so many bytes, are in memory at once, whatever the part's size. One image alone may
# be larger.
CHUNK_ROWS = 1024
CHUNK_BYTES = 256_000_000


@dataclass(frozen=True)
class Measurement:
    """One signal of the recipe, ready to be measured: its options, tables and the rules that a row must pass before."""

    options: Signal
    schemas: dict[str, pa.Schema]
    after: dict[str, Expression]

    @property
    def needs(self) -> set[str]:
        """The columns that the rules and the user's own function read."""
        return {*columns(self.options), *(column for rule in self.after.values() for column in rule.columns)}


def family(kind: str) -> Any:
    """The module of a family of signals."""
    return importlib.import_module(f"vlmdata.signals.{kind}")


def images(options: Signal) -> bool:
    """Whether a signal reads pixels."""
    reads_pixels = family(options.kind).IMAGES
    return bool(reads_pixels(options) if callable(reads_pixels) else reads_pixels)


def reads(options: Signal) -> list[str]:
    """The tables of other signals whose vectors a signal is made from; most have none."""
    module = family(options.kind)
    return list(module.reads(options)) if hasattr(module, "reads") else []


def columns(options: Signal) -> list[str]:
    """The columns of other tables that the user's own function is made from; other families say it in their code."""
    module = family(options.kind)
    return list(module.columns(options)) if hasattr(module, "columns") else []


def device(options: Signal) -> str | None:
    """Where a signal's model runs in this process; None for signals whose values no device changes."""
    module = family(options.kind)
    return module.device(options) if hasattr(module, "device") else None


def trained(options: Signal) -> bool:
    """Whether a signal's model is trained on the dataset itself, before its parts are measured (see `pipelines`)."""
    return isinstance(options, FilterSignal | NearTargetSignal) and options.checkpoint is None


def measure_part(
    rows: pa.Table,
    read_image: Callable[[int, int], bytes],
    measurements: list[Measurement],
    measured: Mapping[str, pa.Table],
    reuse: Mapping[str, pa.Table],
) -> dict[str, pa.Table]:
    """All signals of one part, each distinct image decoded once.

    rows: the part's `pairs` and `images` columns, joined. read_image(offset, length): a stored image's bytes.
    measurements: the signals to measure, those that others read, by `after` rules or themselves, first. Those that read
    pixels run side by side over the rows that any of them wants, so that the batches of a model are full.
    measured: tables of this part that are there already (table -> rows in the part's order), which rules may read.
    reuse: values measured earlier for the same rows by the same model, null where they were not.
    Returns table -> rows in the part's order; null where `after` or a missing image left a row out.
    """
    done = dict(measured)
    for table in measured.values():
        rows = beside(rows, table)
    for together in _passes(measurements):
        chunks: dict[str, list[pa.Table]] = {}
        for start, size in _cut(rows, together, done, reuse):
            known = rows.slice(start, size)
            there = {name: table.slice(start, size) for name, table in done.items()}
            store = _Store(known, read_image)
            for measurement in together:
                before = {name: reuse[name].slice(start, size) for name in measurement.schemas if name in reuse}
                for name, table in _measure(known, there, store, measurement, before).items():
                    chunks.setdefault(name, []).append(table)
                    there[name] = table
                    known = beside(known, table)
        for name, tables in chunks.items():
            done[name] = pa.concat_tables(tables)
            rows = beside(rows, done[name])
    return {name: done[name] for measurement in measurements for name in measurement.schemas}


def first_measured(tables: list[pa.Table]) -> pa.Table:
    """Of several tables of one family and the same rows: each row from the first table that has a value for it."""
    rows = tables[0].num_rows
    place = np.full(rows, -1, np.int64)
    for number, table in enumerate(tables):
        # a family's values are all there or all null: its first column behind uid tells
        measured = table.column(1).is_valid().to_numpy()
        place = np.where((place < 0) & measured, number * rows + np.arange(rows), place)
    chosen = pa.concat_tables(tables).take(pa.array(place, mask=place < 0))
    return chosen.set_column(0, "uid", tables[0]["uid"])


def _passes(measurements: list[Measurement]) -> list[list[Measurement]]:
    """The measurements in an order in which each comes behind what it reads: those that read pixels in one list, so
    that they share the decoded images, with what stands between them; every other one alone."""
    owner = {column: name for m in measurements for name, schema in m.schemas.items() for column in schema.names[1:]}
    read = [{*reads(m.options), *(owner[c] for c in m.needs if c in owner)} for m in measurements]
    behind: set[str] = set()  # tables that wait for pixels
    for m, tables in zip(measurements, read, strict=True):
        if images(m.options) or tables & behind:
            behind |= set(m.schemas)
    needed: set[str] = set()  # tables that signals of the one list read
    together: list[Measurement] = []
    for m, tables in zip(measurements[::-1], read[::-1], strict=True):
        if images(m.options) or set(m.schemas) & behind & needed:
            together.insert(0, m)
            needed |= tables
    alone = [m for m in measurements if m not in together]
    first, last = ([[m] for m in alone if bool(set(m.schemas) & behind) == late] for late in (False, True))
    return [*first, *([together] if together else []), *last]


def _cut(
    rows: pa.Table, together: list[Measurement], there: Mapping[str, pa.Table], reuse: Mapping[str, pa.Table]
) -> Iterator[tuple[int, int]]:
    """(start, number of rows) of chunks in which at most CHUNK_ROWS are to be measured, as far as can be told before,
    and their decoded images are CHUNK_BYTES at most, or a single one."""
    todo = np.zeros(rows.num_rows, bool)
    for m in together:
        if set(reads(m.options)) <= set(there):  # else its rows are among those whose vectors are made here
            rules = {name: rule for name, rule in m.after.items() if set(rule.columns) <= set(rows.column_names)}
            todo |= _wanted(rows, there, m, rules) & ~_known(rows, m, reuse)
    pixels = pc.fill_null(pc.multiply(pc.cast(rows["width"], pa.int64()), rows["height"]), 0).to_numpy()
    count, total = np.cumsum(todo), np.cumsum(np.where(todo, 3 * pixels, 0))
    decoded = any(images(m.options) for m in together)
    start = 0
    while start < rows.num_rows:
        ends = [np.searchsorted(count, (count[start - 1] if start else 0) + CHUNK_ROWS, side="right")]
        if decoded:
            ends.append(np.searchsorted(total, (total[start - 1] if start else 0) + CHUNK_BYTES, side="right"))
        size = max(int(min(ends)) - start, 1)
        yield start, size
        start += size
    if not rows.num_rows:
        yield 0, 0


class _Store:
    """The decoded images of a chunk: each stored image once, and only when something asks for it."""

    def __init__(self, rows: pa.Table, read_image: Callable[[int, int], bytes]) -> None:
        self.offsets = rows["offset"].to_numpy(zero_copy_only=False)
        self.lengths = rows["length"].to_numpy(zero_copy_only=False)
        self.uids = rows["uid"]
        self.read_image = read_image
        self.decoded: dict[int, np.ndarray] = {}
        self.found: dict[tuple[str, int], tuple[np.ndarray, Any]] = {}

    def pictures(self, chosen: np.ndarray) -> Pictures:
        """The images of the rows at `chosen` (positions), each distinct one once."""
        offsets, first, of = np.unique(self.offsets[chosen], return_index=True, return_inverse=True)
        for offset, row in zip(offsets.astype(np.int64).tolist(), chosen[first].tolist(), strict=True):
            if offset not in self.decoded:
                content = self.read_image(offset, int(self.lengths[row]))
                try:
                    self.decoded[offset] = simplejpeg.decode_jpeg(content, "RGB")
                except ValueError as error:
                    uid = self.uids[row].as_py()
                    raise DataError(
                        f"pair {uid}: its stored image is damaged ({error}); try `vlmdata verify`"
                    ) from error
        return Pictures([self.decoded[int(offset)] for offset in offsets], of, self.found)


def _measure(
    rows: pa.Table,
    there: Mapping[str, pa.Table],
    store: _Store,
    measurement: Measurement,
    before: dict[str, pa.Table],
) -> dict[str, pa.Table]:
    """One signal for one chunk: the rows that qualify and have no value yet are measured, the others are null."""
    module = family(measurement.options.kind)
    wanted, known = _wanted(rows, there, measurement, measurement.after), _known(rows, measurement, before)
    todo = np.flatnonzero(wanted & ~known)
    fresh = {}
    if len(todo):
        for name in reads(measurement.options):
            rows = rows.append_column(name, pa.chunked_array(there[name].column(1)))
        pictures = store.pictures(todo) if images(measurement.options) else None
        fresh = module.measure(rows.take(pa.array(todo)), pictures, measurement.options)
    result = {}
    for name, schema in measurement.schemas.items():
        table = schema.empty_table()
        places = np.full(rows.num_rows, -1, np.int64)
        if name in fresh:
            table = pa.concat_tables([table, conform(fresh[name], schema)])
            places[todo] = np.arange(len(todo))
        if known.any():
            kept = np.flatnonzero(known & wanted)
            places[kept] = table.num_rows + np.arange(len(kept))
            table = pa.concat_tables([table, conform(before[name].take(pa.array(kept)), schema)])
        scattered = table.take(pa.array(places, mask=places < 0))
        result[name] = scattered.set_column(0, "uid", rows["uid"].combine_chunks())
    return result


def _wanted(
    rows: pa.Table, there: Mapping[str, pa.Table], measurement: Measurement, rules: Mapping[str, Expression]
) -> np.ndarray:
    """bool [n]: the rows that have what the signal reads and pass these rules."""
    wanted = rows["length"].is_valid().to_numpy() if images(measurement.options) else np.ones(rows.num_rows, bool)
    for name in reads(measurement.options):
        wanted = wanted & there[name].column(1).is_valid().to_numpy(zero_copy_only=False)
    if "url" in rows.column_names:  # only a tombstone has none
        wanted = wanted & rows["url"].is_valid().to_numpy()
    return wanted & passing(rows, rules)


def _known(rows: pa.Table, measurement: Measurement, before: Mapping[str, pa.Table]) -> np.ndarray:
    """bool [n]: the rows whose values were measured earlier."""
    if not all(name in before for name in measurement.schemas):
        return np.zeros(rows.num_rows, bool)
    # a family's values are all there or all null: its first column behind uid tells
    return before[next(iter(measurement.schemas))].column(1).is_valid().to_numpy()
