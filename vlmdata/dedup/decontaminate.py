"""Pairs whose image stands in an evaluation set: by its bytes, by perceptual hash, by the cosine of embeddings.

Everything of the pool is held against everything of the evaluation set, which is in memory. All pairs that are found
are to be rejected: a group has no survivor.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.dedup.perceptual import telling
from vlmdata.schemas import conform, table_schema

METHODS = ("sha256", "perceptual", "embeddings")
_QUERIES = 4096  # of FAISS's search at once
_SLACK = 1e-4  # more than a float32 product's rounding
_EQUAL = 1e-6  # a cosine this little below the threshold counts as equal to it, as in semantic.py


class Matches(NamedTuple):
    """Rows of the pool and the image of the evaluation set that is most like each, by one method.

    row, image: int64 [m]; method: int64 [m], the place in METHODS; similarity: float32 [m], 1 for equal bytes, the
    share of equal hash bits, the cosine.
    """

    row: np.ndarray
    image: np.ndarray
    method: np.ndarray
    similarity: np.ndarray


def reads(options: recipe.DecontaminateDedup) -> dict[str, list[str]]:
    """The tables, and the columns of each, that are compared."""
    tables = {"images": ["sha256"]}
    if options.distance is not None:
        tables["image"] = ["phash", "entropy"]
    if options.embeddings is not None:
        tables[f"embeddings_{options.embeddings}"] = ["vector"]
    return tables


class Index:
    """An evaluation set, ready to be searched."""

    def __init__(self, evaluation: pa.Table, options: recipe.DecontaminateDedup) -> None:
        """evaluation: the table of that name."""
        import faiss

        self.options = options
        self.sha256 = evaluation["sha256"].combine_chunks()
        self.hashed = self.embedded = np.zeros(0, np.int64)
        if options.distance is not None:
            codes, known = _hashes(evaluation)
            self.hashed = np.flatnonzero(known)
            self.hashes = faiss.IndexBinaryFlat(64)
            self.hashes.add(codes[self.hashed].view(np.uint8).reshape(-1, 8))
        if options.embeddings is not None:
            self.vectors, known = unit(evaluation["vector"])
            self.embedded = np.flatnonzero(known)
            self.cosines = faiss.IndexFlatIP(self.vectors.shape[1])
            self.cosines.add(self.vectors[self.embedded])

    def search(self, pool: Mapping[str, pa.Table]) -> Matches:
        """Of each row of the pool the best match by each method that is near enough.

        pool: a part's tables that `reads` names, with these columns; rows may be null.
        """
        found = [self._same_bytes(pool["images"]["sha256"])]
        if len(self.hashed):
            found.append(self._same_looks(pool["image"]))
        if len(self.embedded):
            found.append(self._same_meaning(pool[f"embeddings_{self.options.embeddings}"]["vector"]))
        return Matches(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _same_bytes(self, sha256: pa.ChunkedArray) -> Matches:
        place = pc.index_in(sha256.combine_chunks(), self.sha256, skip_nulls=True)
        rows = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        return _matches(rows, place.take(pa.array(rows)).to_numpy().astype(np.int64), 0, np.ones(len(rows)))

    def _same_looks(self, rows: pa.Table) -> Matches:
        codes, known = _hashes(rows)
        places = np.flatnonzero(known)
        distance, image = np.zeros(len(places), np.int64), np.zeros(len(places), np.int64)
        for start in range(0, len(places), _QUERIES):
            some = slice(start, start + _QUERIES)
            nearest = self.hashes.search(codes[places[some]].view(np.uint8).reshape(-1, 8), 1)
            distance[some], image[some] = nearest[0][:, 0], nearest[1][:, 0]
        near = distance <= (self.options.distance or 0)
        return _matches(places[near], self.hashed[image[near]], 1, 1 - distance[near] / 64)

    def _same_meaning(self, vectors: pa.ChunkedArray) -> Matches:
        """FAISS's float32 products find the nearest; its cosine is then computed in float64, which is the same on any
        number of threads."""
        assert self.options.similarity is not None
        own, known = unit(vectors)
        places = np.flatnonzero(known)
        image, cosine = np.zeros(len(places), np.int64), np.full(len(places), -1.0)
        for start in range(0, len(places), _QUERIES):
            some = np.arange(start, min(start + _QUERIES, len(places)))
            product, nearest = self.cosines.search(own[places[some]], 1)
            image[some] = self.embedded[nearest[:, 0]]
            some = some[product[:, 0] >= self.options.similarity - _SLACK]
            pair = own[places[some]].astype(np.float64), self.vectors[image[some]].astype(np.float64)
            cosine[some] = np.einsum("nd,nd->n", *pair)
        near = cosine >= self.options.similarity - _EQUAL
        return _matches(places[near], image[near], 2, cosine[near].clip(max=1))


def _matches(row: np.ndarray, image: np.ndarray, method: int, similarity: np.ndarray) -> Matches:
    return Matches(row, image, np.full(len(row), method), similarity.astype(np.float32))


def _hashes(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [n], and bool [n]: which of them tell something. Where the entropy is not known the hash alone says it."""
    valid = rows["phash"].is_valid().to_numpy()
    codes = np.ascontiguousarray(pc.fill_null(rows["phash"], 0).to_numpy()).astype(np.uint64)
    entropy = pc.fill_null(rows["entropy"], 8.0).to_numpy()
    return codes, valid & telling(codes, entropy)


def unit(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, d] of length 1, and bool [n]: which of them are vectors at all, not null, NaN, infinite or 0."""
    values = column.combine_chunks()
    known = values.is_valid().to_numpy(zero_copy_only=False)
    flat = values.filter(pa.array(known)).flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    width = len(flat) // max(1, int(known.sum()))
    vectors = np.zeros((len(values), width), np.float32)
    vectors[known] = flat.reshape(-1, width) if width else 0
    known &= np.isfinite(vectors).all(axis=1)
    length = np.linalg.norm(np.where(known[:, None], vectors, 0), axis=1)
    known &= length > 0
    vectors[~known] = 0
    return vectors / np.where(known, length, 1)[:, None], known


def tables(
    uids: np.ndarray, found: Matches, names: pa.ChunkedArray, pictures: Mapping[int, str]
) -> tuple[pa.Table, pa.Table]:
    """The `duplicates` and the `contamination` table of what was found, by (dup_group, uid) and (uid, method).

    uids: bytes (S32) [m], of each match's row. names: of the evaluation set's images; pictures: of some, as data: URLs.
    A group are the pairs that are most like one image of the evaluation set, named by its smallest uid.
    """
    # each pair's best match first: the most similar, then the strictest method
    order = np.lexsort((found.image, found.method, -found.similarity, uids))
    _, first = np.unique(uids[order], return_index=True)
    best = order[first]  # in the order of uids, so that a group's first member is its smallest
    _, leader, group = np.unique(found.image[best], return_index=True, return_inverse=True)
    name = uids[best][leader[group]]
    by_group = np.lexsort((uids[best], name))
    duplicates = {
        "uid": _text(uids[best][by_group]),
        "dup_method": pa.array(["decontaminate"] * len(best), pa.string()),
        "dup_group": _text(name[by_group]),
        "similarity": found.similarity[best][by_group],
        "centroid_similarity": pa.nulls(len(best), pa.float32()),
    }
    order = np.lexsort((found.method, uids))
    pairs = {
        "uid": _text(uids[order]),
        "evaluation": names.take(pa.array(found.image[order])),
        "method": pa.array(METHODS).take(pa.array(found.method[order])),
        "similarity": found.similarity[order],
        "picture": pa.array([pictures.get(image) for image in found.image[order].tolist()], pa.string()),
    }
    return (
        conform(pa.table(duplicates), table_schema("duplicates")),
        conform(pa.table(pairs), table_schema("contamination")),
    )


def _text(uids: np.ndarray) -> pa.Array:
    return pa.array(uids).cast(pa.string())
