"""What a worker does for the stage `download`: a part whole, or the rows of one bucket of hosts in several parts.

In one process all parts share what is known of hosts, and each is fetched whole. Where there are several processes, a
host's URLs go to one of them: the rows of a group of parts are put into buckets (`Scattered`), each bucket is fetched
(`Bucketed`), its images into files of its own under `WORK`, and then every part is put together from them in the order
of `pairs` (`Assembled`): bytes are copied, nothing is encoded again, and the part is the same as if it had been fetched
whole.
"""

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.dataset import Dataset
from vlmdata.download import Terms, download_part, forgotten, known, lists, optout
from vlmdata.download.buckets import Bucket, buckets
from vlmdata.download.outage import AT_LEAST, Progress, Tally, struck
from vlmdata.errors import DataError, OutageError
from vlmdata.parts import Part, table_folder
from vlmdata.pipelines import scattered
from vlmdata.recipe import Consent, Download
from vlmdata.schemas import table_schema

WORK = "work_download"
FETCHED = f"{WORK}/fetched"
_IMAGES = table_schema("images")
_OBSERVATIONS = table_schema("observations")
_FETCHED = pa.schema([*_IMAGES, *[field for field in _OBSERVATIONS if field.name != "uid"]])
# Of a bucket's URLs. Above it, that a host is down says nothing of this machine.
_ONE_HOST = 0.05
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Work:
    """What is needed for any part.

    optout, known: where workers find the user's lists. retried: layer -> the classes that its rows had ended in before.
    """

    dataset: str
    guard: Callable[[], None]
    key: str
    options: Download
    consent: Consent
    roots: dict[str, str]
    optout: str
    known: str
    known_key: str | None
    retried: dict[int, frozenset[str]]
    run: str

    def open(self) -> Dataset:
        dataset = Dataset(self.dataset)
        dataset.guard = self.guard
        return dataset

    def terms(self, bucket: Bucket) -> Terms:
        return Terms(
            self.options,
            self.consent,
            self.roots,
            optout.OptOut(lists.load(self.dataset, self.optout)),
            known.Known(lists.load(self.dataset, self.known), self.consent.known_distance),
            forgotten.load(Dataset(self.dataset)),
            bucket,
        )

    def progress(self, layer: int, urls: pa.ChunkedArray, most: float = 1) -> Progress:
        """What is to be told of each URL; see `Progress`."""
        expected = self.retried.get(layer, frozenset())
        return Progress(
            self.options.stop_share, expected, urls.drop_null().to_pylist(), 2 * self.options.concurrency, most
        )

    def there(self, dataset: Dataset, pairs: Part) -> dict[str, Any] | None:
        """What became of a part that is done."""
        found = committed(dataset, self.key, pairs)
        return {"images": asdict(found[0]), "observations": asdict(found[1])} if found else None

    def stored(self, pairs: Part) -> str:
        """The part's tar."""
        return f"{table_folder('images', self.key)}/{pairs.name}.tar"

    def judge(self, pairs: Part, images: pa.Table) -> None:
        """Raise OutageError where nearly all of the latest rows of several parts failed in one way."""
        with _latest_lock:
            expected = self.retried.get(pairs.layer, frozenset())
            tally = _latest.setdefault((self.run, pairs.layer), Tally(self.options.stop_share, expected))
            tally.add_part(images)
            tally.check()
            if tally.tried >= AT_LEAST:
                del _latest[self.run, pairs.layer]

    def commit(
        self, dataset: Dataset, pairs: Part, tar: Path, images: pa.Table, observations: pa.Table
    ) -> dict[str, Any]:
        """Commit a part whose images are in `tar`."""
        if images.num_rows != pairs.rows:
            raise DataError(f"{pairs.path}: {pairs.rows} rows in, {images.num_rows} out")
        self.go_on(dataset)
        dataset.guard()
        inputs = {pairs.path: pairs.sha256}
        file = dataset.commit(tar, self.stored(pairs))
        observed = dataset.write_part("observations", self.key, pairs.name, observations, inputs)
        part = dataset.write_part("images", self.key, pairs.name, images, inputs, also=(file,))
        if self.known_key:
            dataset.write_part("known", self.known_key, pairs.name, known.fresh(images), {part.path: part.sha256})
        return {"images": asdict(part), "observations": asdict(observed)}

    @contextmanager
    def stopping(self, dataset: Dataset) -> Iterator[None]:
        """An OutageError that is raised in the block stops all workers."""
        self.go_on(dataset)
        try:
            yield
        except OutageError as error:
            dataset.write_json(self._stop, str(error))
            raise

    def go_on(self, dataset: Dataset) -> None:
        """Raise OutageError where a worker, here or elsewhere, has found one."""
        if dataset.exists(self._stop):
            raise OutageError(dataset.read_json(self._stop))

    @property
    def _stop(self) -> str:
        return f"work/download-{self.run}-stop.json"


def committed(dataset: Dataset, key: str, pairs: Part) -> tuple[Part, Part] | None:
    """A part's images and observations, where it is done."""
    inputs = {pairs.path: pairs.sha256}
    images = dataset.current_part("images", key, pairs.name, inputs)
    observed = dataset.current_part("observations", key, pairs.name, inputs)
    return (images, observed) if images and observed else None


# The outcomes of small parts in this process since the last look, by run and layer.
_latest: dict[tuple[str, int], Tally] = {}
_latest_lock = threading.Lock()


def forget() -> None:
    """Drop what is known of parts: the run is over."""
    with _latest_lock:
        _latest.clear()


@dataclass(frozen=True)
class There:
    """What became of a part, None where it is not done."""

    work: Work

    def __call__(self, pairs: Part) -> dict[str, Any] | None:
        return self.work.there(self.work.open(), pairs)


@dataclass(frozen=True)
class Whole:
    """A part, fetched at once."""

    work: Work

    def __call__(self, pairs: Part) -> dict[str, Any]:
        dataset = self.work.open()
        there = self.work.there(dataset, pairs)
        if there:
            return there
        with dataset.spool() as folder:
            with self.work.stopping(dataset):
                rows = dataset.read_part(pairs)
                told = self.work.progress(pairs.layer, rows["url"]).told
                tar = folder / "images.tar"
                terms = self.work.terms(Bucket())
                images, observations = download_part(rows, tar, self.work.stored(pairs), terms, told)
                self.work.judge(pairs, images)
            return self.work.commit(dataset, pairs, tar, images, observations)


@dataclass(frozen=True)
class Scattered:
    """A part's rows in a file with a batch for each of `of` buckets: who fetches one reads only its own rows."""

    work: Work
    of: int

    def __call__(self, pairs: Part) -> None:
        dataset = self.work.open()
        if dataset.exists(_scattered(pairs.name)):
            return
        rows = dataset.read_part(pairs)
        scattered.send(dataset, _scattered(pairs.name), rows, buckets(rows["url"], self.of), self.of)


@dataclass(frozen=True)
class Bucketed:
    """The rows of one bucket in a group of parts of one layer, fetched and stored aside.

    names, layer: of the parts. most: rows that are fetched at once and held in memory, but of one part at least.
    of: buckets. workers: processes that fetch one each. Returns (path, place of its first part, parts) of each file;
    batch n has the rows of its part n, in the order of `pairs`, and `stored_tar` is where their images are. A file is
    committed before the next is begun.
    """

    work: Work
    names: tuple[str, ...]
    layer: int
    most: int
    of: int
    workers: int

    def __call__(self, number: int) -> list[tuple[str, int, int]]:
        dataset = self.work.open()
        files = []
        for first, chunk in self._chunks(dataset, number):
            path = f"{FETCHED}/{number}-{first}.arrow"
            if not dataset.exists(path):
                self._fetch(dataset, number, chunk, path)
            files.append((path, first, len(chunk)))
        return files

    def _chunks(self, dataset: Dataset, number: int) -> Iterator[tuple[int, list[pa.Table]]]:
        """(place of the first part, the bucket's rows in it and in those that follow)."""
        chunk: list[pa.Table] = []
        for place, name in enumerate(self.names):
            rows = scattered.read(dataset, _scattered(name), number)
            if chunk and rows.num_rows + sum(table.num_rows for table in chunk) > self.most:
                yield place - len(chunk), chunk
                chunk = []
            chunk.append(rows)
        yield len(self.names) - len(chunk), chunk

    def _fetch(self, dataset: Dataset, number: int, chunk: list[pa.Table], path: str) -> None:
        from vlmdata.download import images

        terms = self.work.terms(Bucket(number, self.of, self.workers))
        urls = pa.concat_tables(table.select(["url"]) for table in chunk)["url"]
        progress = self.work.progress(self.layer, urls, _ONE_HOST)
        with dataset.spool() as folder, tempfile.TemporaryFile(dir=folder) as spool:
            with self.work.stopping(dataset):
                fetched = images.fetch(chunk, spool, terms, progress.told)
                progress.check()
            stored = f"{path}-{uuid.uuid4().hex}.tar"  # whoever else fetches this bucket, these belong together
            with images.open_tar(folder / "tar") as tar, pa.ipc.new_file(folder / "arrow", _FETCHED) as writer:
                for rows, observations in fetched:
                    packed = images.pack(rows, spool, tar, stored)
                    times = observations.select([name for name in _FETCHED.names if name not in packed.column_names])
                    writer.write_batch(scattered.batch(pa.table([*packed.columns, *times.columns], schema=_FETCHED)))
            dataset.guard()
            dataset.commit(folder / "tar", stored)
            dataset.commit(folder / "arrow", path)


def struck_buckets(dataset: Dataset, work: Work, layer: int) -> list[str]:
    """The files of buckets that an outage has struck."""

    def ended() -> Iterator[tuple[str, pa.Table, frozenset[str]]]:
        for path in dataset.files(FETCHED):
            if path.endswith(".arrow"):
                with dataset.open(path) as file, pa.ipc.open_file(file) as reader:
                    rows = reader.read_all().select(["download_status", "error", "fetched_at"])
                yield path, rows, work.retried.get(layer, frozenset())

    return struck(ended(), work.options.stop_share, work.options.deadline)


@dataclass(frozen=True)
class Assembled:
    """A part, put together from the files of its buckets: what `Bucketed` returned, and the place of the part."""

    work: Work
    files: list[tuple[str, int, int]]

    def __call__(self, element: tuple[int, Part]) -> dict[str, Any]:
        from vlmdata.download import images

        place, pairs = element
        dataset = self.work.open()
        there = self.work.there(dataset, pairs)
        if there:
            return there
        with dataset.spool() as folder, tempfile.TemporaryFile(dir=folder) as spool:
            its = [(path, place - first) for path, first, parts in self.files if first <= place < first + parts]
            rows = pa.concat_tables(_bring(dataset, path, batch, spool) for path, batch in its)
            order = pc.index_in(dataset.read_part(pairs, ["uid"])["uid"], value_set=rows["uid"].combine_chunks())
            if order.null_count:
                raise DataError(f"{pairs.path}: {order.null_count} rows are in no bucket's file (a bug)")
            rows = rows.take(order)
            with self.work.stopping(dataset):
                self.work.judge(pairs, rows)
            with images.open_tar(folder / "images.tar") as tar:
                packed = images.pack(rows.select(_IMAGES.names), spool, tar, self.work.stored(pairs))
            observations = rows.select(_OBSERVATIONS.names)
            return self.work.commit(dataset, pairs, folder / "images.tar", packed, observations)


def _bring(dataset: Dataset, path: str, batch: int, spool: IO[bytes]) -> pa.Table:
    """A part's rows in the file of one bucket; their images, which lie there side by side, are added to the spool."""
    rows = scattered.read(dataset, path, batch)
    first = pc.min(rows["offset"]).as_py()
    if first is None:
        return rows
    last = pc.max(pc.add(rows["offset"], rows["length"])).as_py()
    added = pa.scalar(spool.seek(0, 2) - first, pa.int64())
    with dataset.open(pc.max(rows["stored_tar"]).as_py()) as tar:
        tar.seek(first)
        for start in range(first, last, _CHUNK):
            spool.write(tar.read(min(_CHUNK, last - start)))
    column = rows.schema.get_field_index("offset")
    return rows.set_column(column, rows.schema.field(column), pc.add(rows["offset"], added))


def _scattered(name: str) -> str:
    return f"{WORK}/pairs/{name}.arrow"
