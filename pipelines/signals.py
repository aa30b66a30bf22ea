"""The stage `signals`: every signal of the recipe for every part, images decoded once."""

from dataclasses import asdict, dataclass
from typing import Any

from vlmdata import shards, signals
from vlmdata.catalog import wide_part
from vlmdata.dataset import Dataset
from vlmdata.parts import Part, Table, noted, part_from
from vlmdata.pipelines import models
from vlmdata.pipelines.runner import run_parts
from vlmdata.plan import Plan, SignalPlan
from vlmdata.signals import first_measured, measure_part
from vlmdata.snapshot import without_secrets

# What is read beside signals (the first two always there), in this order.
_READ = ("pairs", "images", "source_signals", "known")
# The parts of these by table; for a signal what earlier keys hold of the same pairs, each table -> part.
_Element = tuple[dict[str, Part], dict[str, list[dict[str, Part]]]]


@dataclass(frozen=True)
class _Work:
    """What a worker needs for any part."""

    dataset: str
    signals: tuple[SignalPlan, ...]

    def __call__(self, element: _Element) -> dict[str, Any]:
        known, reusable = element
        pairs, images = known["pairs"], known["images"]
        dataset = Dataset(self.dataset)
        parts: dict[str, Part] = {}
        todo = []
        for signal in self.signals:
            tables, inputs = list(signal.measurement.schemas), _inputs(signal, known)
            there = {name: dataset.current_part(name, signal.key, pairs.name, inputs) for name in tables}
            if all(there.values()):
                parts |= {name: part for name, part in there.items() if part}
            else:
                todo.append(signal)
        if todo:
            rows = wide_part(dataset, list(known.values()))
            measured = {name: dataset.read_part(part) for name, part in parts.items()}
            earlier = {s.name: [e for e in reusable.get(s.name, []) if _same(dataset, e, s, known)] for s in todo}
            reuse = {
                name: first_measured([dataset.read_part(parts[name]) for parts in earlier[signal.name]])
                for signal in todo
                if earlier[signal.name]
                for name in signal.measurement.schemas
            }
            with dataset.opened(images.also[0]) as tar:
                fresh = measure_part(rows, shards.reader(tar), [s.measurement for s in todo], measured, reuse)
            for signal in todo:
                device = signals.device(signal.measurement.options)
                inputs = _inputs(signal, known)
                for name in signal.measurement.schemas:
                    ran = {device} if device else set()
                    ran |= {ran for there in earlier[signal.name] for ran in dataset.devices(there[name])}
                    parts[name] = dataset.write_part(name, signal.key, pairs.name, fresh[name], inputs, devices=ran)
        models = [s.name for s in self.signals if signals.device(s.measurement.options)]
        devices = {name: dataset.devices(parts[name]) for name in models}
        return {"parts": {name: asdict(part) for name, part in parts.items()}, "devices": devices}


def run(plan: Plan, dataset: Dataset, tables: dict[str, Table]) -> dict[str, Table]:
    """Measure what is missing, write the manifests; table -> table.

    tables: pairs, images, and source_signals and known where there are any.
    A signal's own model is trained in between, when all that it reads has been measured.
    """
    reusable = _reusable(plan, dataset)
    read = [tables[name] for name in _READ if name in tables]
    elements: list[_Element] = [
        ({table.table: part for table, part in zip(read, known, strict=True)}, reusable.get(known[0].name, {}))
        for known in zip(*(table.parts for table in read), strict=True)
    ]
    measured: dict[str, Table] = {}
    ready: list[SignalPlan] = []
    for place, signal in enumerate(plan.signals):
        found = signal.found_anywhere()
        if signals.trained(signal.measurement.options):
            if len(measured) < len(ready):
                measured |= _measure(plan, dataset, read, elements, ready)
            before = {table.table: table for table in read} | measured
            found = models.trained(plan, dataset, before, found)
        ready.append(found)
        if place + 1 == len(plan.signals):
            measured |= _measure(plan, dataset, read, elements, ready)
    return measured


def _measure(
    plan: Plan, dataset: Dataset, read: list[Table], elements: list[_Element], ready: list[SignalPlan]
) -> dict[str, Table]:
    """Measure these signals, the first ones of the plan, for all parts, and write their manifests."""
    results = run_parts(dataset, "signals", _Work(dataset.absolute, tuple(ready)), elements, plan.recipe.runner)
    measured = {}
    for signal in plan.signals[: len(ready)]:
        about: dict[str, Any] = {
            "base": signal.base,
            "signal": without_secrets(signal.measurement.options.model_dump(mode="json")),
            "model": signal.model,
        }
        for name in signal.measurement.schemas:
            devices = {device for result in results for device in result["devices"].get(signal.name, [])}
            parts = tuple(part_from(result["parts"][name]) for result in results)
            told = {"devices": sorted(devices)} if devices else {}
            made_from = noted(table for table in read if table.table in signal.inputs)
            measured[name] = Table(name, signal.key, parts, made_from, about | told)
            dataset.write_table(measured[name])
    return measured


def _inputs(signal: SignalPlan, known: dict[str, Part]) -> dict[str, str]:
    """What a part of the signal is made from, as its footer notes it."""
    return {known[name].path: known[name].sha256 for name in signal.inputs}


def _same(dataset: Dataset, earlier: dict[str, Part], signal: SignalPlan, known: dict[str, Part]) -> bool:
    """Whether earlier parts were made from the present inputs; other rules may have read others beside them."""
    now = _inputs(signal, known)
    return all(now.get(path, sha) == sha for part in earlier.values() for path, sha in dataset.inputs(part).items())


def _reusable(plan: Plan, dataset: Dataset) -> dict[str, dict[str, list[dict[str, Part]]]]:
    """Parts measured earlier by the same model and parameters under other `after` rules.

    Part's name -> signal -> for each earlier key table -> part.
    """
    found: dict[str, dict[str, list[dict[str, Part]]]] = {}
    for signal in plan.signals:
        names = list(signal.measurement.schemas)
        for first in dataset.tables_named(names[0]):
            tables = [first, *(dataset.read_table(name, first.key) for name in names[1:])]
            if first.key == signal.key or first.about.get("base") != signal.base or None in tables:
                continue
            for parts in zip(*(table.parts for table in tables if table), strict=True):
                earlier = found.setdefault(parts[0].name, {}).setdefault(signal.name, [])
                earlier.append(dict(zip(names, parts, strict=True)))
    return found
