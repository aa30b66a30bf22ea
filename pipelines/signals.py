"""The stage `signals`: every signal of the recipe for every part, images decoded once."""

from dataclasses import asdict, dataclass
from typing import Any

from vlmdata.catalog import wide_part
from vlmdata.dataset import Dataset, Part, Table, noted, part_from
from vlmdata.pipelines.runner import run_parts
from vlmdata.plan import Plan, SignalPlan
from vlmdata.signals import measure_part

_Element = tuple[Part, Part, dict[str, Part]]


@dataclass(frozen=True)
class _Work:
    """What a worker needs for any part."""

    dataset: str
    signals: tuple[SignalPlan, ...]

    def __call__(self, element: _Element) -> dict[str, Any]:
        pairs, images, reusable = element
        dataset = Dataset(self.dataset)
        inputs = {pairs.path: pairs.sha256, images.path: images.sha256}
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
            rows = wide_part(dataset, [pairs, images])
            measured = {name: dataset.read_part(part) for name, part in parts.items()}
            earlier = {name: dataset.read_part(part) for name, part in reusable.items()}
            # of the same rows in the same order only
            reuse = {name: table for name, table in earlier.items() if table["uid"].equals(rows["uid"])}
            with dataset.open(images.also[0].path) as tar:

                def read_image(offset: int, length: int) -> bytes:
                    tar.seek(offset)
                    return tar.read(length)

                fresh = measure_part(rows, read_image, [s.measurement for s in todo], measured, reuse)
            for signal in todo:
                for name in signal.measurement.schemas:
                    parts[name] = dataset.write_part(name, signal.key, pairs.name, fresh[name], inputs)
        return {name: asdict(part) for name, part in parts.items()}


def run(plan: Plan, dataset: Dataset, pairs: Table, images: Table) -> dict[str, Table]:
    """Measure what is missing, write the manifests; table -> table."""
    reusable = _reusable(plan, dataset)
    elements: list[_Element] = [
        (pair, image, {name: parts[pair.name] for name, parts in reusable.items() if pair.name in parts})
        for pair, image in zip(pairs.parts, images.parts, strict=True)
    ]
    results = run_parts(dataset, "signals", _Work(dataset.url, plan.signals), elements, plan.recipe.runner)
    inputs = noted([pairs, images])
    tables = {}
    for signal in plan.signals:
        about = {"base": signal.base, "signal": signal.measurement.options.model_dump(mode="json")}
        for name in signal.measurement.schemas:
            parts = tuple(part_from(result[name]) for result in results)
            tables[name] = Table(name, signal.key, parts, inputs, about)
            dataset.write_table(tables[name])
    return tables


def _reusable(plan: Plan, dataset: Dataset) -> dict[str, dict[str, Part]]:
    """Parts measured earlier by the same model and parameters under other `after` rules: table -> name -> part.

    Of several the one with the most rows measured would be best; the first by key is taken, which is the same choice
    in every run.
    """
    found: dict[str, dict[str, Part]] = {}
    for signal in plan.signals:
        for name in signal.measurement.schemas:
            for table in dataset.tables_named(name):
                if table.key != signal.key and table.about.get("base") == signal.base and name not in found:
                    found[name] = {part.name: part for part in table.parts}
    return found
