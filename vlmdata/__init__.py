"""A data pipeline and dataset curation platform for vision-language models."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def signal(columns: dict[str, str], images: bool = False, reads: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Mark the one function of a Python file that a recipe names by `{kind: python, path: …}`.

    columns: name -> type of what it gives: bool, int32, int64, uint64, float32, float64 or string.
    images: it reads pixels. The function is then called as f(rows, images), else as f(rows).

    reads: further columns that it reads, of pairs, images, sources or other signals (`original_width`, `clip_score`).

    rows: a pyarrow.Table of n pairs with the columns uid, caption and those of `reads`.
    images: a list of n read-only uint8 arrays [height, width, 3], RGB, the stored images of the rows.
    It gives a dict from each of `columns` to n values: a list, a NumPy or an Arrow array; None is null.
    """

    def mark(function: Function) -> Function:
        function.__dict__["vlmdata_signal"] = (dict(columns), images, tuple(reads))
        return function

    return mark
