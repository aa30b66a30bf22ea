"""Decoded pictures in batches: a bounded number of them is in memory, however many there are."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from vlmdata.recipe import Evaluation
from vlmdata.train import data

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

T = TypeVar("T")


def batches(
    read: Callable[[int], T | None],
    uids: list[str],
    options: Evaluation,
    broken: set[str],
    task: str,
) -> Iterator[tuple[list[int], list[T]]]:
    """(places, their pictures) in order, `options.batch` at most; decoding goes on in threads ahead of the reader.

    read: the picture of a place, uint8 RGB [height, width, 3] (or a video's frames), or None where it cannot be
    decoded: that place is left out, and its uid added to `broken`.
    """
    n, size = len(uids), options.batch

    def decode(number: int) -> list[tuple[int, T | None]]:
        return [(place, read(place)) for place in range(number * size, min((number + 1) * size, n))]

    for number, found in enumerate(data.ahead(decode, range(-(-n // size)), options.workers)):
        for place, picture in found:
            if picture is None and uids[place] not in broken:
                broken.add(uids[place])
                log.warning("%r cannot be decoded and is left out (%d so far)", uids[place], len(broken))
        whole = [(place, picture) for place, picture in found if picture is not None]
        if whole:
            yield [place for place, _ in whole], [picture for _, picture in whole]
        done = min((number + 1) * size, n)
        progress.info("%s %d/%d", task, done, n, extra={"stage": task, "done": done, "total": n})


def encoded(
    encode: Callable[[list[T]], np.ndarray],
    read: Callable[[int], T | None],
    uids: list[str],
    options: Evaluation,
    broken: set[str],
    task: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The places whose picture can be decoded, int64 [n], and their vectors, float32 [n, d]. As `batches`."""
    places, vectors = list[int](), []
    for chosen, pictures in batches(read, uids, options, broken, task):
        places += chosen
        vectors.append(encode(pictures))
    return np.array(places, np.int64), np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)
