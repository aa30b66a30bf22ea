"""Balancing as MetaCLIP describes it (Xu et al. 2023, "Demystifying CLIP Data", section 3 and algorithm 1), written
from the paper: frequent entries are sampled down to about `limit` matches each, rare ones are kept whole.

A caption matches an entry when it holds the entry's words as whole words, one after the other (`entries.normalise`). An
entry with more than `limit` matches gets the probability limit / matches, any other 1; a pair stays when any of its
entries draws it. As in the paper a pair without an entry is dropped, unless the recipe says `unmatched: keep`.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import ahocorasick_rs
import numpy as np
import pyarrow as pa

from vlmdata.select.entries import normalise

MATCHES = pa.schema([("row", pa.int32()), ("entry", pa.int32())])
# What a snapshot records: by it new pairs are judged later.
ENTRIES = pa.schema(
    [("entry", pa.string()), ("matches", pa.int64()), ("kept", pa.int64()), ("probability", pa.float64())]
)
LARGEST = 20
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Mass:
    """What a balancing came to, in matches (a caption and an entry in it): of head entries (more than `limit` matches
    before) and of the others, the tail."""

    entries: int
    matched: int
    head_entries: int
    head_before: int
    tail_before: int
    head_after: int
    tail_after: int
    pairs: int
    unmatched: int
    kept: int
    largest: list[dict[str, Any]]


def automaton(entries: list[str]) -> ahocorasick_rs.BytesAhoCorasick:
    """What finds the entries (tidied) in normalised captions; half a million take some 2 s and 60 MB."""
    return ahocorasick_rs.BytesAhoCorasick([f" {entry} ".encode() for entry in entries])


def match(found_by: ahocorasick_rs.BytesAhoCorasick, captions: pa.Array | pa.ChunkedArray) -> pa.Table:
    """MATCHES: each caption's row with each entry in it, once, in the order of (row, entry)."""
    find = found_by.find_matches_as_indexes
    # Overlapping, since neighbouring entries share the blank between them.
    found = [
        [hit[0] for hit in find(caption, overlapping=True)]
        for caption in normalise(captions).cast(pa.binary()).to_pylist()
    ]
    rows = np.repeat(np.arange(len(found), dtype=np.int64), [len(hits) for hits in found])
    entries = np.array([hit for hits in found for hit in hits], np.int64)
    together = np.unique(rows << 32 | entries)
    columns = [pa.array(part.astype(np.int32)) for part in (together >> 32, together & 0xFFFFFFFF)]
    return pa.Table.from_arrays(columns, schema=MATCHES)


def count(matches: pa.Table, entries: int) -> np.ndarray:
    """int64 [entries]: how many of a part's MATCHES each of so many entries has."""
    return np.bincount(matches["entry"].to_numpy(), minlength=entries)


def probabilities(counts: np.ndarray, limit: int) -> np.ndarray:
    """float64 [entries]: limit / count where an entry has more than `limit` matches, else 1."""
    return np.where(counts > limit, limit / np.maximum(counts, 1), 1.0)


def keys(texts: list[str]) -> np.ndarray:
    """uint64 [n]: a hash of each text (BLAKE2b), which `draw` mixes."""
    whole = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(whole, "<u8")


def draw(matches: pa.Table, uids: np.ndarray, entries: np.ndarray, probability: np.ndarray, seed: int) -> np.ndarray:
    """bool [matches]: whether the entry draws the pair.

    uids: uint64 [rows], entries: uint64 [entries], both from `keys`. The draw depends on seed, uid and entry alone: two
    rounds of SplitMix64's finalizer (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators") over them
    give 53 bits, a uniform number in [0, 1) that must be below the probability.
    """
    rows, chosen = matches["row"].to_numpy(), matches["entry"].to_numpy()
    seeded = keys([f"balance {seed}"])[0]
    mixed = _mix(_mix(uids[rows] ^ seeded) ^ entries[chosen])
    return (mixed >> np.uint64(11)) * 2.0**-53 < probability[chosen]


def keep(matches: pa.Table, drawn: np.ndarray, rows: int, unmatched: str) -> np.ndarray:
    """bool [rows]: the pairs that any entry draws, and with `unmatched: keep` those that match none."""
    kept = np.zeros(rows, bool)
    kept[matches["row"].to_numpy()[drawn]] = True
    if unmatched == "keep":
        kept |= ~matched_rows(matches, rows)
    return kept


def matched_rows(matches: pa.Table, rows: int) -> np.ndarray:
    """bool [rows]: the rows with a match."""
    matched = np.zeros(rows, bool)
    matched[matches["row"].to_numpy()] = True
    return matched


def mass(
    entries: list[str], before: np.ndarray, after: np.ndarray, limit: int, pairs: int, unmatched: int, kept: int
) -> Mass:
    """before, after: int64 [entries], the matches of each entry among all pairs that came and among those kept."""
    head = before > limit
    largest = np.argsort(-before, kind="stable")[:LARGEST]
    return Mass(
        len(entries),
        int((before > 0).sum()),
        int(head.sum()),
        int(before[head].sum()),
        int(before[~head].sum()),
        int(after[head].sum()),
        int(after[~head].sum()),
        pairs,
        unmatched,
        kept,
        [{"entry": entries[n], "matches": int(before[n]), "kept": int(after[n])} for n in largest if before[n]],
    )


def table(entries: list[str], before: np.ndarray, after: np.ndarray, probability: np.ndarray) -> pa.Table:
    """ENTRIES: every entry with its matches before and after, and its probability."""
    return pa.Table.from_arrays([pa.array(entries), before, after, probability], schema=ENTRIES)


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
