"""Perceptual hashes compared on workers: the groups that `dedup.perceptual` finds.

Rows meet twice: by a mixture of their hash's bits, where equal hashes find each other and one row stands for all, then
by the bits of each band, where near ones do. Where bits of a band may differ, a row visits the buckets that these lead
to besides its own. See `dedup.perceptual` for the method.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import pyarrow as pa

from vlmdata import layers
from vlmdata.dataset import Dataset
from vlmdata.dedup import perceptual
from vlmdata.dedup.components import Edges, stars
from vlmdata.dedup.perceptual import Bands
from vlmdata.ordered import by_bucket, share
from vlmdata.parts import Part, Table
from vlmdata.pipelines import joined, scattered
from vlmdata.pipelines.joined import Written
from vlmdata.pipelines.runner import shuffle
from vlmdata.recipe import PerceptualDedup, Runner

BUCKET = 200_000  # rows in a bucket, about
_MIXED = np.uint64(0x9E3779B97F4A7C15)  # odd, so that different hashes stay so: Fibonacci hashing (Knuth 1973, 6.4)
_MOST_DIGITS = 14  # 16,384 buckets a band
_ROWS = pa.schema([("place", pa.int64()), ("uid", joined.UID), ("phash", pa.uint64())])


def groups(
    dataset: Dataset, runner: Runner, options: PerceptualDedup, table: Table, in_force: Mapping[str, pa.BooleanArray]
) -> tuple[pa.Table, list[Written]]:
    """The `duplicates` table of all rows in force, and what was written for it: where SemDeDup's rule is asked for with
    the pairs."""
    buckets, pairs = max(1, table.rows // BUCKET), options.groups == "semdedup"
    elements = [(number, part, in_force.get(part.name)) for number, part in enumerate(table.parts)]
    scatter, distinct = _ByHash(dataset.absolute, buckets), _Distinct(dataset.absolute, buckets, pairs)
    found = shuffle(dataset, "hashes", scatter, distinct, elements, runner)
    written = [Written(*one) for one, _, _ in found]
    count = sum(rows for _, _, rows in found)
    if options.distance and count > 1:
        _, sample, rows = max(found, key=lambda one: one[2])
        hashes = scattered.read(dataset, sample, 0)["phash"].to_numpy()
        cut = perceptual.bands(hashes, options.distance, count / rows)
        digits = _digits(cut, count)
        by_band = _ByBand(dataset.absolute, cut, digits)
        compare = _Compare(dataset.absolute, cut, digits, options.distance, buckets, pairs)
        results = shuffle(dataset, "bands", by_band, compare, [path for _, path, _ in found], runner)
        written += [Written(*one) for one in results]
    return joined.groups(dataset, runner, options.kind, [one.joined for one in written], buckets), written


@dataclass(frozen=True)
class _ByHash:
    """The rows of a part that can be compared, to the buckets of their hashes."""

    dataset: str
    buckets: int

    def __call__(self, element: tuple[int, Part, pa.BooleanArray | None]) -> list[tuple[int, str]]:
        number, part, in_force = element
        dataset = Dataset(self.dataset)
        rows = layers.read_in_force(dataset, part, ["uid", "phash", "entropy"], in_force)
        rows = rows.drop_null()
        rows = rows.filter(pa.array(perceptual.telling(rows["phash"].to_numpy(), rows["entropy"].to_numpy())))
        hashes = rows["phash"].to_numpy()
        uid = joined.binary(rows["uid"].to_numpy().astype("S32"))
        sent = pa.table([(number << 32) + np.arange(rows.num_rows), uid, hashes], schema=_ROWS)
        bucket = share(hashes * _MIXED >> np.uint64(32), self.buckets)
        return scattered.send(dataset, f"{joined.FOLDER}/hashes-{number}.arrow", sent, bucket, self.buckets)


@dataclass(frozen=True)
class _Distinct:
    """What joins the rows of one hash, the first row of each, and how many those are."""

    dataset: str
    buckets: int
    pairs: bool

    def __call__(self, element: tuple[int, list[str]]) -> tuple[Written, str, int]:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        rows = scattered.gather(dataset, paths, bucket).sort_by("place")
        _, first, codes = np.unique(rows["phash"].to_numpy(), return_index=True, return_inverse=True)
        written = joined.write(dataset, f"hashes-{bucket}", rows, iter([stars(codes)]), self.buckets, self.pairs)
        path = f"{joined.FOLDER}/distinct-{bucket}.arrow"
        scattered.write(dataset, path, [rows.take(pa.array(first))], _ROWS)
        return written, path, len(first)


@dataclass(frozen=True)
class _ByBand:
    """Each row to the bucket of its own of every band, and to those that its bits lead to where some of them differ.

    A bucket's number is the band's, then its first `digits`.
    """

    dataset: str
    cut: Bands
    digits: int

    def __call__(self, path: str) -> list[tuple[int, str]]:
        dataset = Dataset(self.dataset)
        rows = scattered.read(dataset, path, 0)
        hashes = rows["phash"].to_numpy()
        flips = _flips(self.cut.within, self.digits)
        sent: list[int] = []

        def tables() -> Iterator[pa.Table]:
            for number, band in enumerate(self.cut.bands):
                digits = perceptual.bits(hashes, band) >> band.width - self.digits
                own = by_bucket(rows, digits, 1 << self.digits)
                for bucket in range(1 << self.digits):
                    came = [own[bucket ^ flip] for flip in flips]
                    home = np.repeat(np.array(flips) == 0, [some.num_rows for some in came])
                    if len(home):
                        sent.append((number << self.digits) + bucket)
                    yield pa.concat_tables(came).append_column("home", pa.array(home))

        path = path.replace("/distinct-", "/bands-")
        scattered.write(dataset, path, tables(), _ROWS.append(pa.field("home", pa.bool_())))
        return [(bucket, path) for bucket in sent]


@dataclass(frozen=True)
class _Compare:
    """What joins the near hashes of a bucket."""

    dataset: str
    cut: Bands
    digits: int
    distance: int
    buckets: int
    pairs: bool

    def __call__(self, element: tuple[int, list[str]]) -> Written:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        rows = scattered.gather(dataset, paths, bucket).sort_by("place")
        edges = self._edges(rows["phash"].to_numpy(), rows["home"].to_numpy(), bucket >> self.digits)
        return joined.write(dataset, f"bands-{bucket}", rows, edges, self.buckets, self.pairs)

    def _edges(self, hashes: np.ndarray, home: np.ndarray, band: int) -> Iterator[Edges]:
        for a, b, differing in perceptual.in_band(hashes, self.cut, band, self.distance, home):
            # Of two rows that visit each other the one with the smaller hash is the host.
            smaller = np.where(hashes[a] < hashes[b], a, b)
            once = home[smaller]
            i, j = np.minimum(a, b)[once].astype(np.int64), np.maximum(a, b)[once].astype(np.int64)
            yield Edges(i, j, (1 - differing[once] / 64).astype(np.float32))


def _digits(cut: Bands, rows: int) -> int:
    """How many of a band's bits name a bucket, so that it has about BUCKET rows, those that visit it too.

    Where many bits of a band may differ, most buckets are visited by most rows: then the fewest rows that can be had.
    """
    most = min(_MOST_DIGITS, *(band.width for band in cut.bands))
    sizes = [
        rows * sum(comb(digits, count) for count in range(cut.within + 1)) / 2**digits for digits in range(most + 1)
    ]
    return next((digits for digits, size in enumerate(sizes) if size <= BUCKET), int(np.argmin(sizes)))


def _flips(within: int, digits: int) -> list[int]:
    """The numbers of `digits` bits of which so many at most are set, 0 first."""
    return [sum(1 << bit for bit in bits) for count in range(within + 1) for bits in combinations(range(digits), count)]
