"""What is left of forgotten samples anywhere in a dataset: nothing, or `verify` says where."""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.dataset import Dataset
from vlmdata.download import forgotten as refused
from vlmdata.errors import DataError
from vlmdata.forget import AUDIT, audit_line
from vlmdata.forget import journal as journals
from vlmdata.forget.find import named_in_seen, parquet_files
from vlmdata.forget.tombstones import PLACES, VERDICT, members

Difference = tuple[str, str, str]
_TOLD_BY = {"url": "url", "sha256": "sha256", "page_url": "domain"}  # column -> what it is looked for as
_NOTHING = "nothing forgotten"


def left(dataset: Dataset) -> Iterator[Difference]:
    """(path, expected, found) for every place where something forgotten is, and where that cannot be told."""
    if dataset.exists(journals.JOURNAL):
        yield journals.JOURNAL, "no forgetting under way", "interrupted: `vlmdata forget DATASET` finishes it"
    damaged = list(_list(dataset))
    yield from damaged
    if damaged:
        return
    forgotten = refused.load(dataset)
    if not forgotten:
        return
    for path in parquet_files(dataset, ("tables", "images", "snapshots")):
        if path.startswith("tables/seen/") and (found := _seen(dataset, path, forgotten)):
            yield path, _NOTHING, found
        elif not path.endswith(".near.parquet"):
            yield from ((path, _NOTHING, found) for found in _parquet(dataset, path, forgotten))
    for path in [*dataset.files("images"), *dataset.files("snapshots")]:
        if path.endswith(".tar"):
            yield from ((path, _NOTHING, found) for found in _tar(dataset, path, forgotten))
    for folder in ("work", "work_shards", "work_download", "work_joined", "work_pairs"):
        if dataset.files(folder):
            yield folder, _NOTHING, "left by a killed run: `vlmdata run` removes it"
    for unfinished in sorted(dataset.kept_folder("reading").glob("*")):
        yield f"reading/{unfinished.name}", _NOTHING, "a crawl that was interrupted: finish it, or remove it"


def _list(dataset: Dataset) -> Iterator[Difference]:
    """The list of what is refused, and the audit's chain of lines."""
    before = b""
    listed = None
    lines = dataset.read_bytes(AUDIT).splitlines(keepends=True) if dataset.exists(AUDIT) else []
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            check = content.pop("check")
            listed = content["list"]
        except (ValueError, KeyError, TypeError, AttributeError):
            check, content = None, {}
        if check is None or audit_line(content, before) != line:
            yield AUDIT, "its check", f"line {number} is damaged"
            listed = None
            break
        before = line
    try:
        refused.load(dataset)
    except DataError as error:
        yield refused.LIST, "a list with its key", str(error).partition(": ")[2]
        return
    found = dataset.sha256(refused.LIST)[0] if dataset.exists(refused.LIST) else "missing"
    if listed is not None and listed != found and not dataset.exists(journals.JOURNAL):
        yield refused.LIST, listed, found


def _parquet(dataset: Dataset, path: str, forgotten: refused.Forgotten) -> Iterator[str]:
    """What of a Parquet file is forgotten: rows, dictionaries, statistics; in words that do not say it."""
    try:
        with dataset.open(path) as handle, pq.ParquetFile(handle) as file:
            names = file.schema_arrow.names
            told = [name for name in _TOLD_BY if name in names]
            if "uid" in names:
                found = sum(
                    _rows(file.read_row_group(n, use_threads=False), forgotten) for n in range(file.num_row_groups)
                )
                if found:
                    yield f"{found} rows that are not tombstones"
            for column in told:
                if any(_holds(forgotten, column, value) for value in _statistics(file, column)):
                    yield f"a statistic of {column}"
        with dataset.open(path) as handle, pq.ParquetFile(handle, read_dictionary=told) as file:
            for column in told:
                if any(_holds(forgotten, column, value) for value in _dictionaries(file, column)):
                    yield f"a dictionary of {column}"
    except (pa.ArrowException, OSError):
        yield "it cannot be read, so nobody can tell"


def _seen(dataset: Dataset, path: str, forgotten: refused.Forgotten) -> str | None:
    try:
        count = int(named_in_seen(dataset, path, forgotten).sum())
    except DataError:
        return "it cannot be read, so nobody can tell"
    return f"{count} files or pages" if count else None


def _rows(rows: pa.Table, forgotten: refused.Forgotten) -> int:
    columns = {
        name: rows[name].to_pylist() for name in ("uid", "url", "sha256", "page_url") if name in rows.column_names
    }
    nothing: list[Any] = [None] * rows.num_rows
    by_value = [
        forgotten.has("url", url) or forgotten.has("sha256", sha256) or forgotten.below(url) or forgotten.below(page)
        for url, sha256, page in zip(
            *(columns.get(name, nothing) for name in ("url", "sha256", "page_url")), strict=True
        )
    ]
    gone = [place for place, uid in enumerate(columns["uid"]) if forgotten.has("uid", uid)]
    count = sum(by_value)
    if gone:
        verdict = VERDICT if set(VERDICT) <= set(rows.column_names) else {}
        stay = {"uid", *(PLACES if "dup_group" in rows.column_names else ())}
        for row in rows.take(gone).to_pylist():
            count += any(value != verdict.get(name) for name, value in row.items() if name not in stay)
    return count


def _holds(forgotten: refused.Forgotten, column: str, value: object) -> bool:
    if not isinstance(value, str):
        return False
    if column == "page_url":
        return forgotten.below(value)
    return forgotten.has(column, value) or (column == "url" and forgotten.below(value))


def _statistics(file: pq.ParquetFile, column: str) -> Iterator[object]:
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        of_column = [metadata.column(n) for n in range(metadata.num_columns)]
        statistics = next(each.statistics for each in of_column if each.path_in_schema == column)
        if statistics is not None and statistics.has_min_max:
            yield from (statistics.min, statistics.max)


def _dictionaries(file: pq.ParquetFile, column: str) -> Iterator[object]:
    """The values of dictionary pages, used by a row or not."""
    for group in range(file.num_row_groups):
        for chunk in file.read_row_group(group, [column], use_threads=False)[column].chunks:
            if pa.types.is_dictionary(chunk.type):
                yield from chunk.dictionary.to_pylist()


def _tar(dataset: Dataset, path: str, forgotten: refused.Forgotten) -> Iterator[str]:
    try:
        found = zeros = 0
        for uid, ending, offset, length in members(dataset, path):
            if not forgotten.has("uid", uid):
                continue
            if ending != refused.FORGOTTEN:
                found += 1
            else:
                with dataset.open(path) as handle:
                    handle.seek(offset)
                    zeros += any(handle.read(length))
        if found:
            yield f"{found} members"
        if zeros:
            yield f"{zeros} places of images with bytes in them"
    except (tarfile.TarError, OSError):
        yield "it cannot be read, so nobody can tell"
