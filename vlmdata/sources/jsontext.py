"""JSON read value by value, so that a file need not fit into memory: lines of objects, an array of them, or lists.

A `.json` file may hold an array of objects (alone, or as a member of one object: RedCaps' `annotations`), one object
with a list a column (SBU), or lines of objects (what Spark and pandas call JSON).
"""

import io
import json
import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import msgspec
import pyarrow as pa

from vlmdata.errors import DataError, InputError
from vlmdata.sources.columns import from_python, guess
from vlmdata.sources.formats import LONGEST, File, batched, first_of, lines, not_too_many, reading, unpacked

log = logging.getLogger(__name__)

_SPACE = " \t\r\n"
_CHUNK = 1 << 16
_LONGEST_NUMBER = 400  # characters
_END = object()


def line_columns(file: File) -> pa.Schema:
    with reading(file) as stack:
        return _told(file, first_of(_line_rows(file, stack, None)))


def line_batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    """One object a line. Lines that are none are left aside, and told."""
    with reading(file) as stack:
        yield from _batches(file, _line_rows(file, stack, names), names)


def json_columns(file: File) -> pa.Schema:
    """Raises InputError for JSON of another shape."""
    shape, where = _shape(file)
    if shape == "lines":
        return line_columns(file)
    with reading(file) as stack:
        return _told(file, first_of(_member_rows(file, stack, where) if shape == "rows" else _zip(file, stack, where)))


def json_batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    shape, where = _shape(file)
    if shape == "lines":
        yield from line_batches(file, names)
        return
    with reading(file) as stack:
        rows = _member_rows(file, stack, where) if shape == "rows" else _zip(file, stack, names)
        yield from _batches(file, ((row and [row.get(name) for name in names], size) for row, size in rows), names)


def arrays(file: File, names: Collection[str]) -> Iterator[tuple[str, Iterator[Any]]]:
    """Of the object that the file holds the members `names`, in the file's order, each with its array's elements, which
    are read to their end before the next is asked for. Raises DataError for what is no JSON of that shape."""
    with reading(file) as stack:
        scanner = _Scanner(file, stack)
        for name in scanner.names():
            if name in names:
                yield name, scanner.elements()
            else:
                scanner.skip()


def _batches(file: File, rows: Iterator[tuple[Any, int]], names: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of values with the size of their JSON as batches; None stands for what is no object."""
    broken = 0
    for held in batched(rows):
        whole = [row for row in held if row is not None]
        broken += len(held) - len(whole)
        if whole:
            columns = zip(*whole, strict=True)
            yield pa.RecordBatch.from_arrays([from_python(list(column)) for column in columns], names)
    if broken:
        log.warning("%s: %d rows are not JSON objects and are left aside", file, broken)


def _member_rows(file: File, stack: ExitStack, name: str | None) -> Iterator[tuple[Any, int]]:
    """The objects of an array and their sizes in characters; None for an element that is none."""
    scanner = _Scanner(file, stack)
    for row in scanner.member(name):
        yield row if isinstance(row, dict) else None, scanner.size


def _zip(file: File, stack: ExitStack, names: list[str]) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of lists that are columns: a reader a column, since one list stands behind the other."""
    scanners = [_Scanner(file, stack) for _ in names]
    columns = [scanner.member(name) for scanner, name in zip(scanners, names, strict=True)]
    for values in zip_longest(*columns, fillvalue=_END):
        if _END in values:
            raise DataError(f"{file}: its lists {', '.join(names)} are not of one length")
        yield dict(zip(names, values, strict=True)), sum(scanner.size for scanner in scanners)


def _line_rows(file: File, stack: ExitStack, names: list[str] | None) -> Iterator[tuple[Any, int]]:
    """Each line's values of `names`, or its whole object, and its size; None for a line that is none."""
    fields = [(f"f{place}", Any, None) for place in range(len(names or []))]
    renamed = {f"f{place}": name for place, name in enumerate(names or [])}
    plain = names is not None and not any(json.dumps(name, ensure_ascii=False)[1:-1] != name for name in names)
    # only the fields that are asked for are built
    row_of: Any = msgspec.defstruct("Row", fields, rename=renamed) if plain else dict
    decode = msgspec.json.Decoder(row_of).decode
    for line in lines(file, stack):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            # stricter than the standard library on half surrogate pairs, NaN and control characters
            yield _lenient(line, names), len(line)
            continue
        if names is not None:
            row = msgspec.structs.astuple(row) if plain else [row.get(name) for name in names]
        yield row, len(line)


def _lenient(line: str, names: list[str] | None) -> Any:
    try:
        row = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    return row if names is None else [row.get(name) for name in names]


def _told(file: File, rows: Iterator[dict[str, Any] | None]) -> pa.Schema:
    """The columns of some rows and the types that they look like; no value that is longer than a number is held."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in (row or {}).items():
            found.setdefault(name, []).append(_brief(value))
        not_too_many(file, len(found))
    return pa.schema([(name, _kind(values)) for name, values in found.items()])


def _brief(value: Any) -> Any:
    if isinstance(value, dict | list):
        return []
    return "text" if isinstance(value, str) and len(value) > _LONGEST_NUMBER else value


def _kind(values: list[Any]) -> pa.DataType:
    nested = [isinstance(value, list) for value in values if value is not None]
    return pa.list_(pa.null()) if nested and all(nested) else guess(from_python(values))


def _shape(file: File) -> tuple[str, Any]:
    """("lines", None), ("rows", the member that holds them or None), or ("columns", the names of the lists)."""
    with reading(file) as stack:
        scanner = _Scanner(file, stack)
        if scanner.peek() == "[":
            return "rows", None
        if scanner.peek() != "{":
            raise InputError(f"{file}: neither an array nor an object of JSON")
        lists: list[str] = []
        for name in scanner.names():
            if scanner.peek() != "[":
                scanner.value()
                continue
            elements = scanner.elements()
            first = next(elements, None)
            if isinstance(first, dict) and not lists:
                return "rows", name
            if first is not None:
                lists.append(name)
            for _ in elements:
                pass
        if scanner.peek() == "{":
            return "lines", None
        if not lists:
            raise InputError(
                f"{file}: one object without a list: expected are an array of objects, a list a column, or an object "
                "a line"
            )
        return "columns", lists


class _Scanner:
    """JSON from a stream, one value after the other. What is held is no longer than the longest value."""

    def __init__(self, file: File, stack: ExitStack) -> None:
        self.file = file
        self.text = io.TextIOWrapper(unpacked(file, stack), "utf-8-sig", errors="replace", newline="")
        self.held = ""
        self.at = 0
        self.size = 0  # characters of the last value
        self.decode = json.JSONDecoder(strict=False).raw_decode

    def peek(self) -> str:
        """The next sign that is no space, '' at the end."""
        while True:
            while self.at < len(self.held) and self.held[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.held) or not self._more(_CHUNK):
                return self.held[self.at : self.at + 1]

    def take(self, signs: str) -> str:
        sign = self.peek()
        if not sign or sign not in signs:
            raise DataError(f"{self.file}: not JSON: {' or '.join(signs)} is expected, not {sign or 'the end'!r}")
        self.at += 1
        return sign

    def value(self) -> Any:
        self.peek()
        size = _CHUNK
        while True:
            problem: Exception | None = None
            try:
                value, end = self.decode(self.held, self.at)
                if end < len(self.held) or not self._more(size):  # a number may go on
                    self.size, self.at = end - self.at, end
                    return value
                continue
            except ValueError as error:  # JSONDecodeError, or a whole number of thousands of digits
                problem = error
            except RecursionError as error:
                raise DataError(f"{self.file}: JSON that is nested too deeply") from error
            if len(self.held) - self.at > LONGEST:
                raise DataError(f"{self.file}: not JSON, or a value longer than {LONGEST:,} characters") from problem
            if not self._more(size):
                raise DataError(f"{self.file}: not JSON: {problem}") from problem
            size *= 2  # twice as much each time, so that a long value is not read again and again

    def elements(self) -> Iterator[Any]:
        """The elements of the array that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """The names of the object that begins here; whoever asks reads each value before the next name."""
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            name = self.value()
            self.take(":")
            yield str(name)
            if self.take(",}") == "}":
                return

    def member(self, name: str | None) -> Iterator[Any]:
        """The elements of the whole array, or of the array that is the object's member `name`."""
        if name is None:
            yield from self.elements()
            return
        for other in self.names():
            if other == name:
                yield from self.elements()
                return
            self.skip()

    def skip(self) -> None:
        """Pass over the value that begins here, an array element by element."""
        if self.peek() == "[":
            for _ in self.elements():
                pass
        else:
            self.value()

    def _more(self, size: int) -> bool:
        text = self.text.read(size)
        self.held, self.at = self.held[self.at :] + text, 0
        return bool(text)
