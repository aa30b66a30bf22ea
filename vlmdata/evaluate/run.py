"""`vlmdata evaluate`: the tasks that a checkpoint and data allow, one after the other."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from vlmdata.errors import InputError
from vlmdata.evaluate import answers, captions, material, model, objective, retrieval, zeroshot
from vlmdata.recipe import Evaluation, nearest

TASKS: dict[str, Any] = {
    "retrieval": retrieval,
    "zeroshot": zeroshot,
    "masked": objective,
    "captions": captions,
    "answers": answers,
}


def options(**values: Any) -> Evaluation:
    """The command's options. Raises InputError, naming the one that is wrong."""
    for task in values.get("tasks", ()):
        if task not in TASKS:
            raise InputError(f"--task: there is no task {task!r}{nearest(task, TASKS)}; there are {', '.join(TASKS)}")
    try:
        return Evaluation.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{first['loc'][0]}: {first['msg'].lower()}") from error


def evaluate(checkpoint: str, data: str, options: Evaluation) -> dict[str, Any]:
    """Measure a checkpoint (`model.load`) on data (`material.find`).

    Returns a key for each task with its metrics, nested; beside a metric `<name>/interval`, `<name>/chance` and the
    like. `n` is the number of samples measured, the most of any task; `broken` that of pictures that could not be
    decoded. Raises InputError for a task asked for that cannot be done, naming those that can, and where none can.
    """
    loaded = model.load(checkpoint, options.batch)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="vlmdata-") as spool:
        found = material.find(data, options, Path(spool), loaded.frames)
        result = {task: TASKS[task].measure(loaded, found) for task in _possible(loaded, found)}
    return {
        **result,
        "n": max(measures["n"] for measures in result.values()),
        "broken": len(found.broken),
        "checkpoint": checkpoint,
        "data": data,
        "split": found.split,
        "seed": options.seed,
    }


def _possible(loaded: model.Model, found: material.Material) -> list[str]:
    asked = found.options.tasks
    reasons = {task: module.refused(loaded, found) for task, module in TASKS.items()}
    able = [task for task, reason in reasons.items() if reason is None]
    for task in asked or ():
        if reasons[task]:
            raise InputError(f"--task {task}: {reasons[task]}; possible here: {', '.join(able) or 'nothing'}")
    if not able:
        raise InputError(f"nothing to measure: {'; '.join(dict.fromkeys(filter(None, reasons.values())))}")
    return list(dict.fromkeys(asked)) or able


def table(result: dict[str, Any]) -> Iterator[str]:
    """Lines to read: each metric, its interval, and what stands beside it."""
    for path, group in _groups(result, ()):
        for name, value in group.items():
            if not isinstance(value, float) or "/" in name:
                continue
            low_high = group.get(f"{name}/interval")
            interval = f"[{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""
            beside = [
                f"{key.removeprefix(name + '/')} {other:.4g}"
                for key, other in group.items()
                if key.startswith(f"{name}/") and isinstance(other, float)
            ]
            yield f"{' '.join(path):<26}{name:<24}{value:>8.4g}  {interval:<20}{', '.join(beside)}".rstrip()
    yield f"n {result['n']:,}, pictures that cannot be decoded {result['broken']:,}"


def _groups(tree: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    yield path, tree
    for name, inside in tree.items():
        if isinstance(inside, dict):
            yield from _groups(inside, (*path, name))
