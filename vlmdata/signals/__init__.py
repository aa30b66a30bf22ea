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

from vlmdata.errors import DataError
from vlmdata.recipe import Signal
from vlmdata.rules import Expression, evaluate
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
    return options.kind == "filter" and options.checkpoint is None


def measure_part(
    rows: pa.Table,
    read_image: Callable[[int, int], bytes],
    measurements: list[Measurement],
    measured: Mapping[str, pa.Table],
    reuse: Mapping[str, pa.Table],
) -> dict[str, pa.Table]:
    """All signals of one part, each distinct image decoded once.

    rows: the part's `pairs` and `images` columns, joined. read_image(offset, length): a stored image's bytes.
    measurements: the signals to measure, those that others read, by `after` rules or themselves, first.
    measured: tables of this part that are there already (table -> rows in the part's order), which rules may read.
    reuse: values measured earlier for the same rows by the same model, null where they were not.
    Returns table -> rows in the part's order; null where `after` or a missing image left a row out.
    """
    chunks: dict[str, list[pa.Table]] = {}
    for start, size in _cut(rows):
        known = rows.slice(start, size)
        there = {name: table.slice(start, size) for name, table in measured.items()}
        for table in there.values():
            known = _join(known, table)
        store = _Store(known, read_image)
        for measurement in measurements:
            before = {name: reuse[name].slice(start, size) for name in measurement.schemas if name in reuse}
            for name, table in _measure(known, there, store, measurement, before).items():
                chunks.setdefault(name, []).append(table)
                there[name] = table
                known = _join(known, table)
    return {name: pa.concat_tables(tables) for name, tables in chunks.items()}


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


def _cut(rows: pa.Table) -> Iterator[tuple[int, int]]:
    """(start, number of rows) of chunks whose decoded images are CHUNK_BYTES at most, or a single one."""
    pixels = pc.multiply(pc.cast(rows["width"], pa.int64()), rows["height"])
    total = np.cumsum(3 * pc.fill_null(pixels, 0).to_numpy())
    start = 0
    while start < rows.num_rows:
        before = total[start - 1] if start else 0
        fits = int(np.searchsorted(total, before + CHUNK_BYTES, side="right")) - start
        size = min(max(fits, 1), CHUNK_ROWS, rows.num_rows - start)
        yield start, size
        start += size
    if not rows.num_rows:
        yield 0, 0


class _Store:
    """The decoded images of a chunk: each stored image once, and only when something asks for it."""

    def __init__(self, rows: pa.Table, read_image: Callable[[int, int], bytes]) -> None:
        self.has_image = rows["length"].is_valid().to_numpy()
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
    module, pixels = family(measurement.options.kind), images(measurement.options)
    wanted = store.has_image.copy() if pixels else np.ones(rows.num_rows, bool)
    for name in reads(measurement.options):
        vectors = pa.chunked_array(there[name].column(1))
        wanted &= vectors.is_valid().to_numpy()
        rows = rows.append_column(name, vectors)
    if measurement.after:
        passed = evaluate(rows, measurement.after)
        for name in measurement.after:
            wanted &= pc.fill_null(passed[name], False).to_numpy(zero_copy_only=False).astype(bool)
    known = np.zeros(rows.num_rows, bool)
    if len(before) == len(measurement.schemas):
        # a family's values are all there or all null: its first column behind uid tells
        known = next(iter(before.values())).column(1).is_valid().to_numpy()
    todo = np.flatnonzero(wanted & ~known)
    fresh = {}
    if len(todo):
        pictures = store.pictures(todo) if pixels else None
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


def _join(rows: pa.Table, table: pa.Table) -> pa.Table:
    """`rows` with the scalar columns of `table` beside them, by position."""
    for column in table.column_names:
        if column != "uid" and not pa.types.is_nested(table.schema.field(column).type):
            rows = rows.append_column(column, table[column])
    return rows
