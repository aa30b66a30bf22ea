"""A data pipeline and dataset curation platform for vision-language models."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def signal(columns: dict[str, str], images: bool = False) -> Callable[[Function], Function]:
    """Mark the one function of a Python file that a recipe names by `{kind: python, path: …}`.

    columns: name -> type of what it gives: bool, int32, int64, uint64, float32, float64 or string.
    images: it reads pixels. The function is then called as f(rows, images), else as f(rows).

    rows: a pyarrow.Table of n pairs with every scalar column that is known by then (uid, url, caption, width, …).
    images: a list of n read-only uint8 arrays [height, width, 3], RGB, the stored images of the rows.
    It gives a dict from each of `columns` to n values: a list, a NumPy or an Arrow array; None is null.
    """

    def mark(function: Function) -> Function:
        function.__dict__["vlmdata_signal"] = (dict(columns), images)
        return function

    return mark
