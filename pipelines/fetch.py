"""What a worker does for the stage `download`: a part whole, or the rows of one bucket of hosts in several parts.

In one process all parts share what is known of hosts, and each is fetched whole. Where there are several processes, a
host's URLs go to one of them: a group of parts is fetched bucket by bucket (`Bucketed`), the images of each into files
of its own under `WORK`, and then every part is put together from them in the order of `pairs` (`Assembled`): bytes are
copied, nothing is encoded again, and the part is the same as if it had been fetched whole.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.dataset import Dataset, Part, table_folder
from vlmdata.download import Terms, known, lists, optout
from vlmdata.download.buckets import Bucket, buckets
from vlmdata.download.outage import AT_LEAST, Progress, Tally
from vlmdata.errors import DataError, OutageError
from vlmdata.recipe import Consent, Download
from vlmdata.schemas import table_schema

WORK = "work_download"
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
    key: str
    options: Download
    consent: Consent
    roots: dict[str, str]
    optout: str
    known: str
    known_key: str | None
    retried: dict[int, frozenset[str]]
    run: str

    def terms(self, bucket: Bucket) -> Terms:
        return Terms(
            self.options,
            self.consent,
            self.roots,
            optout.OptOut(lists.load(self.dataset, self.optout)),
            known.Known(lists.load(self.dataset, self.known), self.consent.known_distance),
            bucket,
        )

    def progress(self, layer: int, urls: pa.ChunkedArray, most: float = 1) -> Progress:
        """What is to be told of each URL; see `Progress`."""
        expected = self.retried.get(layer, frozenset())
        return Progress(self.options.stop_share, expected, urls.to_pylist(), 2 * self.options.concurrency, most)

    def there(self, dataset: Dataset, pairs: Part) -> dict[str, Any] | None:
        """What became of a part that is done."""
        inputs = {pairs.path: pairs.sha256}
        images = dataset.current_part("images", self.key, pairs.name, inputs)
        observed = dataset.current_part("observations", self.key, pairs.name, inputs)
        return {"images": asdict(images), "observations": asdict(observed)} if images and observed else None

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
        return self.work.there(Dataset(self.work.dataset), pairs)


@dataclass(frozen=True)
class Whole:
    """A part, fetched at once."""

    work: Work

    def __call__(self, pairs: Part) -> dict[str, Any]:
        from vlmdata.download import download_part

        dataset = Dataset(self.work.dataset)
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
class Bucketed:
    """The rows of one bucket in a group of parts of one layer, fetched and stored aside.

    of: buckets. workers: processes that fetch one each. Returns (path, names of the parts) of each file; batch n of
    `<path>.arrow` has the rows of its part n, in the order of `pairs`, and their images are in `<path>.tar`. What is
    held in memory are the rows of two parts at most, and of the one that is being read. A file is committed before the
    next is begun.
    """

    work: Work
    of: int
    workers: int

    def __call__(self, element: tuple[int, list[Part]]) -> list[tuple[str, list[str]]]:
        number, parts = element
        dataset = Dataset(self.work.dataset)
        files = []
        for chunk in self._chunks(dataset, number, parts):
            path = f"{WORK}/{number}-{chunk[0][0].name}"
            if not dataset.exists(f"{path}.arrow"):
                self._fetch(dataset, number, chunk, path)
            files.append((path, [part.name for part, _ in chunk]))
        return files

    def _chunks(self, dataset: Dataset, number: int, parts: list[Part]) -> Iterator[list[tuple[Part, pa.Table]]]:
        """The parts' rows of the bucket, so many parts at a time that a chunk is no larger than two parts are."""
        chunk: list[tuple[Part, pa.Table]] = []
        most = 2 * max(part.rows for part in parts)
        for part in parts:
            rows = dataset.read_part(part)
            rows = rows.filter(pa.array(buckets(rows["url"], self.of) == number)).combine_chunks()
            if chunk and rows.num_rows + sum(held.num_rows for _, held in chunk) > most:
                yield chunk
                chunk = []
            if rows.num_rows:
                chunk.append((part, rows))
        if chunk:
            yield chunk

    def _fetch(self, dataset: Dataset, number: int, chunk: list[tuple[Part, pa.Table]], path: str) -> None:
        from vlmdata.download import images

        tables = [rows for _, rows in chunk]
        terms = self.work.terms(Bucket(number, self.of, self.workers))
        urls = pa.concat_tables(table.select(["url"]) for table in tables)["url"]
        progress = self.work.progress(chunk[0][0].layer, urls, _ONE_HOST)
        with dataset.spool() as folder, tempfile.TemporaryFile(dir=folder) as spool:
            with self.work.stopping(dataset):
                fetched = images.fetch(tables, spool, terms, progress.told)
            with images.open_tar(folder / "tar") as tar, pa.ipc.new_file(folder / "arrow", _FETCHED) as writer:
                for rows, observations in fetched:
                    packed = images.pack(rows, spool, tar, "")
                    times = observations.select([name for name in _FETCHED.names if name not in packed.column_names])
                    columns = [*packed.columns, *times.columns]
                    (batch,) = pa.table(columns, schema=_FETCHED).combine_chunks().to_batches()
                    writer.write_batch(batch)
            dataset.commit(folder / "tar", f"{path}.tar")
            dataset.commit(folder / "arrow", f"{path}.arrow")


@dataclass(frozen=True)
class Assembled:
    """A part, put together from the files of its buckets: (path, number of the batch) of each."""

    work: Work

    def __call__(self, element: tuple[Part, list[tuple[str, int]]]) -> dict[str, Any]:
        from vlmdata.download import images

        pairs, files = element
        dataset = Dataset(self.work.dataset)
        there = self.work.there(dataset, pairs)
        if there:
            return there
        with dataset.spool() as folder, tempfile.TemporaryFile(dir=folder) as spool:
            fetched = [_bring(dataset, path, place, spool) for path, place in files]
            rows = pa.concat_tables([_FETCHED.empty_table(), *fetched])
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


def _bring(dataset: Dataset, path: str, place: int, spool: IO[bytes]) -> pa.Table:
    """A part's rows in the file of one bucket; their images, which lie there side by side, are added to the spool."""
    with dataset.open(f"{path}.arrow") as file, pa.ipc.open_file(file) as reader:
        rows = pa.Table.from_batches([reader.get_batch(place)])
    first = pc.min(rows["offset"]).as_py()
    if first is None:
        return rows
    last = pc.max(pc.add(rows["offset"], rows["length"])).as_py()
    added = pa.scalar(spool.seek(0, 2) - first, pa.int64())
    with dataset.open(f"{path}.tar") as tar:
        tar.seek(first)
        for start in range(first, last, _CHUNK):
            spool.write(tar.read(min(_CHUNK, last - start)))
    column = rows.schema.get_field_index("offset")
    return rows.set_column(column, rows.schema.field(column), pc.add(rows["offset"], added))
