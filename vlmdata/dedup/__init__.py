"""Groups of duplicates: one file a method. Which member of a group is kept is the selection's to decide.

A method is a module with `reads(options)`, the table and columns that it compares, and `compare(options, values,
earlier, known)`, the pairs of rows that are alike; `decontaminate` alone compares with what is outside of the dataset.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.catalog import view_local
from vlmdata.dedup import alike, decontaminate, exact, perceptual, pixels, semantic, url
from vlmdata.dedup.components import Edges, stars, unite
from vlmdata.ingest import connect
from vlmdata.schemas import conform, table_schema

VERSION = 3

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


class Earlier(NamedTuple):
    """What is known of the first `rows` of some rows: their groups, as `groups` gave them, and what
    `Grouped` has of them besides. Every row of both must be among them."""

    rows: int
    groups: pa.Table
    known: Mapping[str, np.ndarray]


class Grouped(NamedTuple):
    """table: the members of all groups. known: what finds the neighbours of later rows, uids (S32) for its rows."""

    table: pa.Table
    known: dict[str, np.ndarray]


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
    return grouped(options, uids, values).table


def grouped(
    options: recipe.Dedup,
    uids: np.ndarray | pa.Array | pa.ChunkedArray,
    values: Mapping[str, np.ndarray | pa.Array],
    earlier: Earlier | None = None,
    near: Path | None = None,
) -> Grouped:
    """As `groups`, with what a later call takes as `earlier`: then only what the rows behind bring is
    looked for, and the outcome is that of all rows at once (of the semantic method by the partitions that there are).

    near: the file of `dedup.alike` to write to: all pairs of rows that are alike, one of them not among the earlier.
    """
    uid = np.asarray(uids).astype("S32", copy=False)
    known = None
    if earlier is not None:
        place = dict(zip(uid[: earlier.rows].tolist(), range(earlier.rows), strict=True))
        known = {**earlier.known, **({"rows": _places(place, earlier.known["rows"])} if earlier.known else {})}
    found = _METHODS[options.kind].compare(options, values, earlier.rows if earlier else 0, known)
    aside = None if near is None else near.with_suffix(".found")
    edges = found.edges if aside is None else alike.noted(found.edges, uid, aside)
    least = np.zeros(len(uid), np.float32)
    if earlier is not None:
        codes = np.full(len(uid), -1, np.int64)
        members = _places(place, np.asarray(earlier.groups["uid"]).astype("S32"))
        codes[members] = earlier.groups["dup_group"].combine_chunks().dictionary_encode().indices.to_numpy()
        least[members] = earlier.groups["similarity"].to_numpy()
        edges = _after(stars(codes), edges)
    label, similarity = unite(len(uid), edges)
    if near is not None and aside is not None:
        with connect(near.parent) as connection:
            view_local(connection, "found", aside)
            alike.write(connection, near)
    stored = {**found.known, "rows": uid[found.known["rows"]]} if found.known else {}
    return Grouped(_table(options.kind, uid, label, np.maximum(similarity, least), found.centroid), stored)


def _table(kind: str, uid: np.ndarray, label: np.ndarray, similarity: np.ndarray, centroid: object) -> pa.Table:
    size = np.bincount(label, minlength=len(uid))
    member = np.flatnonzero(size[label] > 1)
    # in the order of uids each group's first member is its smallest
    member = member[np.argsort(uid[member], kind="stable")]
    _, first, inverse = np.unique(label[member], return_index=True, return_inverse=True)
    group = uid[member][first[inverse]]
    order = np.lexsort((uid[member], group))
    member, group = member[order], group[order]
    none = pa.nulls(len(member), pa.float32())
    columns = {
        "uid": pa.array(uid[member]).cast(pa.string()),
        "dup_method": pa.array([kind]).take(pa.array(np.zeros(len(member), np.int32))),
        "dup_group": pa.array(group).cast(pa.string()),
        "similarity": similarity[member],
        "centroid_similarity": centroid(member) if callable(centroid) and len(member) else none,
    }
    return conform(pa.table(columns), table_schema("duplicates"))


def _places(place: Mapping[bytes, int], uids: np.ndarray) -> np.ndarray:
    return np.fromiter((place[uid] for uid in uids.tolist()), np.int64, len(uids))


def _after(known: Edges, edges: Iterator[Edges]) -> Iterator[Edges]:
    # the groups are known, their similarities apart
    yield known._replace(similarity=np.zeros(len(known.i), np.float32))
    yield from edges
