"""Decontamination, within the stage `dedup`: the evaluation sets are measured as the pool was, then every part of the
pool is held against them."""

import logging
import threading
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import layers, signals
from vlmdata.dataset import Dataset
from vlmdata.dedup import evaluation
from vlmdata.dedup.decontaminate import Index, Matches, reads, tables
from vlmdata.download import lists
from vlmdata.download.decode import to_jpeg
from vlmdata.download.header import ImageError
from vlmdata.errors import InputError
from vlmdata.parts import Part, Table, make_key, part_from, part_name
from vlmdata.pipelines.runner import run_parts
from vlmdata.plan import Plan
from vlmdata.recipe import DecontaminateDedup, Download
from vlmdata.report.sheets import thumbnail

log = logging.getLogger(__name__)

PICTURES = 60  # evaluation images that the report can show


@dataclass(frozen=True)
class _Measure:
    """What a worker needs to measure any piece of the evaluation sets; see `evaluation.measure`."""

    dataset: str
    key: str
    download: Download
    measurements: tuple[signals.Measurement, ...]
    vectors: str | None
    width: int

    def __call__(self, element: tuple[int, evaluation.Piece]) -> dict[str, Any]:
        number, piece = element
        dataset = Dataset(self.dataset)
        name = part_name(number)
        part = dataset.current_part("evaluation", self.key, name, {})
        if part is None:
            rows = evaluation.measure(piece, self.download, list(self.measurements), self.vectors, self.width)
            part = dataset.write_part("evaluation", self.key, name, rows, {})
        return asdict(part)


@dataclass(frozen=True)
class _Search:
    """What of a part of the pool is found in the evaluation set: uid beside the columns of `Matches`.

    evaluated: the key of the table `evaluation`. options: of DecontaminateDedup, as JSON.
    """

    dataset: str
    key: str
    evaluated: str
    options: str

    def __call__(self, element: tuple[dict[str, Part], pa.BooleanArray | None]) -> dict[str, Any]:
        parts, in_force = element
        dataset = Dataset(self.dataset)
        index = _loaded(self.dataset, self.evaluated, self.options)
        rows = {
            name: layers.read_in_force(dataset, parts[name], ["uid", *columns], in_force)
            for name, columns in reads(index.options).items()
        }
        matches = index.search(rows)
        uid = rows["images"]["uid"].take(pa.array(matches.row))
        table = pa.table({"uid": uid, **matches._asdict()})
        return asdict(dataset.write_part("matches", self.key, parts["images"].name, table, {}))


_loading = threading.Lock()


def _loaded(dataset: str, key: str, options: str) -> Index:
    with _loading:  # or two threads would load the same
        return _index(dataset, key, options)


@lru_cache(maxsize=1)
def _index(dataset: str, key: str, options: str) -> Index:
    """The evaluation set as it was measured, loaded once a process."""
    table = Dataset(dataset).read_table("evaluation", key)
    assert table is not None
    measured = pa.concat_tables([Dataset(dataset).read_part(part) for part in table.parts])
    index = Index(measured, DecontaminateDedup.model_validate_json(options))
    for what, known in (("perceptual hash", index.hashed), ("embedding", index.embedded)):
        log.info("decontaminate: %d of %d evaluation images are compared by %s", len(known), len(measured), what)
    return index


def run(
    plan: Plan,
    dataset: Dataset,
    pool: Mapping[str, Table],
    options: DecontaminateDedup,
    in_force: Mapping[str, pa.BooleanArray],
) -> tuple[pa.Table, pa.Table]:
    """The `duplicates` and `contamination` tables of the pool against the evaluation sets.

    The evaluation sets are in each worker's memory, the pool a part at a time.
    """
    found_files = evaluation.find(options.against)
    pieces = evaluation.pieces(found_files)
    evaluated = measured_sets(plan, dataset, found_files, pieces, reads(options))
    names = pa.concat_tables([dataset.read_part(part, ["evaluation"]) for part in evaluated.parts])["evaluation"]
    if not len(names):
        raise InputError(f"{evaluation.WHERE}: no image, hash or vector in {', '.join(options.against)}")
    search = _Search(dataset.absolute, plan.tables["duplicates"], evaluated.key, options.model_dump_json())
    elements = []
    for number, pairs in enumerate(pool["pairs"].parts):
        elements.append(({name: pool[name].parts[number] for name in reads(options)}, in_force.get(pairs.name)))
    results = run_parts(dataset, "decontaminate", search, elements, plan.recipe.runner)
    found = pa.concat_tables([dataset.read_part(part_from(result)) for result in results])
    dataset.remove("tables/matches")
    _index.cache_clear()
    uid, every = found["uid"].to_numpy().astype("S32"), Matches(*(found[name].to_numpy() for name in Matches._fields))
    images = every.image[np.argsort(uid, kind="stable")]
    shown = images[np.sort(np.unique(images, return_index=True)[1])][:PICTURES]  # of the first pairs, as the report is
    pictures = _pictures(pieces, list(evaluated.parts), set(shown.tolist()), plan.recipe.download)
    duplicates, contamination = tables(uid, every, names, pictures)
    hit = len(np.unique(images))
    log.info("decontaminate: %d of %d evaluation images found in %d pairs", hit, len(names), duplicates.num_rows)
    return duplicates, contamination


def measured_sets(
    plan: Plan, dataset: Dataset, found: list[lists.File], pieces: list[evaluation.Piece], compared: Collection[str]
) -> Table:
    """The table `evaluation`, a part a piece, measured now or earlier under the same files, options and models.

    found: the files that the pieces are cut from. compared: the pool's tables whose signals measure them.
    """
    vectors = next((name for name in compared if name.startswith("embeddings_")), None)
    width = 1
    measurements = []
    for signal in (signal.found_anywhere() for signal in plan.signals):
        schemas = signal.measurement.schemas
        if not set(compared).isdisjoint(schemas):
            # what the pool had to pass before it was measured does not hold for the evaluation set
            measurements.append(replace(signal.measurement, after={}))
        if vectors in schemas:
            width = schemas[vectors].field(1).type.list_size
    models = [
        [module.VERSION, measurement.options.keyed("after"), module.identity(measurement.options)]
        for measurement in measurements
        for module in [signals.family(measurement.options.kind)]
    ]
    # a part is known by its number, so the order of the files is part of the key
    places = [[piece.file[1], len(piece.items)] for piece in pieces]
    parameters = [lists.digest(found), places, plan.recipe.download.keyed(), sorted(compared), models]
    key = make_key("evaluation", evaluation.VERSION, parameters, [])
    work = _Measure(dataset.absolute, key, plan.recipe.download, tuple(measurements), vectors, width)
    results = run_parts(dataset, "evaluation", work, list(enumerate(pieces)), plan.recipe.runner)
    table = Table("evaluation", key, tuple(part_from(result) for result in results))
    dataset.write_table(table)
    return table


def _pictures(
    pieces: list[evaluation.Piece], parts: list[Part], wanted: set[int], download: Download
) -> dict[int, str]:
    """Small pictures of some evaluation images, by their place among all; their files are read once more."""
    pictures: dict[int, str] = {}
    start = 0
    for piece, part in zip(pieces, parts, strict=True):
        if not wanted.isdisjoint(range(start, start + part.rows)):
            for place, (name, data) in enumerate(evaluation.images(piece, download.max_bytes), start):
                if place in wanted:
                    try:
                        picture = to_jpeg(data, download.size, download.quality, download.max_pixels)
                    except ImageError as error:  # found by its bytes
                        log.warning("evaluation image %s cannot be shown: %s", name, error)
                    else:
                        pictures[place] = thumbnail(picture.jpeg)
        start += part.rows
    return pictures
