"""What is new in the sources, as a new layer of `pairs`: never seen (url, caption) pairs alone."""

import logging
from dataclasses import replace
from typing import Any

import pyarrow as pa

from vlmdata import ingest, layers
from vlmdata.dataset import Dataset
from vlmdata.errors import RefusedError
from vlmdata.parts import Part, Table, noted, table_folder
from vlmdata.plan import Plan, snapshot_keys
from vlmdata.recipe import Source
from vlmdata.schemas import table_schema
from vlmdata.sources import states

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")


def check(plan: Plan, latest: dict[str, Any]) -> None:
    """Raise RefusedError where the recipe asks for another selection than the snapshot in force has."""
    now, was = snapshot_keys(plan), latest["keys"]
    if now == was:
        return
    if latest["limit"] is not None:
        what = f"snapshot {latest['number']} was made with --limit {latest['limit']}"
    else:
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        what = f"the recipe is not the one of snapshot {latest['number']}: it gives another {names[0]!r}"
    raise RefusedError(f"{what}; a refresh only appends: `vlmdata run` publishes the recipe's full selection")


def read_again(dataset: Dataset, source: Source, key: str, found: Table) -> Table:
    """Read what is new or has changed in a source since it was read last; `found` with a further layer, where that has
    pairs which it does not hold."""
    progress.info("ingest: %s", source.name, extra={"stage": "ingest", "done": 0, "total": None})
    before, now = ingest.seen(dataset, key), states(source)
    if not now:  # a crawl
        return ingest.read_files(dataset, source, key, now, before, found)
    chosen = changed(before, now)
    if not chosen:
        return found
    log.info("%s: %d of %d files are new or have changed", source.name, len(chosen), len(now))
    return ingest.read_files(dataset, source, key, now, chosen, found)


def changed(before: dict[str, str | None], now: dict[str, str | None]) -> list[str]:
    """The files that are new, have changed, or of which nobody can say."""
    return [file for file, state in now.items() if state is None or file not in before or before[file] != state]


def pending(pairs: Table, found: Table) -> list[Part]:
    """The parts of what a source yielded that `pairs` was not made from: those of later refreshes."""
    was = pairs.inputs.get(f"found/{found.key}")
    for count in range(len(found.parts) + 1):
        if replace(found, parts=found.parts[:count]).sha256 == was:
            return list(found.parts[count:])
    return list(found.parts)


def add_layer(dataset: Dataset, plan: Plan, pairs: Table, brought: Table | None, found: list[Table]) -> list[Table]:
    """Unite what the sources have yielded since into a new layer of `pairs`, and of `source_signals` (brought).

    found: in the recipe's order. Returns the tables with it; nothing where no pair is new. The manifest of `pairs` is
    written last: a kill before it leaves no layer.
    """
    layer, tables = pairs.layer + 1, {"pairs": table_schema("pairs")}
    if brought is not None:
        tables = {"source_signals": pa.schema([*table_schema("source_signals"), *plan.brings]), **tables}
    new = [pending(pairs, table) for table in found]
    if not any(new):
        return []
    with dataset.spool() as folder:
        connection = ingest.connect(folder)
        united = ingest.united_pairs(connection, dataset, new, plan.brings, folder, None, pairs.parts)
        parts = ingest.write_parts(dataset, tables, pairs.key, united, plan.recipe.parts.rows, "url", layer)
        connection.close()
    count = sum(part.rows for part in parts["pairs"])
    grown = []
    for table in (brought, pairs):
        if table is not None:
            begin = {table.key: len(table.parts) - len(parts) for table, parts in zip(found, new, strict=True)}
            added = (*table.parts, *(parts[table.table] if count else ()))
            about = (
                {"layers": [*table.about.get("layers", []), {"layer": layer, "refresh": count, "found": begin}]}
                if count
                else {}
            )
            grown.append(replace(table, parts=added, inputs=noted(found), about={**table.about, **about}))
            dataset.write_table(grown[-1])
    return grown if count else []


def discard(dataset: Dataset, pairs: Table, brought: Table | None, latest: dict[str, Any]) -> list[Table]:
    """Take back the layers of refreshes that no snapshot has; what the sources held is read again by the next one."""
    entries = pairs.about["layers"]
    out = {part["name"] for part in latest["tables"]["pairs"]["parts"]}
    gone = [entry for entry in entries if f"{entry['layer']:06d}" not in {name.partition("-")[0] for name in out}]
    for key, count in gone[0]["found"].items():
        found = dataset.read_table("found", key)
        if found is not None:
            dataset.write_table(replace(found, parts=found.parts[:count]))
        dataset.remove(table_folder("seen", key))
    kept = []
    for table in (brought, pairs):
        if table is not None:
            parts = tuple(part for part in table.parts if part.name in out)
            keys = [name.partition("/")[2] for name in table.inputs]
            inputs = noted(found for key in keys if (found := dataset.read_table("found", key)))
            about = {**table.about, "layers": [entry for entry in entries if entry not in gone]}
            kept.append(replace(table, parts=parts, inputs=inputs, about=about))
            dataset.write_table(kept[-1])
    return kept


def waiting(dataset: Dataset, pairs: Table, latest: dict[str, Any]) -> bool:
    """Whether a layer of a refresh is there that the snapshot in force has not. Raises RefusedError where another run
    is to go on first."""
    if layers.same_parts(latest, pairs):
        return False
    out = {part["name"] for part in latest["tables"]["pairs"]["parts"]}
    refreshed = {entry["layer"] for entry in pairs.about.get("layers", []) if "refresh" in entry}
    if all(part.layer in refreshed for part in pairs.parts if part.name not in out):
        return True
    raise RefusedError(f"{dataset.url}: a `vlmdata run --retry` has not ended: `vlmdata run` goes on with it")
