"""Groups of duplicates: one file a method. Which member of a group is kept is the selection's to decide.

A method is a module with `reads(options)`, the table and columns that it compares, and `edges(options, values)`,
the pairs of rows that are alike; `decontaminate` alone compares with what is outside of the dataset.
"""

from collections.abc import Iterator, Mapping
from types import ModuleType

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.dedup import decontaminate, exact, perceptual, pixels, semantic, url
from vlmdata.dedup.components import Edges, unite
from vlmdata.schemas import conform, table_schema

VERSION = 1

_METHODS: dict[str, ModuleType] = {
    "exact": exact,
    "pixels": pixels,
    "url": url,
    "perceptual": perceptual,
    "semantic": semantic,
}


def tables(options: recipe.Dedup) -> list[str]:
    """The names of the tables that a method, decontamination too, compares."""
    if isinstance(options, recipe.DecontaminateDedup):
        return list(decontaminate.reads(options))
    return [reads(options)[0]]


def reads(options: recipe.Dedup) -> tuple[str, list[str]]:
    """The name of the table, and the columns of it, that `groups` wants as values."""
    return _METHODS[options.kind].reads(options)


def compared(options: recipe.Dedup, found: pa.Table) -> pa.Table:
    """Rows of the columns that `reads` names in the form in which they are compared."""
    return url.compared(found) if options.kind == "url" else found


def groups(
    options: recipe.Dedup, uids: np.ndarray | pa.Array | pa.ChunkedArray, values: Mapping[str, np.ndarray | pa.Array]
) -> pa.Table:
    """The `duplicates` table of one method: the members of all groups of two or more, by (dup_group, uid).

    uids: n different uids, Arrow strings or numpy bytes (S32). values: the columns that `reads` names, n rows each,
    in the same order: sha256 as Arrow strings or bytes; phash uint64 and entropy float32; vector float16 [n, d], which
    may be mapped from a file. Rows without a value are to be left out by the caller.
    The outcome does not depend on the order of the rows, but for partitions of the semantic method.
    """
    found: Iterator[Edges] = _METHODS[options.kind].edges(options, values)
    label, similarity = unite(len(uids), found)
    size = np.bincount(label, minlength=len(uids))
    member = np.flatnonzero(size[label] > 1)
    uid = np.asarray(uids)[member].astype("S32")
    # in the order of uids each group's first member is its smallest
    order = np.argsort(uid, kind="stable")
    member, uid = member[order], uid[order]
    _, first, inverse = np.unique(label[member], return_index=True, return_inverse=True)
    group = uid[first[inverse]]
    order = np.lexsort((uid, group))
    columns = {
        "uid": pa.array(uid[order]).cast(pa.string()),
        "dup_method": pa.array([options.kind]).take(pa.array(np.zeros(len(order), np.int32))),
        "dup_group": pa.array(group[order]).cast(pa.string()),
        "similarity": similarity[member][order],
    }
    return conform(pa.table(columns), table_schema("duplicates"))
