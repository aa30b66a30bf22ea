"""Pairs from tables and lists: files of any common format or a Hugging Face dataset, a URL and a caption a row."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.errors import InputError
from vlmdata.recipe import TableSource, nearest
from vlmdata.sources import ROWS, signal_column
from vlmdata.sources.columns import as_text, as_type, clean_texts, hashes, kind_of, or_null, strip_signatures
from vlmdata.sources.files import version
from vlmdata.sources.formats import (
    File,
    csv_batches,
    csv_columns,
    list_batches,
    list_columns,
    parquet_batches,
    parquet_columns,
    reading,
    table_files,
)
from vlmdata.sources.hub import hub_batches, hub_columns, revision
from vlmdata.sources.jsontext import json_batches, json_columns, line_batches, line_columns
from vlmdata.sources.presets import PRESETS, Preset

log = logging.getLogger(__name__)

VERSION = 3
_MAPPED = ("url", "caption", "source_id", "page_url", "license", "context", "lang_hint", "expected_hash")
_TYPES = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
READERS: dict[str, tuple[Callable[[File], pa.Schema], Callable[[File, list[str]], Iterator[pa.RecordBatch]]]] = {
    "parquet": (parquet_columns, parquet_batches),
    "csv": (csv_columns, csv_batches),
    "tsv": (csv_columns, csv_batches),
    "json": (json_columns, json_batches),
    "jsonl": (line_columns, line_batches),
    "list": (list_columns, list_batches),
}


@dataclass(frozen=True)
class Input:
    """One file, or the whole Hugging Face dataset."""

    name: str
    columns: Callable[[], pa.Schema]
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class _Layout:
    """What is read of an input: column of `pairs` -> its column; column of `source_signals` -> (its column, type)."""

    mapped: dict[str, str]
    kept: dict[str, tuple[str, pa.DataType]]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*self.mapped.values(), *(name for name, _ in self.kept.values())]))


def check(source: TableSource, inputs: list[Input] | None = None) -> None:
    """Refuse a path that matches no file, and a first file without the columns that the recipe names.

    inputs: instead of the source's own, for a source of another kind that is a table, too. Raises InputError.
    """
    first = (inputs or _inputs(source))[0]
    _layout(source, first.name, first.columns())


def signals(source: TableSource, inputs: list[Input] | None = None) -> pa.Schema:
    """The columns of `keep`, or those of the preset that the first file has."""
    first = (inputs or _inputs(source))[0]
    kept = _layout(source, first.name, first.columns()).kept
    return pa.schema([(name, kind) for name, (_, kind) in kept.items()])


def states(source: TableSource) -> dict[str, str | None]:
    """The files with what tells that they have changed: their size and time, validators on the web; of a Hugging Face
    dataset its revision."""
    if source.hf is not None:
        return {source.hf: revision(source)}
    assert source.path is not None
    found = file_states(table_files(source.name, "path", source.path))
    for file, beside in (
        zip(found, table_files(source.name, "captions", source.captions), strict=True) if source.captions else ()
    ):
        both = found[file], version(beside.filesystem, beside.path, f"sources.{source.name}.captions")
        found[file] = None if None in both else " ".join(map(str, both))
    return found


def file_states(files: list[File]) -> dict[str, str | None]:
    """`states` of a table's files."""
    return {file.shown: version(file.filesystem, file.path, f"sources.{file.source}") for file in files}


def read(
    source: TableSource,
    scratch: str,
    verbatim: Collection[str] = (),
    inputs: list[Input] | None = None,
    chosen: Collection[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of all files, in the order of their paths. Memory does not grow with the tables.

    verbatim: columns of `pairs` whose text stays as it is, but for its secrets: a file's name may have two blanks.

    What is left aside is counted and logged: rows without a URL or a caption, values that do not fit their column,
    and by the formats what is no row. Raises InputError for a file without the columns, DataError for one that is
    corrupt; both name the file.
    """
    inputs = inputs or _inputs(source)
    brings = signals(source, inputs)
    schema = pa.schema([*ROWS, *brings])
    lost: Counter[str] = Counter()
    for entry in inputs:
        if chosen is not None and entry.name not in chosen:
            continue
        layout = _layout(source, entry.name, entry.columns())
        for batch in entry.batches(layout.names):
            yield _pairs(source, layout, batch, schema, lost, verbatim)
    for what, count in lost.items():
        log.warning("%s: %d %s", source.name, count, what)


def _inputs(source: TableSource) -> list[Input]:
    if source.hf is not None:
        return [Input(source.hf, partial(hub_columns, source), partial(hub_batches, source))]
    assert source.path is not None
    preset = _preset(source)
    files = table_files(source.name, "path", source.path)
    captions = table_files(source.name, "captions", source.captions) if source.captions else []
    if captions and (len(captions) != len(files) or {file.form for file in files + captions} != {"list"}):
        raise InputError(
            f"sources.{source.name}.captions: {len(captions)} files for {len(files)} of path: each .txt list of URLs "
            "needs one .txt with its captions"
        )
    header = tuple(source.columns or preset.header)
    inputs = []
    for place, file in enumerate(files):
        beside = captions[place] if captions else None
        file = replace(file, header=header, quotes=not preset.header, captions=beside)
        batches = READERS[file.form][1]
        inputs.append(Input(file.shown, partial(_columns, file), partial(batches, file)))
    return inputs


def _columns(file: File) -> pa.Schema:
    """What the first rows tell, read again only when the file has changed: every stage asks for it."""
    with reading(file):
        version = file.filesystem.ukey(file.path)
    return _columns_of(file, version)


@lru_cache(1_000)
def _columns_of(file: File, version: str) -> pa.Schema:
    return READERS[file.form][0](file)


def _preset(source: TableSource) -> Preset:
    return PRESETS[source.preset] if source.preset else Preset({})


def _layout(source: TableSource, name: str, schema: pa.Schema) -> _Layout:
    """Raises InputError for a column that is named and not there, and for one that holds lists."""
    preset = _preset(source)
    mapped = {}
    for target in _MAPPED:
        asked = getattr(source, target)
        names = (asked,) if asked else preset.columns.get(target, (target,) if target in ("url", "caption") else ())
        found = next((column for column in names if column in schema.names), None)
        if found is not None:
            mapped[target] = found
            _kind(source, target, name, schema, found)
        elif asked or target in ("url", "caption"):
            raise _missing(source, target, name, names[0], schema)
    kept: dict[str, tuple[str, pa.DataType]] = {}
    for column, told in _kept(source, preset).items():
        if column not in schema.names:
            if source.keep is None:
                continue
            raise _missing(source, "keep", name, column, schema)
        try:
            signal = signal_column(column)
        except InputError as error:
            raise InputError(f"sources.{source.name}.keep: {error}") from error
        kind = _kind(source, "keep", name, schema, column)
        if signal in kept and source.keep is not None:
            raise InputError(f"sources.{source.name}.keep: {column!r} and {kept[signal][0]!r} would both be {signal}")
        kept.setdefault(signal, (column, _TYPES[told] if told else kind))
    return _Layout(mapped, kept)


def _kept(source: TableSource, preset: Preset) -> dict[str, str | None]:
    """The columns to keep as signals, and their types where the recipe or the preset tells them."""
    if source.keep is None:
        return dict(preset.keep)
    if isinstance(source.keep, dict):
        return dict(source.keep)
    return {column: preset.keep.get(column) for column in source.keep}


def _kind(source: TableSource, option: str, name: str, schema: pa.Schema, column: str) -> pa.DataType:
    try:
        return kind_of(schema.field(schema.names.index(column)).type)
    except ValueError as error:
        raise InputError(f"sources.{source.name}.{option}: {name}: the column {column!r} holds {error}") from error


def _missing(source: TableSource, option: str, name: str, column: str, schema: pa.Schema) -> InputError:
    there = ", ".join(schema.names[:20]) or "no columns"
    other = [known for known in schema.names if known.lower() == column.lower()]
    near = f"; did you mean {other[0]!r}?" if other else nearest(column, schema.names)
    return InputError(f"sources.{source.name}.{option}: {name} has no column {column!r}{near} (it has {there})")


def _pairs(
    source: TableSource,
    layout: _Layout,
    batch: pa.RecordBatch,
    schema: pa.Schema,
    lost: Counter[str],
    verbatim: Collection[str],
) -> pa.RecordBatch:
    """A batch of the file's columns as rows of `schema`; `lost` counts what could not be kept."""
    text = {target: as_text(batch.column(name)) for target, name in layout.mapped.items()}
    text = {target: column if target in verbatim else clean_texts(column) for target, column in text.items()}
    whole = pc.and_(_some(text["url"]), _some(text["caption"]))
    rows = pc.sum(whole.cast(pa.int64())).as_py() or 0
    if rows < batch.num_rows:
        lost["rows without a URL or a caption are left aside"] += batch.num_rows - rows
        batch = batch.filter(whole)
        text = {target: column.filter(whole) for target, column in text.items()}
    known = {target: or_null(column) for target, column in text.items()}
    for target in known.keys() - {"url", "page_url"}:
        known[target] = _without_secrets(known[target])
    known["url"], known["fetch_url"] = strip_signatures(text["url"])
    if "page_url" in known:
        pages = known["page_url"]
        if site := _preset(source).site:
            under = pc.fill_null(pc.starts_with(pages, "/"), False)
            pages = pc.if_else(under, pc.binary_join_element_wise(site, pages, ""), pages)
        known["page_url"] = strip_signatures(pages)[0]
    if "license" in known:  # LAION's sign for a licence that is not known
        unknown = pc.fill_null(pc.equal(known["license"], "?"), False)
        known["license"] = pc.if_else(unknown, pa.scalar(None, pa.string()), known["license"])
    if "expected_hash" in known:
        asked = known["expected_hash"].null_count
        known["expected_hash"] = hashes(known["expected_hash"])
        _count(lost, f"values of {layout.mapped['expected_hash']!r}", known["expected_hash"].null_count - asked)
    known["caption_from"] = pa.array([layout.mapped["caption"]] * rows, pa.string())
    known["source"] = pa.array([source.name] * rows, pa.string())
    columns = []
    for column in schema:
        if column.name in layout.kept:
            name, _ = layout.kept[column.name]
            values, misfits = as_type(batch.column(name), column.type)
            _count(lost, f"values of {name!r}", misfits)
            columns.append(values)
        else:
            columns.append(known[column.name] if column.name in known else pa.nulls(rows, column.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _without_secrets(texts: pa.Array) -> pa.Array:
    """Texts that may be a URL, without what gives access; one with a blank in it is a sentence and stays."""
    sentence = pc.match_substring(texts, " ")
    return pc.if_else(pc.fill_null(sentence, False), texts, strip_signatures(texts)[0])


def _some(texts: pa.Array) -> pa.Array:
    return pc.fill_null(pc.not_equal(texts, ""), False)


def _count(lost: Counter[str], what: str, misfits: int) -> None:
    if misfits:
        lost[f"{what} do not fit the column and are null"] += misfits
