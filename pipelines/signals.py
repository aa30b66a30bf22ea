"""The stage `signals`: every signal of the recipe for every part, images decoded once."""

from dataclasses import asdict, dataclass
from typing import Any

from vlmdata import signals
from vlmdata.catalog import wide_part
from vlmdata.dataset import Dataset, Part, Table, noted, part_from
from vlmdata.pipelines import models
from vlmdata.pipelines.runner import run_parts
from vlmdata.plan import Plan, SignalPlan
from vlmdata.signals import first_measured, measure_part
from vlmdata.snapshot import without_secrets

# The parts that rules may read: pairs, images and, where sources bring any, source_signals; what is measured already.
_Element = tuple[list[Part], dict[str, list[Part]]]


@dataclass(frozen=True)
class _Work:
    """What a worker needs for any part."""

    dataset: str
    signals: tuple[SignalPlan, ...]

    def __call__(self, element: _Element) -> dict[str, Any]:
        known, reusable = element
        pairs, images = known[:2]
        dataset = Dataset(self.dataset)
        inputs = {part.path: part.sha256 for part in known}
        parts: dict[str, Part] = {}
        todo = []
        for signal in self.signals:
            tables = list(signal.measurement.schemas)
            there = {name: dataset.current_part(name, signal.key, pairs.name, inputs) for name in tables}
            if all(there.values()):
                parts |= {name: part for name, part in there.items() if part}
            else:
                todo.append(signal)
        if todo:
            rows = wide_part(dataset, known)
            measured = {name: dataset.read_part(part) for name, part in parts.items()}
            reuse = {}
            for name, earlier in reusable.items():
                found = [dataset.read_part(part) for part in earlier]
                # of the same rows in the same order only
                same = [table for table in found if table["uid"].equals(rows["uid"])]
                if same:
                    reuse[name] = first_measured(same)
            with dataset.open(images.also[0].path) as tar:

                def read_image(offset: int, length: int) -> bytes:
                    tar.seek(offset)
                    return tar.read(length)

                fresh = measure_part(rows, read_image, [s.measurement for s in todo], measured, reuse)
            for signal in todo:
                device = signals.device(signal.measurement.options)
                for name in signal.measurement.schemas:
                    ran = {device} if device else set()
                    ran |= {ran for part in reusable.get(name, []) for ran in dataset.devices(part)}
                    parts[name] = dataset.write_part(name, signal.key, pairs.name, fresh[name], inputs, devices=ran)
        models = [s.name for s in self.signals if signals.device(s.measurement.options)]
        devices = {name: dataset.devices(parts[name]) for name in models}
        return {"parts": {name: asdict(part) for name, part in parts.items()}, "devices": devices}


def run(plan: Plan, dataset: Dataset, tables: dict[str, Table]) -> dict[str, Table]:
    """Measure what is missing, write the manifests; table -> table.

    tables: pairs, images, and source_signals where sources bring any.
    A signal's own model is trained in between, when all that it reads has been measured.
    """
    reusable = _reusable(plan, dataset)
    read = [tables[name] for name in ("pairs", "images", "source_signals") if name in tables]
    elements: list[_Element] = [
        (list(known), {name: parts[known[0].name] for name, parts in reusable.items() if known[0].name in parts})
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
            measured[name] = Table(name, signal.key, parts, noted(read), about | told)
            dataset.write_table(measured[name])
    return measured


def _reusable(plan: Plan, dataset: Dataset) -> dict[str, dict[str, list[Part]]]:
    """Parts measured earlier by the same model and parameters under other `after` rules: table -> name -> parts."""
    found: dict[str, dict[str, list[Part]]] = {}
    for signal in plan.signals:
        for name in signal.measurement.schemas:
            for table in dataset.tables_named(name):
                if table.key != signal.key and table.about.get("base") == signal.base:
                    for part in table.parts:
                        found.setdefault(name, {}).setdefault(part.name, []).append(part)
    return found
