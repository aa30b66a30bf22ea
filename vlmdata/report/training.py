"""What the training jobs of a snapshot came to: their curves, their speed, and their final measures beside chance."""

import io
import itertools
import json
from dataclasses import dataclass
from typing import Any

import duckdb

from vlmdata.dataset import Dataset

_POINTS = 400


@dataclass(frozen=True)
class Job:
    """A training job. Series are (step, value), at most 400 points each; measures are None where there are none.

    recall: (direction, k, value, chance), shares from 0 to 1. options: the recipe's options of the job.
    """

    name: str
    state: str
    seconds: float
    options: dict[str, Any]
    loss: list[tuple[float, float]]
    smooth: list[tuple[float, float]]
    recalls: dict[str, list[tuple[float, float]]]
    recall: list[tuple[str, int, float, float | None]]
    measures: dict[str, float]
    speed: float | None


def training_jobs(dataset: Dataset, connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[Job]:
    """The newest run of each of the snapshot's training jobs, in the order in which they began."""
    rows = connection.execute(
        """SELECT job, last(state ORDER BY started_at, seconds NULLS FIRST),
            last(coalesce(seconds, 0) ORDER BY started_at, seconds NULLS FIRST),
            last(output ORDER BY started_at, seconds NULLS FIRST)
        FROM jobs WHERE snapshot = $number AND kind = 'train' GROUP BY job ORDER BY min(started_at), job""",
        {"number": manifest["number"]},
    ).fetchall()
    options = {job["name"]: job for job in manifest["recipe"].get("jobs", [])}
    return [_job(dataset, connection, manifest, row, options.get(row[0], {})) for row in rows]


def _job(
    dataset: Dataset,
    connection: duckdb.DuckDBPyConnection,
    manifest: dict[str, Any],
    row: tuple[str, str, float, str],
    options: dict[str, Any],
) -> Job:
    name, state, seconds, output = row
    measures = dict(
        connection.execute(
            "SELECT name, last(value) FROM metrics WHERE snapshot = $number AND job = $job AND step IS NULL "
            "GROUP BY name ORDER BY name",
            {"number": manifest["number"], "job": name},
        ).fetchall()
    )
    recall = []
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            key = f"retrieval/{direction}/R@{k}"
            if key in measures:
                recall.append((direction, k, measures[key], measures.get(f"{key}/chance")))
    lines = _lines(dataset, f"{output}/metrics.jsonl") if output else []
    loss = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    speeds = sorted(line["samples_per_second"] for line in lines if "samples_per_second" in line)
    recalls = {}
    for direction in ("image_to_text", "text_to_image"):
        key = f"retrieval/{direction}/R@10"
        recalls[direction] = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return Job(
        name, state, seconds, options, thin(loss), thin(smoothed(loss)), recalls, recall, measures,
        speeds[len(speeds) // 2] if speeds else None,
    )  # fmt: skip


def _lines(dataset: Dataset, relative: str) -> list[dict[str, Any]]:
    """The trainer's log, a JSON object a line; a killed run may have cut its last line."""
    if not dataset.exists(relative):
        return []
    lines = []
    with dataset.open(relative) as handle:
        for line in io.TextIOWrapper(handle, "utf-8"):
            if line.endswith("\n"):
                lines.append(json.loads(line))
    return lines


def smoothed(points: list[tuple[float, float]], share: float = 0.08) -> list[tuple[float, float]]:
    """The mean of the points around each point, about `share` of them; half as many at the ends."""
    around = int(share * len(points) / 2)
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    result = []
    for place, (step, _) in enumerate(points):
        first, last = max(0, place - around), min(len(points), place + around + 1)
        result.append((step, (sums[last] - sums[first]) / (last - first)))
    return result


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 400 of the points, evenly spaced, the last one among them."""
    every = max(1, -(-len(points) // _POINTS))
    return points[::-1][::every][::-1]
