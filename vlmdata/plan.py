"""What a recipe asks for, before anything runs: every table with its key and columns, every rule checked."""

import importlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata import blur, dedup, ingest, select, shards, signals, sources
from vlmdata.catalog import GROUPED
from vlmdata.dataset import Dataset
from vlmdata.dedup import evaluation
from vlmdata.download import known, lists
from vlmdata.errors import InputError
from vlmdata.layers import same_parts
from vlmdata.parts import Table, make_key
from vlmdata.recipe import (
    DecontaminateDedup,
    FolderSource,
    Recipe,
    Select,
    Shards,
    VideoSource,
    WebdatasetSource,
    nearest,
    signal_name,
)
from vlmdata.rules import Expression, check_rule
from vlmdata.schemas import table_schema
from vlmdata.select import entries, presets
from vlmdata.select.checked import Checked, check_preset, check_select
from vlmdata.sources import video, webdataset

STAGES = ("ingest", "download", "signals", "dedup", "select", "shards", "jobs", "report")
# Wall-clock seconds a row of each table, measured on two cores without a GPU with small images from a near server.
SECONDS_A_ROW = {
    "images": 0.006,
    "text": 0.0001,
    "pii": 0.00002,
    "fluency": 0.1,
    "language": 0.0001,
    "wordnet": 0.0001,
    "image": 0.001,
    "clip": 0.025,
    "nsfw": 0.04,
    "aesthetic": 0.0001,
    "filter": 0.01,
    "near_target": 0.0002,
    "python": 0.002,
    "embeddings_sscd": 0.1,
    "ocr": 0.05,
    "faces": 0.1,
    "masked": 0.08,  # masked_clip
    "duplicates": 0.0002,
}


@dataclass(frozen=True)
class SignalPlan:
    """A signal with the keys of its tables. `base` is the key without `after`: equal bases have equal values.

    inputs: the tables that decide, beside the key, what its parts hold, of those that no signal makes: pairs, and
    images or others where the signal, its rules or what these read are made from them.
    model: what its values depend on beside the options: hashes of model and preprocessing.
    """

    measurement: signals.Measurement
    key: str
    base: str
    inputs: tuple[str, ...]
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return signal_name(self.measurement.options)

    def found_anywhere(self) -> "SignalPlan":
        """With the paths of its files, where they are relative, as workers find them."""
        options = self.measurement.options
        module = signals.family(options.kind)
        if not hasattr(module, "absolute"):
            return self
        return replace(self, measurement=replace(self.measurement, options=module.absolute(options)))


@dataclass(frozen=True)
class Plan:
    """The recipe, resolved. `columns` are those of `samples` before the verdict, in order.

    `brings`: the signals of all sources, columns of the table `source_signals`; without any there is no such table.
    `optout` and `known` are the digests of what the user's lists hold.
    """

    recipe: Recipe
    limit: int | None
    found: dict[str, str]
    brings: pa.Schema
    pairs: str
    images: str
    signals: tuple[SignalPlan, ...]
    duplicates: str | None
    columns: pa.Schema
    checked: Checked
    select: str
    shards: str
    tables: dict[str, str] = field(default_factory=dict)
    optout: str = ""
    known: str = ""

    @property
    def rules(self) -> dict[str, Expression]:
        """The selection's rules in order."""
        return self.checked.rules

    @property
    def signal_tables(self) -> list[str]:
        """The signals' tables in the order of measuring."""
        return [name for signal in self.signals for name in signal.measurement.schemas]


def make_plan(recipe: Recipe, limit: int | None = None) -> Plan:
    """Resolve a recipe.

    Raises InputError for what can be known to be wrong before work starts: a source that is not there, a rule that
    names no column or is not BOOLEAN, `after` rules that wait for each other.
    """
    found, brought = {}, {}
    for source in recipe.sources:
        module = importlib.import_module(f"vlmdata.sources.{source.kind}")
        sources.check(source)
        brought[source.name] = sources.signals(source)
        found[source.name] = ingest.source_key(source, module.VERSION, brought[source.name])
    brings = sources.unite_signals(brought)
    pairs = make_key("pairs", ingest.VERSION, [recipe.parts.rows, limit], list(found.values()))
    download = importlib.import_module("vlmdata.download")
    images = make_key("images", download.VERSION, recipe.download.keyed(), [pairs])  # no consent: download/optout.py
    tables = {"pairs": pairs, **({"source_signals": pairs} if brings else {}), "images": images}
    columns = _scalars(_without_fetch_url(table_schema("pairs")), brings, table_schema("images"))
    listed = {name: lists.digest(list_files(recipe, name)) for name in ("optout", "known")}
    if listed["known"]:
        check = [listed["known"], recipe.consent.known_distance]
        tables["known"] = make_key("known", known.VERSION, check, [images])
        columns = _scalars(columns, table_schema("known"))
    columns, planned = _plan_signals(recipe, presets.rules(recipe), columns, tables)
    duplicates = None
    if recipe.dedup:
        for method in recipe.dedup:
            for read in dedup.tables(method):
                if recipe.download.skip and read == "images":
                    raise InputError(f"dedup.{method.kind}: it compares images, and download.skip leaves them out")
                if read not in tables:
                    raise InputError(
                        f"dedup.{method.kind}: there is no table {read!r} to compare{nearest(read, tables)}; "
                        "`signals` must name what makes it"
                    )
        evaluated = {
            m.kind: lists.digest(evaluation.find(m.against)) for m in recipe.dedup if isinstance(m, DecontaminateDedup)
        }
        options = [method.keyed() for method in recipe.dedup] + [evaluated] * bool(evaluated)
        compared = [tables[name] for name in sorted(tables) if name != "known"]
        duplicates = make_key("duplicates", dedup.VERSION, options, compared)
        tables |= dict.fromkeys(GROUPED if evaluated else GROUPED[:1], duplicates)
    checked, chosen, written = _selection(recipe, columns, tables, listed["optout"])
    return Plan(
        recipe,
        limit,
        found,
        brings,
        pairs,
        images,
        planned,
        duplicates,
        columns,
        checked,
        chosen,
        written,
        tables,
        **listed,
    )


def with_select(plan: Plan, chosen: Select, written: Shards) -> Plan:
    """The same tables under another selection, whose rules no `after` names. Raises InputError as `make_plan` does."""
    recipe = plan.recipe.model_copy(update={"select": chosen, "shards": written})
    checked, select_key, shards_key = _selection(recipe, plan.columns, plan.tables, plan.optout)
    return replace(plan, recipe=recipe, checked=checked, select=select_key, shards=shards_key)


def _selection(recipe: Recipe, columns: pa.Schema, tables: dict[str, str], optout: str) -> tuple[Checked, str, str]:
    """The selection, checked, its key, and that of its shards. optout: the digest of the opt-out lists, or nothing."""
    checked = check_select(recipe, columns)
    shards.check_columns(recipe.shards, columns)
    chosen = make_key(
        "select",
        select.VERSION,
        [
            recipe.select.keyed(),
            [d.kind for d in recipe.dedup],
            *([merging] if (merging := [d.kind for d in recipe.dedup if getattr(d, "merge", None)]) else []),
            list(recipe.select.rules),
            sorted(set(recipe.consent.respect)),
            *([optout] if optout else []),
            *([entries.identity(recipe.select.balance)] if recipe.select.balance else []),
        ],
        [tables[name] for name in sorted(tables)],
    )
    blurred = [blur.VERSION] if recipe.shards.blur_faces else []
    written = make_key(
        "shards", shards.VERSION, [recipe.shards.keyed(), list(recipe.shards.splits), *blurred], [chosen]
    )
    return checked, chosen, written


def _plan_signals(
    recipe: Recipe, preset: dict[str, presets.Rule], columns: pa.Schema, tables: dict[str, str]
) -> tuple[pa.Schema, tuple[SignalPlan, ...]]:
    """Order the signals so that each comes behind those that it or its `after` rules read, and give each its key."""
    for options in recipe.signals:
        for name in options.after:
            if name not in recipe.select.rules and (name not in preset or preset[name].fraction is not None):
                raise InputError(
                    f"signals.{options.kind}.after: no preset has a rule {name!r} that a pair alone decides"
                    f"{nearest(name, preset)}"
                )
    waiting = list(recipe.signals)
    planned: list[SignalPlan] = []
    stored = {table: table_schema(table).names for table in ("pairs", "images", "known") if table in tables}
    owner = {c: next((t for t, names in stored.items() if c in names), "source_signals") for c in columns.names}
    inputs = {table: {table} for table in tables}
    bases: dict[str, str] = {}
    while waiting:
        problem: InputError | None = None
        for options in waiting:
            try:
                after = {
                    name: check_preset(name, preset[name], columns)
                    if name in preset
                    else check_rule(name, recipe.select.rules[name], columns)
                    for name in options.after
                }
                vectors = signals.reads(options)
                for table in vectors:
                    if table not in bases:
                        raise InputError(
                            f"signals.{options.kind}: there is no table {table!r} to read{nearest(table, bases)}; "
                            "`signals` must name what makes it"
                        )
                for column in signals.columns(options):
                    if column not in columns.names:
                        raise InputError(
                            f"signals.{options.kind}: there is no column {column!r} to read"
                            f"{nearest(column, columns.names)}; `signals` must name what makes it"
                        )
            except InputError as error:  # it may read a signal that is planned later
                problem = problem or error
                continue
            break
        else:
            assert problem is not None
            raise problem
        waiting.remove(options)
        module = signals.family(options.kind)
        if signals.images(options) and recipe.download.skip:
            raise InputError(f"signals.{options.kind}: it looks at images, and download.skip leaves them out")
        schemas = module.schemas(options)
        values = options.keyed("after")
        looked = ["pairs", *(["images"] if signals.images(options) else [])]
        first = [tables[name] for name in looked]
        stage, model = f"signal/{signal_name(options)}", module.identity(options)
        # a table whose key is among the first need not stand there again
        read = sorted({owner[c] for rule in after.values() for c in rule.columns if tables[owner[c]] not in first})
        given = sorted({owner[c] for c in signals.columns(options) if tables[owner[c]] not in first})
        gates = {name: rule.sql for name, rule in after.items()}
        made = [*first, *(bases[name] for name in vectors), *(tables[name] for name in given)]
        base = make_key(stage, module.VERSION, [values, model], made)
        key = make_key(stage, module.VERSION, [base, gates], [tables[name] for name in [*read, *vectors]])
        if signals.trained(options):  # on what is there and the rules let pass: other rules make another model
            base = key
        measurement = signals.Measurement(options, schemas, after)
        stems = set(looked).union(*(inputs[name] for name in [*vectors, *(owner[c] for c in measurement.needs)]))
        planned.append(SignalPlan(measurement, key, base, tuple(sorted(stems)), model))
        inputs |= dict.fromkeys(schemas, stems)
        for table, schema in schemas.items():
            tables[table], bases[table] = key, base
            twice = sorted((set(schema.names) & set(columns.names)) - {"uid"})
            if twice:
                raise InputError(f"signals.{options.kind}: the column {twice[0]!r} is there already; give it a `name`")
            owner |= {name: table for name in schema.names if name != "uid"}
            columns = _scalars(columns, schema)
    return columns, tuple(planned)


def _without_fetch_url(schema: pa.Schema) -> pa.Schema:
    """Signed URLs are for the download alone: neither rules nor outputs see them."""
    return schema.remove(schema.get_field_index("fetch_url"))


def _scalars(*schemas: pa.Schema) -> pa.Schema:
    """The scalar columns of several tables, `uid` once."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for column in schema:
            if not pa.types.is_nested(column.type):
                fields.setdefault(column.name, column)
    return pa.schema(list(fields.values()))


def list_files(recipe: Recipe, name: str) -> list[lists.File]:
    """The files of `consent.optout` or `consent.known`. Raises InputError where a path matches none."""
    return lists.find(getattr(recipe.consent, name), f"consent.{name}")


def source_roots(recipe: Recipe) -> dict[str, str]:
    """The folder of every source that has local files: its pairs' URLs begin with the source's name."""
    roots = {s.name: s.path for s in recipe.sources if isinstance(s, FolderSource)}
    roots |= {s.name: webdataset.root(s.path) for s in recipe.sources if isinstance(s, WebdatasetSource)}
    roots |= {s.name: video.root(s.path) for s in recipe.sources if isinstance(s, VideoSource)}
    return {name: os.path.abspath(path) for name, path in roots.items()}


def check_writable(dataset: Dataset) -> None:
    """Raise InputError when the dataset's folder cannot be written."""
    if not dataset.local:
        return
    folder = Path(dataset.root)
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"dataset {dataset.url}: {folder} cannot be written ({error.strerror}); "
            "choose another folder or change its permissions"
        ) from error


def check_parts(plan: Plan, dataset: Dataset) -> None:
    """Raise InputError when the dataset was made with parts of another size: its tables would not fit together."""
    for table in dataset.tables_named("pairs"):
        rows = table.about["rows"]
        if rows != plan.recipe.parts.rows:
            raise InputError(
                f"parts.rows: {dataset.url} was made with parts of {rows} rows; "
                f"write parts: {{rows: {rows}}}, or choose another dataset"
            )


def done_already(plan: Plan, dataset: Dataset) -> dict[str, Any] | None:
    """The manifest of the snapshot in force when it is just what the plan asks for (its jobs apart)."""
    latest = dataset.latest()
    if latest is None or latest["keys"] != snapshot_keys(plan):
        return None
    tables = tables_there(plan, dataset)
    return latest if len(tables) == len(plan.tables) and made_from(latest, plan, tables.values()) else None


def made_from(manifest: dict[str, Any], plan: Plan, tables: Iterable[Table]) -> bool:
    """Whether a snapshot is the full selection that the plan asks for, made from just these parts of the tables."""
    return (
        "base" not in manifest
        and manifest["keys"] == snapshot_keys(plan)
        and all(same_parts(manifest, table) for table in tables)
    )


def tables_there(plan: Plan, dataset: Dataset) -> dict[str, Table]:
    """The plan's tables that are whole and up to date, by name, in the plan's order."""
    there: dict[str, Table] = {}
    for name, key in plan.tables.items():
        table = dataset.current_table(name, key, there.values())
        if table is not None:
            there[name] = table
    return there


def snapshot_keys(plan: Plan) -> dict[str, str]:
    """What a snapshot was made from: table or stage -> key."""
    return plan.tables | {"select": plan.select, "shards": plan.shards}


def describe(plan: Plan, dataset: Dataset) -> list[str]:
    """What a run would do, a line for each table: what is there already, and about how long the rest takes."""
    tables = tables_there(plan, dataset)
    pairs = tables.get("pairs")
    lines = [f"dataset {plan.recipe.dataset}"]
    for name in plan.found:
        there = dataset.read_table("found", plan.found[name])
        lines.append(f"source {name:<16}" + (_found(there) if there else "not read yet"))
    lines.append(f"{'pairs':<23}" + (f"{pairs.rows:,} rows, {_size(pairs)}" if pairs else "not made yet"))
    total = 0.0
    for name in list(plan.tables)[1:]:
        table = tables.get(name)
        if table:
            lines.append(f"{name:<23}there: {table.rows:,} rows, {_size(table)}")
            continue
        earlier = dataset.read_table(name, plan.tables[name]) if name not in GROUPED else None
        missing = pairs.rows - (earlier.rows if earlier else 0) if pairs else 0
        seconds = missing * _seconds_a_row(name)
        total += seconds
        lines.append(
            f"{name:<23}missing"
            + (f" for {missing:,} rows: up to {seconds / 60:.1f} minutes on two cores" if pairs else "")
        )
    latest = dataset.latest()
    if latest is not None and done_already(plan, dataset):
        lines.append(f"{'snapshot':<23}there: number {latest['number']}, {latest['funnel'][-1]['left']:,} kept")
    elif latest is not None and "base" in latest and latest["keys"] == snapshot_keys(plan):
        lines.append(
            f"{'snapshot':<23}there: number {latest['number']}, to which a refresh has added; "
            "a run publishes the full selection"
        )
    else:
        lines.append(f"{'snapshot':<23}missing: the next is number {(latest['number'] if latest else 0) + 1}")
    if pairs:
        lines.append(f"about {total / 3600:.2f} hours up to the selection, without jobs; `after` rules shorten it")
    return lines


def _seconds_a_row(table: str) -> float:
    """Of `clip_b` what `clip` takes, of `embeddings_sscd_b` what `embeddings_sscd`."""
    known = [name for name in SECONDS_A_ROW if f"{table}_".startswith(f"{name}_")]
    return SECONDS_A_ROW[known[0]] if known else 0.0


def _found(table: Table) -> str:
    """How many rows a source gave, and what it told of pages and damage."""
    counts = table.about.get("counts", {})
    damaged = ", ".join(f"{what}: {counts[what]:,}" for what in sources.DAMAGES if counts.get(what))
    pages = f" from {counts['pages']:,} pages" if "pages" in counts else ""
    return f"read: {table.rows:,} found{pages}" + (f"; {damaged}" if damaged else "")


def _size(table: Table) -> str:
    return f"{sum(part.bytes + sum(file.bytes for file in part.also) for part in table.parts) / 1e6:,.1f} MB"
