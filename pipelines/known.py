"""The end of the stage `download`: what is stored is held against the lists of known illegal images of today."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from vlmdata import shards
from vlmdata.dataset import Dataset
from vlmdata.download import lists
from vlmdata.download.known import KNOWN, Known, parse, recheck
from vlmdata.parts import Part, Table, part_from
from vlmdata.pipelines.runner import run_parts
from vlmdata.plan import Plan, list_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What a worker needs for any part."""

    dataset: str
    key: str
    lists: str
    distance: int

    def __call__(self, images: Part) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        inputs = {images.path: images.sha256}
        rows = dataset.read_part(images, ["uid", "sha256", "offset", "length", "error"])
        refused = pc.sum(pc.equal(rows["error"], KNOWN)).as_py() or 0
        unread = 0
        part = dataset.current_part("known", self.key, images.name, inputs)
        if part is None:
            known = Known(lists.load(self.dataset, self.lists), self.distance)
            with dataset.opened(images.also[0]) as tar:
                found = recheck(rows, shards.reader(tar), known)
            part = dataset.write_part("known", self.key, images.name, found, inputs)
            unread = rows.num_rows - rows["length"].null_count if {"md5", "sha1"} & set(known.digests) else 0
        listed = pc.sum(dataset.read_part(part, ["known"])["known"]).as_py() or 0
        return {"part": asdict(part), "refused": refused, "listed": listed, "unread": unread}


def prepare(plan: Plan, dataset: Dataset) -> str:
    """The folder of the lists in a form that workers can read; nothing where the recipe names none."""
    return lists.prepare(dataset, "known", list_files(plan.recipe, "known"), parse, plan.known) if plan.known else ""


def run(plan: Plan, dataset: Dataset, images: Table) -> Table:
    """The table `known`, part by part. Parts that were downloaded under the lists in force are not looked at again.

    Tells how many pairs were refused or are rejected, without their URLs.
    """
    key = plan.tables["known"]
    work = _Work(dataset.absolute, key, prepare(plan, dataset), plan.recipe.consent.known_distance)
    results = run_parts(dataset, "known", work, list(images.parts), plan.recipe.runner)
    table = Table(
        "known", key, tuple(part_from(result["part"]) for result in results), {f"images/{images.key}": images.sha256}
    )
    dataset.write_table(table)
    refused, listed, unread = (sum(result[name] for result in results) for name in ("refused", "listed", "unread"))
    if refused:
        log.warning("KNOWN ILLEGAL IMAGES: %d pairs' images are on a list of consent.known; none was stored", refused)
    if listed:
        log.warning(
            "KNOWN ILLEGAL IMAGES: %d pairs' images were stored before they were listed in consent.known. They are "
            "rejected and not shown, but their files are still in %s: what to do is the law's, see docs/consent.md",
            listed,
            dataset.address(f"images/{images.key}"),
        )
    if unread:
        log.warning(
            "%d stored pairs could not be held against the MD5 and SHA-1 hashes of consent.known, which are of the "
            "bytes received; SHA-256, PDQ and perceptual hashes were applied to them",
            unread,
        )
    return table
