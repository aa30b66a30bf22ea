"""The stage `download`: the images of every part of `pairs`."""

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from vlmdata.dataset import Dataset, Part, Table, part_from, table_folder
from vlmdata.download import download_part, known, lists, optout
from vlmdata.errors import DataError
from vlmdata.pipelines.known import prepare
from vlmdata.pipelines.runner import processes, run_parts
from vlmdata.plan import Plan, list_files, source_roots
from vlmdata.recipe import Consent, Download


@dataclass(frozen=True)
class _Work:
    """What a worker needs for any part."""

    dataset: str
    key: str
    options: Download
    consent: Consent
    roots: dict[str, str]
    optout: str
    known: str
    known_key: str | None
    workers: int

    def __call__(self, pairs: Part) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        inputs = {pairs.path: pairs.sha256}
        part = dataset.current_part("images", self.key, pairs.name, inputs)
        observed = dataset.current_part("observations", self.key, pairs.name, inputs)
        if part is None or observed is None:
            stored = f"{table_folder('images', self.key)}/{pairs.name}.tar"
            rows = dataset.read_part(pairs)
            with dataset.spool() as folder:
                aside = folder / "images.tar"
                images, observations = download_part(
                    rows,
                    str(aside),
                    stored,
                    self.options,
                    self.consent,
                    self.roots,
                    optout.OptOut(lists.load(self.dataset, self.optout)),
                    known.Known(lists.load(self.dataset, self.known), self.consent.known_distance),
                    self.workers,
                )
                if images.num_rows != rows.num_rows:
                    raise DataError(f"{pairs.path}: {rows.num_rows} rows in, {images.num_rows} out")
                tar = dataset.commit(aside, stored)
            observed = dataset.write_part("observations", self.key, pairs.name, observations, inputs)
            part = dataset.write_part("images", self.key, pairs.name, images, inputs, also=(tar,))
            if self.known_key:
                checked = known.fresh(images)
                dataset.write_part("known", self.known_key, pairs.name, checked, {part.path: part.sha256})
        return {"images": asdict(part), "observations": asdict(observed)}


def run(plan: Plan, dataset: Dataset, pairs: Table) -> Table:
    """Download what is missing, write the manifests. Raises DataError when not one image of many came."""
    named = list_files(plan.recipe, "optout")
    work = _Work(
        dataset.url,
        plan.images,
        plan.recipe.download,
        plan.recipe.consent,
        source_roots(plan.recipe),
        lists.prepare(dataset, "optout", named, optout.parse, plan.optout) if named else "",
        prepare(plan, dataset),
        plan.tables.get("known"),
        processes(plan.recipe.runner),
    )
    results = run_parts(dataset, "download", work, list(pairs.parts), plan.recipe.runner)
    inputs = {f"pairs/{pairs.key}": pairs.sha256}
    observations = tuple(part_from(result["observations"]) for result in results)
    dataset.write_table(Table("observations", plan.images, observations, inputs))
    table = Table("images", plan.images, tuple(part_from(result["images"]) for result in results), inputs)
    _check(dataset, table, observations)
    dataset.write_table(table)
    return table


def _check(dataset: Dataset, table: Table, observations: tuple[Part, ...]) -> None:
    counts: dict[str, int] = {}
    errors: list[str] = []
    for part in table.parts:
        said = dataset.read_part(part, ["error"])["error"].drop_null()
        errors += said.slice(0, 1).to_pylist()
        statuses = dataset.read_part(part, ["download_status"])["download_status"]
        for entry in pc.value_counts(statuses).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    if counts and "success" not in counts:
        worst = max(sorted(counts), key=lambda status: counts[status])
        for part in (*table.parts, *observations):
            dataset.remove(part.path)  # or the next run would take this outcome for an observation
        raise DataError(
            f"not one of {table.rows} images came: {counts[worst]} ended as {worst!r}: {(errors or ['-'])[0]}; "
            "servers at private addresses must be named in download.allow_hosts"
        )
