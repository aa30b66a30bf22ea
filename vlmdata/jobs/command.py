"""A job as a list of arguments, in which the snapshot's paths are filled in. No shell ever sees them."""

import itertools
import json
import re
import sys
from collections.abc import Iterable

from vlmdata.errors import InputError
from vlmdata.jobs.attempt import Attempt
from vlmdata.parts import snapshot_folder
from vlmdata.recipe import CommandJob
from vlmdata.recipe.jobs import PLACEHOLDER
from vlmdata.train import places
from vlmdata.train.source import shard_urls

CONFIG = "job.json"


def arguments(attempt: Attempt) -> list[str]:
    """The program and its arguments. For a training, whose options are written into its folder, the command line's
    `train` on this very snapshot. Raises InputError for shards that are not there or that the program would misread."""
    job = attempt.job
    if isinstance(job, CommandJob):
        return [filled for argument in job.run for filled in _filled(argument, attempt)]
    config = attempt.folder / CONFIG
    options = places.absolute(job.model_dump(mode="json", exclude={"on"}))
    config.write_text(json.dumps(options, indent=1) + "\n", "utf-8")
    data = f"{attempt.dataset.absolute}@{attempt.number:06d}"
    return [
        *(sys.executable, "-m", "vlmdata.cli", "train", job.objective),
        *("--data", data, "--out", str(attempt.folder), "--config", str(config), "--resume"),
    ]


def environment(attempt: Attempt) -> dict[str, str]:
    """What a job's process finds in its environment beside this process's own."""
    own = attempt.job.env if isinstance(attempt.job, CommandJob) else {}
    filled = {name: "".join(_filled(value, attempt, joined=True)) for name, value in own.items()}
    return {
        **filled,
        "VLMDATA_JOB": attempt.job.name,
        "VLMDATA_RESUME": "1" if attempt.goes_on else "0",
        "PYTHONUNBUFFERED": "1",  # or the log of a job that is killed lacks its last lines
    }


def _filled(argument: str, attempt: Attempt, joined: bool = False) -> list[str]:
    """One argument with its placeholders filled in; `{parquet}` alone becomes an argument for each file."""
    whole = PLACEHOLDER.fullmatch(argument)
    if whole and whole["name"] == "parquet" and not joined:
        return _shards(attempt, "parquet", whole["split"] or "train")

    def value(found: re.Match[str]) -> str:
        if found["kept"]:
            return f"{{{found['kept']}}}"
        split = found["split"] or "train"
        match found["name"]:
            case "webdataset":
                return braces(_shards(attempt, "webdataset", split))
            case "parquet":
                return _commas(_shards(attempt, "parquet", split))
            case "samples":
                return str(attempt.manifest["splits"].get(split, 0))
            case "snapshot":
                return f"{attempt.dataset.absolute.rstrip('/')}/{snapshot_folder(attempt.number)}"
            case "dataset":
                return attempt.dataset.absolute
            case "out":
                return str(attempt.folder)
            case "python":
                return sys.executable
        raise AssertionError(found[0])  # the recipe refuses others

    return [PLACEHOLDER.sub(value, argument)]


def _shards(attempt: Attempt, form: str, split: str) -> list[str]:
    found = shard_urls(attempt.dataset, attempt.manifest, form).get(split)
    if not found:
        raise InputError(f"jobs.{attempt.job.name}: the snapshot has no {form} shards of the split {split!r}")
    return found


def braces(urls: Iterable[str]) -> str:
    """Shards as webdataset takes them in one word: `a/train-{0000000..0000003}.tar`, several such joined by `::`.

    Raises InputError for a path that webdataset would read as a pattern.
    """
    known = sorted(urls)
    for url in known:
        if any(sign in url for sign in ("{", "}", "\\", "::")):
            raise InputError(f"{url}: webdataset reads braces, backslashes and :: as patterns: move the dataset")
    runs: list[tuple[str, str, list[str]]] = []
    for url in known:
        match = re.fullmatch(r"(.*-)(\d+)(\D*)", url)
        before, number, behind = match.groups() if match else (url, "", "")
        if number and runs and runs[-1][:2] == (before, behind) and int(runs[-1][2][-1]) + 1 == int(number):
            runs[-1][2].append(number)
        else:
            runs.append((before, behind, [number]))
    return "::".join(
        f"{before}{{{numbers[0]}..{numbers[-1]}}}{behind}" if len(numbers) > 1 else f"{before}{numbers[0]}{behind}"
        for before, behind, numbers in runs
    )


def _commas(urls: list[str]) -> str:
    for url in itertools.filterfalse(lambda url: "," not in url, urls):
        raise InputError(f"{url}: has a comma in it: give {{parquet}} as an argument of its own")
    return ",".join(urls)
