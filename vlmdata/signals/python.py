"""The user's own signal: a Python file with one function under `@vlmdata.signal(columns=…)`.

The file is run, when a recipe is planned and by every worker. Its sha256 is in the table's key; what it imports is not.
"""

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, loaded_once
from vlmdata.signals.pictures import Pictures

_DUCKDBS = ("file_index", "file_row_number", "filename")  # what `read_parquet` adds to the columns of a file
VERSION = 2  # rows have the declared columns alone
TYPES = ("bool", "int32", "int64", "uint64", "float32", "float64", "string")


@dataclass(frozen=True)
class _Own:
    """A user's function; `columns` from the name to the Arrow type; `line`: where it begins in its file."""

    path: str
    function: Callable[..., Any]
    columns: dict[str, pa.DataType]
    images: bool
    reads: tuple[str, ...]
    line: int


def _images(options: recipe.PythonSignal) -> bool:
    """Whether the function reads pixels."""
    return _own(options).images


IMAGES = _images


def columns(options: recipe.PythonSignal) -> list[str]:
    """The columns beside uid and caption that the function reads."""
    return list(_own(options).reads)


def schemas(options: recipe.PythonSignal) -> dict[str, pa.Schema]:
    """The table that `measure` gives; the columns that the file declares, with the signal's name behind them.

    The file is run. Raises InputError, with file and line, where it has no such function or cannot be run.
    """
    name = recipe.signal_name(options)
    suffix = recipe.signal_suffix(options)
    fields = [pa.field(column + suffix, kind) for column, kind in _own(options).columns.items()]
    return {name: pa.schema([*table_schema("python"), *fields])}


def identity(options: recipe.PythonSignal) -> dict[str, str]:
    """sha256 of the file. Raises InputError where there is none."""
    return {"file": file_sha256(_path(options))}


def absolute(options: recipe.PythonSignal) -> recipe.PythonSignal:
    """The same file, by a path that a worker finds from another working folder."""
    return options.model_copy(update={"path": str(_path(options))})


def measure(rows: pa.Table, images: Pictures | None, options: recipe.PythonSignal) -> dict[str, pa.Table]:
    """What the function gives for some rows, checked: every column, of its type, with a value or null for each row.

    Raises InputError naming file, line and, where it can be told, the row at fault.
    """
    own = _own(options)
    rows = rows.select(list(dict.fromkeys(["uid", "caption", *own.reads])))
    pictures = _one_a_row(images) if images is not None else None
    try:
        found = _call(own, rows, pictures)
    except (Exception, SystemExit) as error:
        raise InputError(_blame(own, rows, pictures, error)) from error
    ((name, schema),) = schemas(options).items()
    arrays = [pa.chunked_array(rows["uid"]), *(_column(own, found, column, rows) for column in own.columns)]
    return {name: conform(pa.table(dict(zip(schema.names, arrays, strict=True))), schema)}


def _call(own: _Own, rows: pa.Table, pictures: list[np.ndarray] | None) -> Any:
    return own.function(rows) if pictures is None else own.function(rows, pictures)


def _one_a_row(images: Pictures) -> list[np.ndarray]:
    """A picture for each row; other signals read the same arrays, so that nobody may write into them."""
    seen = [picture.view() for picture in images.pixels]
    for picture in seen:
        picture.flags.writeable = False
    return [seen[place] for place in images.of]


def _blame(own: _Own, rows: pa.Table, pictures: list[np.ndarray] | None, error: BaseException) -> str:
    """The error in words: file and line, and the row, or the fewest rows by halving, for which the function fails."""
    start, size = 0, rows.num_rows
    while size > 1:
        for begin, count in ((start, size // 2), (start + size // 2, size - size // 2)):
            try:
                _call(own, rows.slice(begin, count), pictures and pictures[begin : begin + count])
            except (Exception, SystemExit) as part:  # noqa: BLE001 - the user's code may raise anything, and it is told
                error, start, size = part, begin, count
                break
        else:
            break
    uids = rows["uid"].slice(start, size).to_pylist()
    pairs = f"pair {uids[0]}" if size == 1 else f"with the pairs {uids[0]} to {uids[-1]}, but with neither half of them"
    return f"{_where(own.path, error, own.line)} ({pairs})"


def _where(path: str, error: BaseException, line: int = 1) -> str:
    """`signals.python: my_signal.py, line 7: ValueError: …`, the line being the last one inside the user's file."""
    lines = [frame.lineno or line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno or line)
    said = (str(error).strip().splitlines() or [""])[0]
    return f"signals.python: {path}, line {[line, *lines][-1]}: {type(error).__name__}" + (f": {said}" if said else "")


def _column(own: _Own, found: Any, name: str, rows: pa.Table) -> pa.Array | pa.ChunkedArray:
    """One column of what the function gave, in its type."""
    at = f"signals.python: {own.path}, line {own.line}: the function"
    if not isinstance(found, dict):
        raise InputError(f"{at} must give a dict of columns, not {type(found).__name__}")
    if set(found) != set(own.columns):
        missing, extra = sorted(set(own.columns) - set(found)), sorted(map(str, set(found) - set(own.columns)))
        told = [f"lacks {', '.join(missing)}"] if missing else []
        told += [f"has {', '.join(extra)}, which `columns` does not declare"] if extra else []
        raise InputError(f"{at} gives a dict that {' and '.join(told)}")
    values, kind = found[name], own.columns[name]
    try:
        count = len(values)
    except TypeError:
        raise InputError(f"{at} gives {type(values).__name__} for {name!r}, not a value for each row") from None
    if count != rows.num_rows:
        raise InputError(f"{at} gives {count} values of {name!r} for {rows.num_rows} rows")
    try:
        return _typed(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        for row, value in enumerate(values):
            try:
                _typed([value.as_py() if isinstance(value, pa.Scalar) else value], kind)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                uid = rows["uid"][row].as_py()
                raise InputError(f"{at} gives {value!r} for {name!r}, which is no {kind} (pair {uid})") from error
        raise InputError(f"{at} gives values of {name!r} that are no {kind}: {error}") from error


def _typed(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """The values in a type that holds them; only a floating number may lose digits."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        array = values
    elif kind == pa.uint64() and all(isinstance(value, int | np.integer | None) for value in values):
        array = pa.array(values, kind)  # Arrow itself would try int64
    elif not pa.types.is_boolean(kind) and any(isinstance(value, bool) for value in values):
        raise TypeError("a bool is among them")  # which Arrow counts as 1 among floats
    else:
        array = pa.array(values)  # not into `kind`, which cuts 2.5 to 2
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    for same in (_is_text, pa.types.is_boolean):
        if not pa.types.is_null(array.type) and same(array.type) != same(kind):
            raise TypeError(f"they are {array.type}")  # a cast would parse or print them, or make numbers of them
    typed = array.cast(kind, safe=not pa.types.is_floating(kind))
    if pa.types.is_floating(kind) and not pc.is_inf(typed).equals(pc.is_inf(array.cast(pa.float64(), safe=False))):
        raise OverflowError("a number is too large")
    return typed


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _path(options: recipe.PythonSignal) -> Path:
    path = Path(options.path).resolve()
    if not path.is_file():
        raise InputError(f"signals.python.path: there is no file {options.path}")
    return path


def _own(options: recipe.PythonSignal) -> _Own:
    path = _path(options)
    return _load(str(path), file_sha256(path))


@loaded_once
def _load(path: str, sha256: str) -> _Own:
    """Run the file and find its function. A changed file, under its new hash, is run again."""
    name = f"vlmdata_own_signal_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"signals.python.path: {path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(_where(path, error)) from error
    marked = {id(value): value for value in vars(module).values() if "vlmdata_signal" in getattr(value, "__dict__", {})}
    if len(marked) != 1:
        raise InputError(
            f"signals.python: {path} has {len(marked)} functions under `@vlmdata.signal(columns=…)`: it must be one"
        )
    (function,) = marked.values()
    columns, images, reads = function.vlmdata_signal
    line = getattr(getattr(function, "__code__", None), "co_firstlineno", 1)
    for column, kind in columns.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(column)) or kind not in TYPES:
            raise InputError(
                f"signals.python: {path}, line {line}: {column!r}: {kind!r} is no column: a name is lower-case "
                f"letters, digits and _, a type one of {', '.join(TYPES)}"
            )
        if column in _DUCKDBS:
            raise InputError(f"signals.python: {path}, line {line}: {column!r} is DuckDB's name: choose another")
    if not columns:
        raise InputError(f"signals.python: {path}, line {line}: `columns` is empty")
    types = {column: pa.type_for_alias(kind) for column, kind in columns.items()}
    return _Own(path, function, types, bool(images), reads, line)
