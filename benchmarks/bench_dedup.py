"""Grouping near-duplicates among 100 thousand and a million rows: seconds, memory, recall, and what is compared.

python benchmarks/bench_dedup.py [--rows 100000 1000000] [--methods semantic perceptual] [--threads 2]

Rows are the packages' images and more like them, see dedup_data.py. Each run is a process of its own, whose memory is
what it holds itself, and with the pages of the files that it maps. Recall: of the pairs at the threshold that QUERIES
random rows have, found by comparing them with every row; those beyond the threshold must be none. Compared: distances
computed, of training, of finding each row's partitions, and of rows with rows (for hashes: candidates). Perceptual
hashes also by FAISS's binary indexes in the same run, searched with so many rows that it ends: the seconds are
those of all rows at that speed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dedup_data
import numpy as np

SIMILARITY = 0.95
DISTANCE = 4
QUERIES = 4000
PEER_QUERIES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--methods", nargs="+", default=["semantic", "perceptual"], choices=["semantic", "perceptual"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(*given.child), default=int))
        return
    if not dedup_data.MEASURED.exists():
        dedup_data.measure()
    threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    for method in given.methods:
        before: dict[str, Any] = {}
        for rows in given.rows:
            with tempfile.TemporaryDirectory() as folder:
                if method == "semantic":
                    dedup_data.embeddings(rows, Path(folder, "rows.npy"))
                else:
                    hashes, entropy = dedup_data.hashes(rows)
                    np.save(Path(folder, "rows.npy"), np.stack([hashes, entropy.astype(np.float64).view(np.uint64)]))
                run = subprocess.run(
                    [sys.executable, __file__, "--child", method, folder],
                    env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True,
                )  # fmt: skip
            told = json.loads(run.stdout)
            compared = {name: int(count) for name, count in told.pop("compared").items()}
            total = sum(compared.values())
            print(
                f"{method} {rows:,} rows: "
                + ", ".join(f"{name} {value:,}" for name, value in told.items())
                + f", compared {total:.3g} ("
                + ", ".join(f"{name} {count:.3g}" for name, count in compared.items())
                + ")"
                + (f", {total / before['total']:.1f} times those of {before['rows']:,} rows" if before else ""),
                flush=True,
            )
            before = {"rows": rows, "total": total}


def child(method: str, folder: str) -> dict[str, Any]:
    """One run, measured."""
    from vlmdata.dedup.components import Edges, unite

    values = np.load(Path(folder, "rows.npy"), mmap_mode="r")
    rows = values.shape[0] if method == "semantic" else values.shape[1]
    queries = np.sort(np.random.default_rng(1).choice(rows, QUERIES, replace=False))
    first = _first(values, method)  # equal rows are joined to their first alone
    asked = np.zeros(rows, bool)
    asked[first[queries]] = True
    blocks = (semantic if method == "semantic" else perceptual)(values, compared := Counter())
    found: list[Edges] = []

    def watched() -> Any:
        for block in blocks:
            mine = asked[block.i] | asked[block.j]
            found.append(Edges(block.i[mine], block.j[mine], block.similarity[mine]))
            yield block

    own, ended = [0], threading.Event()
    threading.Thread(target=_watch, args=(own, ended), daemon=True).start()
    start = time.monotonic()
    labels, _ = unite(rows, watched())
    seconds = time.monotonic() - start
    ended.set()
    told = {
        "seconds": round(seconds, 1),
        "own memory MB": own[0] >> 10,
        "with mapped files MB": _status("VmHWM") >> 10,
        "groups": int((np.bincount(labels) > 1).sum()),
    }
    pairs = {(int(i), int(j)) for block in found for i, j in zip(block.i, block.j, strict=True)}
    exact = _semantic_exact(values, queries) if method == "semantic" else _perceptual_exact(values, queries)
    wanted = {(min(first[i], first[j]), max(first[i], first[j])) for i, j in exact if first[i] != first[j]}
    told |= {
        "pairs sampled": len(wanted),
        "recall": round(len(wanted & pairs) / len(wanted), 5),
        "beyond the threshold": sum(first[i] != first[j] for i, j in pairs - wanted),
    }
    if method == "perceptual":
        told |= peers(values)
    return {**told, "compared": compared}


def semantic(vectors: np.ndarray, compared: Counter[str]) -> Any:
    """Edges, counting every distance computed."""
    import faiss

    from vlmdata.dedup import partitions
    from vlmdata.dedup import semantic as ours

    nearest_one, nearest, products = partitions.nearest_one, partitions.nearest, ours._products

    def trained(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        compared["training"] += len(rows) * len(centroids)
        return nearest_one(rows, centroids)

    def assigned(made: partitions.Partitions, blocks: Any) -> np.ndarray:
        faiss.cvar.indexIVF_stats.reset()
        found = nearest(made, blocks)
        compared["partitions"] += faiss.cvar.indexIVF_stats.ndis + len(found) * len(made.cells)
        return found

    def product(rows: np.ndarray, one: np.ndarray, two: np.ndarray, similarity: float) -> Any:
        compared["rows"] += len(one) * len(two)
        return products(rows, one, two, similarity)

    partitions.nearest_one, partitions.nearest, ours._products = trained, assigned, product
    return ours.pairs(vectors, SIMILARITY)


def perceptual(values: np.ndarray, compared: Counter[str]) -> Any:
    """Edges, counting the candidates that are compared."""
    from vlmdata.dedup import perceptual as ours

    candidates = ours._candidates

    def counted(*arguments: Any) -> Any:
        for a, b in candidates(*arguments):
            compared["candidates"] += len(a)
            yield a, b

    ours._candidates = counted
    hashes, entropy = np.asarray(values[0]), np.asarray(values[1]).view(np.float64)
    return ours.pairs(hashes, DISTANCE, entropy)


def peers(values: np.ndarray) -> dict[str, Any]:
    """FAISS's binary indexes: building, then searching as many rows as it takes to know the speed."""
    import faiss

    from vlmdata.dedup.perceptual import MIN_BITS

    distinct = np.unique(values[0])
    distinct = distinct[np.bitwise_count(distinct) >= MIN_BITS]
    codes = distinct.view(np.uint8).reshape(-1, 8)
    flat, multi = faiss.IndexBinaryFlat(64), faiss.IndexBinaryMultiHash(64, 3, 21)
    multi.nflip = 1
    asked = codes[np.random.default_rng(2).choice(len(codes), min(len(codes), PEER_QUERIES), replace=False)]
    told: dict[str, Any] = {}
    counts = []
    for name, index in (("flat", flat), ("multi-hash", multi)):
        start = time.monotonic()
        index.add(codes)
        built = time.monotonic() - start
        share = len(codes) / len(asked)
        start = time.monotonic()
        limits, _, _ = index.range_search(asked, DISTANCE + 1)
        told[f"FAISS {name} seconds"] = round(built + (time.monotonic() - start) * share, 1)
        counts.append(int(limits[-1]))
    return {**told, "FAISS multi-hash recall": round(counts[1] / counts[0], 5)}


def _semantic_exact(vectors: np.ndarray, queries: np.ndarray) -> set[tuple[int, int]]:
    left = vectors[queries].astype(np.float32)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    wanted = set()
    for start in range(0, len(vectors), 5_000):
        right = vectors[start : start + 5_000].astype(np.float32)
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        for a, b in zip(*np.nonzero(left @ right.T >= SIMILARITY), strict=True):
            wanted.add((int(queries[a]), start + int(b)))
    return {(min(p), max(p)) for p in wanted if p[0] != p[1]}


def _perceptual_exact(values: np.ndarray, queries: np.ndarray) -> set[tuple[int, int]]:
    from vlmdata.dedup.perceptual import MIN_BITS, MIN_ENTROPY

    hashes = np.asarray(values[0])
    telling = (np.bitwise_count(hashes) >= MIN_BITS) & (np.asarray(values[1]).view(np.float64) >= MIN_ENTROPY)
    wanted = set()
    for query in queries[telling[queries]]:
        near = (np.bitwise_count(hashes ^ hashes[query]) <= DISTANCE) & telling
        wanted |= {(min(query, other), max(query, other)) for other in np.flatnonzero(near).tolist() if other != query}
    return {(int(i), int(j)) for i, j in wanted}


def _first(values: np.ndarray, method: str) -> np.ndarray:
    """int64 [n]: the first row that each row is equal to."""
    if method == "semantic":
        from vlmdata.dedup.semantic import distinct

        first = np.arange(len(values))
        same = distinct(values)[0]
        first[same.j] = same.i
        return first
    _, rows, codes = np.unique(values[0], return_index=True, return_inverse=True)
    return rows[codes]


def _watch(own: list[int], ended: threading.Event) -> None:
    while not ended.wait(0.02):
        own[0] = max(own[0], _status("RssAnon"))


def _status(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main()
