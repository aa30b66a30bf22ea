"""The stage `download`: the images of every part of `pairs`."""

import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import disk, layers
from vlmdata.dataset import Dataset
from vlmdata.download import lists, optout
from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.download.outage import Tally, struck
from vlmdata.errors import DataError, OutageError
from vlmdata.parts import Part, Table, noted, part_from, table_folder
from vlmdata.pipelines import skip
from vlmdata.pipelines.fetch import (
    WORK,
    Assembled,
    Bucketed,
    Scattered,
    There,
    Whole,
    Work,
    committed,
    forget,
    struck_buckets,
)
from vlmdata.pipelines.known import prepare
from vlmdata.pipelines.runner import at_once, engine, here_at_once, processes, run_parts
from vlmdata.plan import Plan, list_files, source_roots
from vlmdata.recipe import Runner

_GROUP = f"{WORK}/group.json"
# Of a group, for each that is worked on at once, and as many buckets: a bucket then has about as many rows as a part,
# and while one waits for a large host the workers have others.
_PARTS = 4


def run(plan: Plan, dataset: Dataset, pairs: Table) -> Table:
    """Download what is missing, write the manifests.

    Raises OutageError when nearly everything ends in one class, DataError when not one image of many came. Neither
    outcome is recorded: the next run tries again.
    """
    if plan.recipe.download.skip:
        return skip.run(plan, dataset, pairs)
    before = dataset.read_table("images", plan.images)
    seen = {part.name for part in before.parts} if before else set()
    fresh = [part for part in pairs.parts if part.name not in seen]
    needed = disk.images(before, fresh, plan.recipe.download)
    disk.check(dataset, needed, "the download", needed / max(len(fresh), 1) * here_at_once(plan.recipe.runner))
    retried = layers.retried(pairs)
    named = list_files(plan.recipe, "optout")
    work = Work(
        dataset.absolute,
        dataset.guard,
        plan.images,
        plan.recipe.download,
        plan.recipe.consent,
        source_roots(plan.recipe),
        lists.prepare(dataset, "optout", named, optout.parse, plan.optout) if named else "",
        prepare(plan, dataset),
        plan.tables.get("known"),
        retried,
        uuid.uuid4().hex,
    )
    try:
        with engine(plan.recipe.runner) as runner:
            results = _fetch(plan, dataset, work, list(pairs.parts), runner)
    except OutageError:
        _remove(dataset, plan, _struck(dataset, plan, fresh, retried))
        raise
    finally:
        forget()
    parts = tuple(part_from(result["images"]) for result in results)
    returned = sum(_returned(dataset, part) for part in parts)
    images = Table("images", plan.images, parts, noted([pairs]), {"returned": returned} if returned else {})
    _check(dataset, plan, images, fresh, retried)
    observations = tuple(part_from(result["observations"]) for result in results)
    dataset.write_table(Table("observations", plan.images, observations, noted([pairs])))
    dataset.write_table(images)
    return images


def clean(dataset: Dataset) -> None:
    """Remove what is left of a group that is done or given up. Only the holder of the lock may call it."""
    dataset.remove(_GROUP)  # first, or a kill in between would leave a group whose files are gone
    dataset.remove(WORK)


def _fetch(plan: Plan, dataset: Dataset, work: Work, parts: list[Part], runner: Runner) -> list[dict[str, Any]]:
    """What became of each part. Those that are missing are fetched whole in this process; by several processes in
    groups, bucket by bucket. A group that was begun is finished first, as it was begun and by whatever runner."""
    workers = processes(runner)
    begun = _begun(plan, dataset, parts)
    if workers == 1 and begun is None:
        return run_parts(dataset, "download", Whole(work), parts, runner)
    there = run_parts(dataset, "downloaded", There(work), parts, runner)
    done = {part.name: result for part, result in zip(parts, there, strict=True) if result is not None}
    most = _PARTS * at_once(runner)
    if begun is not None and all(part.name in done for part in begun[1]):
        begun = None
    while missing := [part for part in parts if part.name not in done]:
        if begun is not None:
            of, group = begun
            begun = None
        elif workers == 1:
            whole = run_parts(dataset, "download", Whole(work), missing, runner)
            done |= {part.name: result for part, result in zip(missing, whole, strict=True)}
            continue
        else:
            clean(dataset)
            group = [part for part in missing[:most] if part.layer == missing[0].layer]
            of = min(most, max(workers, len(group)))
            dataset.write_json(_GROUP, {"of": of, "made_from": _made_from(plan, group)})
        done |= _fetch_group(dataset, work, of, group, workers, runner)
    clean(dataset)
    return [done[part.name] for part in parts]


def _fetch_group(
    dataset: Dataset, work: Work, of: int, group: list[Part], workers: int, runner: Runner
) -> dict[str, dict[str, Any]]:
    """What became of each part of a group, by its name. An outage costs the buckets that it has struck."""
    run_parts(dataset, "buckets", Scattered(work, of), group, runner)
    names, most = tuple(part.name for part in group), 2 * max(part.rows for part in group)
    bucketed = Bucketed(work, names, group[0].layer, most, of, workers)
    try:
        fetched = run_parts(dataset, "download", bucketed, list(range(of)), runner)
    except OutageError:
        for path in struck_buckets(dataset, work, group[0].layer):
            dataset.remove(path)
        raise
    files = [(path, first, parts) for written in fetched for path, first, parts in written]
    try:
        results = run_parts(dataset, "images", Assembled(work, files), list(enumerate(group)), runner)
    except OutageError:
        clean(dataset)  # none of its buckets says so, and so none would be fetched again
        raise
    return dict(zip(names, results, strict=True))


def _begun(plan: Plan, dataset: Dataset, parts: list[Part]) -> tuple[int, list[Part]] | None:
    """(buckets, parts) of the group whose files a kill has left, where they are still what would be fetched; what
    else it has left is removed."""
    if dataset.exists(_GROUP):
        begun = dataset.read_json(_GROUP)
        group = [part for part in parts if part.path in begun["made_from"]["pairs"]]
        if begun["made_from"] == _made_from(plan, group):
            return begun["of"], group
    clean(dataset)
    return None


def _made_from(plan: Plan, group: list[Part]) -> dict[str, Any]:
    """What the files of a group's buckets depend on. Lists and consent, too: who changes them wants them obeyed."""
    return {
        "images": plan.images,
        "optout": plan.optout,
        "known": plan.known,
        "consent": plan.recipe.consent.model_dump(mode="json"),
        "pairs": {part.path: part.sha256 for part in group},
    }


def _check(dataset: Dataset, plan: Plan, images: Table, fresh: list[Part], retried: dict[int, frozenset[str]]) -> None:
    """Raise what `run` raises for the outcome of the parts that are new, layer by layer."""
    names = {part.name for part in fresh}
    statuses: dict[str, int] = {}
    errors: list[str] = []
    tallies: dict[int, Tally] = {}
    for part in images.parts:
        rows = dataset.read_part(part, ["download_status", "error"])
        errors += rows["error"].drop_null().slice(0, 1).to_pylist()
        for entry in pc.value_counts(rows["download_status"].drop_null()).to_pylist():
            statuses[entry["values"]] = statuses.get(entry["values"], 0) + entry["counts"]
        if part.name in names:
            expected = retried.get(part.layer, frozenset())
            tally = tallies.setdefault(part.layer, Tally(plan.recipe.download.stop_share, expected))
            tally.add_part(rows)
    try:
        for tally in tallies.values():
            tally.check()
    except OutageError:
        _remove(dataset, plan, _struck(dataset, plan, fresh, retried))
        raise
    if statuses and "success" not in statuses:
        worst = max(sorted(statuses), key=lambda status: statuses[status])
        _remove(dataset, plan, fresh)
        raise DataError(
            f"not one of {images.rows} images came: {statuses[worst]} ended as {worst!r}: {(errors or ['-'])[0]}; "
            "servers at private addresses must be named in download.allow_hosts"
        )


def _returned(dataset: Dataset, images: Part) -> int:
    """How many pairs have brought what is forgotten: they are to be forgotten next, which a kill must not prevent."""
    return pc.sum(pc.equal(dataset.read_part(images, ["download_status"])["download_status"], FORGOTTEN)).as_py() or 0


def _struck(dataset: Dataset, plan: Plan, fresh: list[Part], retried: dict[int, frozenset[str]]) -> list[Part]:
    """Those of the new parts that were committed with rows that an outage has struck."""

    def ended() -> Iterator[tuple[str, pa.Table, frozenset[str]]]:
        for part in fresh:
            if found := committed(dataset, plan.images, part):
                images, observations = found
                rows = dataset.read_part(images, ["download_status", "error"])
                times = dataset.read_part(observations, ["fetched_at"])["fetched_at"]
                # What lies on a disk says nothing of the network.
                web = pc.starts_with(dataset.read_part(part, ["url"])["url"], "http")
                rows = rows.append_column("fetched_at", times).filter(pc.fill_null(web, False))
                yield part.name, rows, retried.get(part.layer, frozenset())

    options = plan.recipe.download
    names = set(struck(ended(), options.stop_share, options.deadline))
    return [part for part in fresh if part.name in names]


def _remove(dataset: Dataset, plan: Plan, parts: list[Part]) -> None:
    """Or the next run would take this outcome for an observation."""
    for part in parts:
        for table in ("images", "observations"):
            dataset.remove(f"{table_folder(table, plan.images)}/{part.name}.parquet")
