"""The stage `select`: verdicts part by part, what only all pairs decide, then one row a pair in `samples`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from vlmdata import layers
from vlmdata.catalog import beside, has_scalars, schema_of, view_files, wide_part
from vlmdata.dataset import Dataset
from vlmdata.dedup import alike
from vlmdata.download import lists, optout
from vlmdata.ingest import connect
from vlmdata.parts import Part, Table, noted, part_from, part_name, snapshot_folder
from vlmdata.pipelines import balance
from vlmdata.pipelines.runner import combine, run_parts
from vlmdata.plan import Plan, list_files
from vlmdata.rules import Expression, evaluate
from vlmdata.schemas import table_schema
from vlmdata.select import Choice, append, checked, denials, funnel, judge_part, settle, top, with_merged
from vlmdata.select.settle import memory

CAPTIONS = table_schema("verdict").field("captions")
# One part of several tables, and which of its rows are in force where not all are.
_Element = tuple[list[Part], pa.BooleanArray | None]


@dataclass(frozen=True)
class Selection:
    """What the selection came to: parts of samples, the funnel, samples in each split; and of the parts that have rows
    not in force (which have none in samples) which rows are, by the part's name.

    written: the parts of samples that this selection has made: of a refresh those of the new layer, the last ones. Then
    funnel and splits are of its pairs, and `first` has each split's first shard.
    """

    samples: Table
    funnel: list[dict[str, Any]]
    splits: dict[str, int]
    in_force: dict[str, pa.BooleanArray]
    written: tuple[Part, ...]
    first: dict[str, int] = field(default_factory=dict)


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
class _Keys:
    """The keys (see `top.keys`) of a ranked number, as a part of their own."""

    dataset: str
    key: str
    by: Expression

    def __call__(self, element: _Element) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        ranked = top.keys(evaluate(wide_part(dataset, *element), {"by": self.by})["by"])
        return asdict(dataset.write_part("ranked", self.key, element[0][0].name, pa.table({"key": ranked}), {}))


@dataclass(frozen=True)
class _Count:
    """A part's histogram (see `top.count_keys`)."""

    dataset: str
    prefix: int
    known: int

    def __call__(self, part: Part) -> np.ndarray:
        return top.count_keys(Dataset(self.dataset).read_part(part)["key"].to_numpy(), self.prefix, self.known)


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
    return layers.read_in_force(dataset, pairs, ["captions"], in_force)["captions"]


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
    return checked.choice(plan.recipe, plan.checked, frozenset(unmeasured))


@dataclass(frozen=True)
class _Verdicts:
    """elements: the parts of all tables with scalars, in the order of `pairs`' parts; parts: the verdict on each.
    files: what stays beside the samples, by what it is: grouped, balance."""

    elements: list[_Element]
    parts: list[Part]
    funnel: list[dict[str, Any]]
    splits: dict[str, int]
    in_force: dict[str, pa.BooleanArray]
    files: dict[str, Any]
    first: dict[str, int]


def run(
    plan: Plan, dataset: Dataset, tables: dict[str, Table], number: int, parent: dict[str, Any] | None = None
) -> Selection:
    """Judge every pair for snapshot `number`; with the manifest of a parent only the pairs of later layers, beside its
    verdicts, which stay (`select.append`).

    tables: pairs, images, the signals' tables, and duplicates where the recipe asks for them.
    """
    found = _judge(plan, dataset, tables, number, parent)
    pairs = [name for name in tables if has_scalars(name)].index("pairs")
    elements = list(zip(found.elements, found.parts, strict=True))
    results = run_parts(dataset, "select", _Write(dataset.absolute, str(number), pairs), elements, plan.recipe.runner)
    _clean(dataset)
    written = tuple(part_from(result) for result in results)
    about: dict[str, Any] = {"select": plan.select, "funnel": found.funnel, "splits": found.splits, **found.files}
    earlier: tuple[Part, ...] = ()
    if parent is not None:
        earlier = tuple(part_from(part) for part in parent["samples"])
        about["base"] = parent.get("base", parent["number"])
        about["splits"] = {name: parent["splits"].get(name, 0) + count for name, count in found.splits.items()}
        counts = _counts(parent["funnel"]) + _counts(found.funnel)
        about["funnel"] = funnel(dict(counts), choice_of(plan))
    samples = Table("samples", str(number), (*earlier, *written), noted(tables.values()), about)
    dataset.write_table(samples)
    return Selection(samples, found.funnel, found.splits, found.in_force, written, found.first)


def _counts(steps: list[dict[str, Any]]) -> Counter[str | None]:
    """How many pairs have each reason, by a funnel."""
    rejected: Counter[str | None] = Counter({step["reason"]: step["rejected"] for step in steps[1:]})
    rejected[None] = steps[-1]["left"]
    return rejected


def kept(plan: Plan, dataset: Dataset, tables: dict[str, Table], number: int) -> tuple[pa.Table, list[dict[str, Any]]]:
    """What `run` would keep: uid and copies (int32) in the order of `pairs`, and the funnel. Nothing of it stays on
    the disk. number: of no snapshot that there is."""
    found = _judge(plan, dataset, tables, number)
    rows = []
    for part in found.parts:
        verdicts = dataset.read_part(part, ["uid", "kept", "copies"])
        rows.append(verdicts.filter(verdicts["kept"]).drop_columns(["kept"]))
    _clean(dataset)
    dataset.remove(snapshot_folder(number))  # where a run would leave what it found of groups and entries
    return pa.concat_tables(rows), found.funnel


def _clean(dataset: Dataset) -> None:
    for name in ("judged", "verdict"):
        dataset.remove(f"tables/{name}")


def _judge(
    plan: Plan, dataset: Dataset, tables: dict[str, Table], number: int, parent: dict[str, Any] | None = None
) -> _Verdicts:
    choice = choice_of(plan)
    scalar = [name for name in tables if has_scalars(name)]
    in_force = layers.in_force(dataset, tables["pairs"])
    by_part: list[_Element] = [
        (list(parts), in_force.get(parts[0].name))
        for parts in zip(*(tables[name].parts for name in scalar), strict=True)
    ]
    if parent is not None:
        by_part = by_part[len(parent["tables"]["pairs"]["parts"]) :]
    before = len(parent["samples"]) if parent else 0
    settled: dict[str, Any] = dict(parent.get("settled", {})) if parent else {}
    named = list_files(plan.recipe, "optout")
    folder = lists.prepare(dataset, "optout", named, optout.parse, plan.optout) if named else ""
    places = scalar.index("pairs"), scalar.index("images")
    if parent is None and plan.checked.ranked:
        settled["ranked"] = _thresholds(plan, dataset, by_part)
    ranked = {name: top.at_least(plan.rules[name], settled["ranked"][name]) for name in plan.checked.ranked}
    choice = replace(choice, rules=plan.rules | ranked)
    judge = _Judge(dataset.absolute, plan.select, choice, folder, tuple(plan.recipe.consent.respect), places)
    judged = run_parts(dataset, "judge", judge, by_part, plan.recipe.runner)
    judged_parts = [part_from(result) for result in judged]
    recorded: dict[str, Any] = {}
    files: dict[str, Any] = {}

    def balancing(left: list[pa.BooleanArray]) -> list[pa.BooleanArray]:
        options, runner = plan.recipe.select.balance, plan.recipe.runner
        assert options is not None
        elements = [(parts[0], mask, rows) for (parts, mask), rows in zip(by_part, left, strict=True)]
        earlier = parent["balance"] if parent else None
        kept, found = balance.run(dataset, options, plan.select, elements, number, runner, earlier)
        recorded.update(found)
        return kept

    first: dict[str, int] = {}
    grouped = "duplicates" in tables
    with dataset.spool() as spill:
        connection = connect(spill, memory(sum(part.rows for part in judged_parts)))
        view_files(connection, dataset, "judged", judged_parts, schema_of(dataset, judged_parts[0].path))
        near = _view_duplicates(connection, dataset, plan, tables["duplicates"]) if grouped else []
        sizes = [part.rows for part in judged_parts]
        balanced = balancing if choice.balanced else None
        if parent is not None:
            standing = _standing(connection, dataset, parent) if grouped else append.STANDING.empty_table()
            first = _first(parent, plan.recipe.shards.splits)
            verdicts, counts, splits = append.append(
                connection, standing, sizes, choice, plan.recipe.shards, first, settled, balanced, grouped, near
            )
            steps = funnel(counts, choice)
        else:
            verdicts, steps, splits = settle(
                connection,
                sizes,
                choice,
                plan.recipe.shards,
                balanced,
                grouped,
                near,
                spill / "grouped.parquet",
                settled,
            )
        if grouped and parent is None:
            file = dataset.commit(spill / "grouped.parquet", f"{snapshot_folder(number)}/grouped.parquet")
            files["grouped"] = asdict(file)
        verdict_parts = [
            dataset.write_part("verdict", plan.select, part_name(place), verdict, {})
            for place, verdict in enumerate(verdicts, before)
        ]
    files |= {"balance": recorded} if recorded else {}
    files |= {"settled": settled} if settled else {}
    return _Verdicts(by_part, verdict_parts, steps, splits, in_force, files, first)


def _view_duplicates(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, plan: Plan, duplicates: Table
) -> list[str]:
    """Make the views `duplicates` and `near_<method>` of the methods that have pairs, which are returned."""
    near: list[str] = []
    for method, part in zip(plan.recipe.dedup, duplicates.parts, strict=True):
        pairs = [file for file in part.also if file.path.endswith(alike.ENDING)]
        if pairs:
            view_files(connection, dataset, f"near_{method.kind}", pairs, alike.SCHEMA)
            near.append(method.kind)
    view_files(connection, dataset, "duplicates", duplicates.parts, table_schema("duplicates"))
    return near


def _standing(connection: duckdb.DuckDBPyConnection, dataset: Dataset, parent: dict[str, Any]) -> pa.Table:
    """`append.STANDING`: the pairs in the parent's shards that share a group of duplicates with one of `judged`."""
    published = [part_from(part) for part in parent["samples"]]
    view_files(connection, dataset, "samples", published, pa.schema([*append.STANDING, pa.field("kept", pa.bool_())]))
    found = connection.sql(
        """
        WITH met AS (SELECT DISTINCT dup_method, dup_group FROM duplicates JOIN judged USING (uid))
        SELECT uid, sha256, split FROM samples
        WHERE kept AND uid IN (SELECT uid FROM duplicates JOIN met USING (dup_method, dup_group)) ORDER BY uid"""
    ).to_arrow_table()
    return found.cast(append.STANDING)


def _first(parent: dict[str, Any], splits: Iterable[str]) -> dict[str, int]:
    """The number behind each split's last shard."""
    numbers = {
        split: [_number(shard["path"]) for shard in parent["shards"] if shard["split"] == split] for split in splits
    }
    return {split: max(found, default=-1) + 1 for split, found in numbers.items()}


def _number(path: str) -> int:
    """Of a shard: `train-0000003.tar`, or of another revision `train-0000003.r2.tar`."""
    return int(path.rpartition("/")[2].rpartition("-")[2].partition(".")[0])


def _thresholds(plan: Plan, dataset: Dataset, elements: list[_Element]) -> dict[str, float | None]:
    """Of the rules that rank all pairs the exact threshold: rule -> number; None where fewer pairs have one."""
    found: dict[str, float | None] = {}
    for name, fraction in plan.checked.ranked.items():
        results = run_parts(
            dataset, "rank", _Keys(dataset.absolute, plan.select, plan.rules[name]), elements, plan.recipe.runner
        )
        parts = [part_from(result) for result in results]

        def count(prefix: int, known: int, parts: list[Part] = parts) -> np.ndarray:
            work = _Count(dataset.absolute, prefix, known)
            return combine(dataset, "rank", work, parts, plan.recipe.runner)

        place = top.datacomp_place(fraction, sum(part.rows for part in parts))
        key = top.threshold(count, place)
        found[name] = top.value(key[0]) if key else None
        dataset.remove("tables/ranked")
    return found
