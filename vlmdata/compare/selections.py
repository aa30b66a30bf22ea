"""The selections that are compared, read from their files and checked against the pool."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlmdata import recipe_file
from vlmdata.errors import InputError
from vlmdata.plan import Plan, with_select
from vlmdata.recipe import ContrastiveJob, DecontaminateDedup, Recipe, Select

RAW = Select(dedup=[])  # everything that has an image


def read(recipe: Recipe, given: list[str]) -> dict[str, Select]:
    """The selections by name, in the order given: YAML files with a recipe's `select:`, or its content alone, named by
    the file; the bare word `raw` is everything that has an image.

    Raises InputError, naming the file, for what is no selection, and for two of one name.
    """
    found: dict[str, Select] = {}
    for path in given:
        name = path if path == "raw" else Path(path).stem
        if not re.fullmatch(r"[\w.-]+", name):
            raise InputError(f"{path}: letters, digits, '.', '_' and '-' make a selection's name: rename the file")
        if name in found:
            raise InputError(f"--select: two selections are called {name!r}: rename one of the files")
        found[name] = RAW if path == "raw" else _parsed(recipe, path, recipe_file.read_yaml(path))
    return found


def _parsed(recipe: Recipe, path: str, content: dict[str, Any]) -> Select:
    asked = content["select"] or {} if set(content) == {"select"} else content
    whole = recipe.model_dump(mode="json")
    for signal in whole["signals"]:
        signal["after"] = []  # these are rules of the recipe's own selection
    try:
        return Recipe.model_validate(whole | {"select": asked}).select
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {where + ': ' if where else ''}{message[0].lower() + message[1:]}") from error


def plans(plan: Plan, selections: dict[str, Select]) -> dict[str, Plan]:
    """For each selection the plan that judges the pool's tables by it; the plan `raw` is the pool's own.

    Raises InputError, naming the selection, for a column that the recipe does not measure.
    """
    job = first_job(plan.recipe)
    shards = plan.recipe.shards.model_copy(update={"formats": ["webdataset"], "splits": {job.train_split: 1.0}})
    found = {}
    for name, select in selections.items():
        try:
            found[name] = with_select(plan, select, shards)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return found


def first_job(recipe: Recipe) -> ContrastiveJob:
    """The training that is compared: the recipe's first contrastive job. Raises InputError where there is none."""
    job = next((job for job in recipe.jobs if isinstance(job, ContrastiveJob)), None)
    if job is None:
        raise InputError("jobs: compare needs a job {kind: train, objective: contrastive, …}, which says what to train")
    if job.mix:
        raise InputError(f"jobs.{job.name}.mix: compare trains on the pool alone: leave it out")
    return job


def check_clean(recipe: Recipe, test: list[str]) -> None:
    """Raise InputError unless the pool is decontaminated against all of the test's shards."""
    from vlmdata.dedup import evaluation

    against = {
        path.rsplit("://", 1)[-1]
        for method in recipe.dedup
        if isinstance(method, DecontaminateDedup)
        for _, path in evaluation.find(method.against)
    }
    for path in test:
        if path.rsplit("://", 1)[-1] not in against:
            raise InputError(
                f"compare.test: dedup must have {{kind: decontaminate, against: {path}}}, so that no selection trains "
                "on an image of the test"
            )
