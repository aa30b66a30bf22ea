"""The stage `download`: the images of every part of `pairs`."""

import tarfile
import threading
import uuid
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import layers
from vlmdata.dataset import Dataset, Part, Table, noted, part_from, table_folder
from vlmdata.download import download_part, known, lists, optout
from vlmdata.download.outage import AT_LEAST, Progress, Tally
from vlmdata.errors import DataError, OutageError
from vlmdata.pipelines.known import prepare
from vlmdata.pipelines.runner import processes, run_parts
from vlmdata.plan import Plan, list_files, source_roots
from vlmdata.recipe import Consent, Download
from vlmdata.schemas import table_schema


@dataclass(frozen=True)
class _Work:
    """What a worker needs for any part. `retried`: layer -> the classes that its rows had ended in before."""

    dataset: str
    key: str
    options: Download
    consent: Consent
    roots: dict[str, str]
    optout: str
    known: str
    known_key: str | None
    workers: int
    retried: dict[int, frozenset[str]]
    run: str

    def __call__(self, pairs: Part) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        inputs = {pairs.path: pairs.sha256}
        part = dataset.current_part("images", self.key, pairs.name, inputs)
        observed = dataset.current_part("observations", self.key, pairs.name, inputs)
        if part is None or observed is None:
            self._go_on(dataset)
            stored = f"{table_folder('images', self.key)}/{pairs.name}.tar"
            rows = dataset.read_part(pairs)
            with dataset.spool() as folder:
                aside = folder / "images.tar"
                try:
                    images, observations = self._download(pairs, rows, str(aside), stored)
                except OutageError as error:
                    dataset.write_json(self._stop, str(error))
                    raise
                if images.num_rows != rows.num_rows:
                    raise DataError(f"{pairs.path}: {rows.num_rows} rows in, {images.num_rows} out")
                self._go_on(dataset)
                tar = dataset.commit(aside, stored)
            observed = dataset.write_part("observations", self.key, pairs.name, observations, inputs)
            part = dataset.write_part("images", self.key, pairs.name, images, inputs, also=(tar,))
            if self.known_key:
                checked = known.fresh(images)
                dataset.write_part("known", self.known_key, pairs.name, checked, {part.path: part.sha256})
        return {"images": asdict(part), "observations": asdict(observed)}

    @property
    def _stop(self) -> str:
        return f"work/download-{self.run}-stop.json"

    def _go_on(self, dataset: Dataset) -> None:
        """Raise OutageError where a worker, here or elsewhere, has found one."""
        if dataset.exists(self._stop):
            raise OutageError(dataset.read_json(self._stop))

    def _download(self, pairs: Part, rows: Any, aside: str, stored: str) -> tuple[Any, Any]:
        """The part's images, unless nearly all of them, or of the latest rows of several parts, fail in one way."""
        expected = self.retried.get(pairs.layer, frozenset())
        progress = Progress(
            self.options.stop_share, expected, rows["url"].to_pylist(), at_once=2 * self.options.concurrency
        )
        images, observations = download_part(
            rows,
            aside,
            stored,
            self.options,
            self.consent,
            self.roots,
            optout.OptOut(lists.load(self.dataset, self.optout)),
            known.Known(lists.load(self.dataset, self.known), self.consent.known_distance),
            self.workers,
            progress.told,
        )
        with _latest_lock:
            tally = _latest.setdefault((self.run, pairs.layer), Tally(self.options.stop_share, expected))
            tally.add_part(images)
            tally.check()
            if tally.tried >= AT_LEAST:
                del _latest[self.run, pairs.layer]
        return images, observations


# The outcomes of small parts in this process since the last look, by run and layer.
_latest: dict[tuple[str, int], Tally] = {}
_latest_lock = threading.Lock()


def run(plan: Plan, dataset: Dataset, pairs: Table) -> Table:
    """Download what is missing, write the manifests.

    Raises OutageError when nearly everything ends in one class, DataError when not one image of many came. Neither
    outcome is recorded: the next run tries again.
    """
    if plan.recipe.download.skip:
        return _skip(plan, dataset, pairs)
    before = dataset.read_table("images", plan.images)
    seen = {part.name for part in before.parts} if before else set()
    fresh = [part for part in pairs.parts if part.name not in seen]
    retried = layers.retried(pairs)
    named = list_files(plan.recipe, "optout")
    work = _Work(
        dataset.absolute,
        plan.images,
        plan.recipe.download,
        plan.recipe.consent,
        source_roots(plan.recipe),
        lists.prepare(dataset, "optout", named, optout.parse, plan.optout) if named else "",
        prepare(plan, dataset),
        plan.tables.get("known"),
        processes(plan.recipe.runner),
        retried,
        uuid.uuid4().hex,
    )
    try:
        results = run_parts(dataset, "download", work, list(pairs.parts), plan.recipe.runner)
    except OutageError:
        _remove(dataset, plan, [part for part in fresh if _lost(dataset, plan, part, retried)])
        raise
    finally:
        with _latest_lock:
            _latest.clear()
    images = Table("images", plan.images, tuple(part_from(result["images"]) for result in results), noted([pairs]))
    _check(dataset, plan, images, fresh, retried)
    observations = tuple(part_from(result["observations"]) for result in results)
    dataset.write_table(Table("observations", plan.images, observations, noted([pairs])))
    dataset.write_table(images)
    return images


@dataclass(frozen=True)
class _Skip:
    """Nothing is fetched: all is null but the uid."""

    dataset: str
    key: str

    def __call__(self, pairs: Part) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        inputs = {pairs.path: pairs.sha256}
        part = dataset.current_part("images", self.key, pairs.name, inputs)
        if part is None:
            uids = dataset.read_part(pairs, ["uid"])["uid"]
            schema = table_schema("images")
            columns = [uids if field.name == "uid" else pa.nulls(len(uids), field.type) for field in schema]
            stored = f"{table_folder('images', self.key)}/{pairs.name}.tar"
            tar = dataset.write_bytes(stored, bytes(2 * tarfile.BLOCKSIZE))  # a tar of nothing
            rows = pa.Table.from_arrays(columns, schema=schema)
            part = dataset.write_part("images", self.key, pairs.name, rows, inputs, also=(tar,))
        return asdict(part)


def _skip(plan: Plan, dataset: Dataset, pairs: Table) -> Table:
    """The table `images` of a recipe that downloads nothing."""
    work = _Skip(dataset.absolute, plan.images)
    results = run_parts(dataset, "download", work, list(pairs.parts), plan.recipe.runner)
    images = Table("images", plan.images, tuple(part_from(result) for result in results), noted([pairs]))
    dataset.write_table(images)
    return images


def _check(dataset: Dataset, plan: Plan, images: Table, fresh: list[Part], retried: dict[int, frozenset[str]]) -> None:
    """Raise what `run` raises for the outcome of the parts that are new, layer by layer."""
    names = {part.name for part in fresh}
    statuses: dict[str, int] = {}
    errors: list[str] = []
    tallies: dict[int, Tally] = {}
    for part in images.parts:
        rows = dataset.read_part(part, ["download_status", "error"])
        errors += rows["error"].drop_null().slice(0, 1).to_pylist()
        for entry in pc.value_counts(rows["download_status"]).to_pylist():
            statuses[entry["values"]] = statuses.get(entry["values"], 0) + entry["counts"]
        if part.name in names:
            expected = retried.get(part.layer, frozenset())
            tally = tallies.setdefault(part.layer, Tally(plan.recipe.download.stop_share, expected))
            tally.add_part(rows)
    try:
        for tally in tallies.values():
            tally.check()
    except OutageError:
        _remove(dataset, plan, [part for part in fresh if _lost(dataset, plan, part, retried)])
        raise
    if statuses and "success" not in statuses:
        worst = max(sorted(statuses), key=lambda status: statuses[status])
        _remove(dataset, plan, fresh)
        raise DataError(
            f"not one of {images.rows} images came: {statuses[worst]} ended as {worst!r}: {(errors or ['-'])[0]}; "
            "servers at private addresses must be named in download.allow_hosts"
        )


def _lost(dataset: Dataset, plan: Plan, pairs: Part, retried: dict[int, frozenset[str]]) -> bool:
    """Whether the part was committed, with nearly all of its own rows in one class."""
    part = dataset.current_part("images", plan.images, pairs.name, {pairs.path: pairs.sha256})
    if part is None:
        return False
    tally = Tally(plan.recipe.download.stop_share, retried.get(pairs.layer, frozenset()))
    tally.add_part(dataset.read_part(part, ["download_status", "error"]))
    return tally.worst() is not None


def _remove(dataset: Dataset, plan: Plan, parts: list[Part]) -> None:
    """Or the next run would take this outcome for an observation."""
    for part in parts:
        for table in ("images", "observations"):
            dataset.remove(f"{table_folder(table, plan.images)}/{part.name}.parquet")
