"""The stage `select`: verdicts part by part, what only all pairs decide, then one row a pair in `samples`."""

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from vlmdata import layers
from vlmdata.catalog import beside, wide_part
from vlmdata.dataset import Dataset, Part, Table, noted, part_from, part_name
from vlmdata.download import lists, optout
from vlmdata.pipelines.runner import run_parts
from vlmdata.plan import GROUPED, Plan, list_files
from vlmdata.recipe import DecontaminateDedup
from vlmdata.schemas import table_schema
from vlmdata.select import Choice, denials, judge_part, settle, with_merged

CAPTIONS = table_schema("verdict").field("captions")
# One part of several tables, and which of its rows are in force where not all are.
_Element = tuple[list[Part], pa.BooleanArray | None]


@dataclass(frozen=True)
class Selection:
    """What the selection came to: parts of samples, the funnel, samples in each split; and of the parts that have rows
    not in force (which have none in samples) which rows are, by the part's name."""

    samples: Table
    funnel: list[dict[str, Any]]
    splits: dict[str, int]
    in_force: dict[str, pa.BooleanArray]


@dataclass(frozen=True)
class _Judge:
    """consent: where among an element's parts those of `pairs` and `images` are, which hold what was said."""

    dataset: str
    key: str
    choice: Choice
    optout: str
    respect: tuple[str, ...]
    consent: tuple[int, int]

    def __call__(self, element: _Element) -> dict[str, Any]:
        parts, in_force = element
        dataset = Dataset(self.dataset)
        wide = wide_part(dataset, parts, in_force)
        lists_now = optout.OptOut(lists.load(self.dataset, self.optout))
        listed = lists_now.rows(*(wide[name].to_pylist() for name in ("url", "page_url", "sha256")))
        page, host = (
            dataset.read_part(parts[place], [column])[column]
            for place, column in zip(self.consent, ("page_consent", "consent"), strict=True)
        )
        denied = denials(page, host, self.respect)
        rows = judge_part(wide, self.choice, listed, denied if in_force is None else denied.filter(in_force))
        if self.choice.merging:
            rows = rows.append_column("captions", _captions(dataset, parts[self.consent[0]], in_force))
        return asdict(dataset.write_part("judged", self.key, parts[0].name, rows, {}))


@dataclass(frozen=True)
class _Write:
    """pairs: where among an element's parts the one of `pairs` is, which holds the captions."""

    dataset: str
    snapshot: str
    pairs: int

    def __call__(self, element: tuple[_Element, Part]) -> dict[str, Any]:
        (parts, in_force), verdict = element
        dataset = Dataset(self.dataset)
        inputs = {part.path: part.sha256 for part in [*parts, verdict]}
        name = f"part-{verdict.name.rsplit('-', 1)[1]}"
        part = dataset.current_part("samples", self.snapshot, name, inputs)
        if part is None:
            settled = dataset.read_part(verdict)
            rows = beside(wide_part(dataset, parts, in_force), settled)
            captions = _captions(dataset, parts[self.pairs], in_force)
            rows = rows.append_column(CAPTIONS, with_merged(captions, settled["merged"]))
            part = dataset.write_part("samples", self.snapshot, name, rows, inputs)
        return asdict(part)


def _captions(dataset: Dataset, pairs: Part, in_force: pa.BooleanArray | None) -> pa.ChunkedArray:
    captions = dataset.read_part(pairs, ["captions"])
    return (captions if in_force is None else captions.filter(in_force))["captions"]


def choice_of(plan: Plan) -> Choice:
    """The plan's selection, without its tables."""
    unmeasured = {
        column
        for signal in plan.signals
        if signal.measurement.after
        for schema in signal.measurement.schemas.values()
        for column in schema.names
        if column != "uid"
    }
    methods = tuple(method.kind for method in plan.recipe.dedup)
    merging = frozenset(m.kind for m in plan.recipe.dedup if not isinstance(m, DecontaminateDedup) and m.merge)
    return Choice(plan.rules, frozenset(unmeasured), methods, plan.survivor, merging)


def run(plan: Plan, dataset: Dataset, tables: dict[str, Table], number: int) -> Selection:
    """Judge every pair for snapshot `number`.

    tables: pairs, images, the signals' tables, and duplicates where the recipe asks for them.
    """
    choice = choice_of(plan)
    scalar = [name for name in tables if name not in GROUPED and not name.startswith(("embeddings", "boxes"))]
    in_force = layers.in_force(dataset, tables["pairs"])
    by_part: list[_Element] = [
        (list(parts), in_force.get(parts[0].name))
        for parts in zip(*(tables[name].parts for name in scalar), strict=True)
    ]
    named = list_files(plan.recipe, "optout")
    folder = lists.prepare(dataset, "optout", named, optout.parse, plan.optout) if named else ""
    places = scalar.index("pairs"), scalar.index("images")
    judge = _Judge(dataset.absolute, plan.select, choice, folder, tuple(plan.recipe.consent.respect), places)
    judged = run_parts(dataset, "judge", judge, by_part, plan.recipe.runner)
    judged_parts = [part_from(result) for result in judged]
    duplicates = None
    if "duplicates" in tables:
        duplicates = dataset.scan(list(tables["duplicates"].parts), table_schema("duplicates"))
    with dataset.spool() as spill:
        verdicts, funnel, splits = settle(
            dataset.scan(judged_parts, _judged_schema(dataset, judged_parts)),
            duplicates,
            [part.rows for part in judged_parts],
            choice,
            plan.recipe.shards,
            spill,
        )
        verdict_parts = [
            dataset.write_part("verdict", plan.select, part_name(number), rows, {})
            for number, rows in enumerate(verdicts)
        ]
    elements = list(zip(by_part, verdict_parts, strict=True))
    results = run_parts(
        dataset, "select", _Write(dataset.absolute, str(number), scalar.index("pairs")), elements, plan.recipe.runner
    )
    for name in ("judged", "verdict"):
        dataset.remove(f"tables/{name}")
    about = {"select": plan.select, "funnel": funnel, "splits": splits}
    samples = Table(
        "samples", str(number), tuple(part_from(result) for result in results), noted(tables.values()), about
    )
    dataset.write_table(samples)
    return Selection(samples, funnel, splits, in_force)


def _judged_schema(dataset: Dataset, parts: list[Part]) -> pa.Schema:
    return dataset.read_part(parts[0]).schema
