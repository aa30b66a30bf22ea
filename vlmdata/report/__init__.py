"""The report of a snapshot: one HTML file that opens without a network, a script or a second file.

Numbers come from SQL over the dataset, pictures from the stored images' places in their tars; only the rows and
images that are shown are in memory.
"""

import datetime
from importlib.resources import files
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from vlmdata import catalog, layers
from vlmdata.dataset import Dataset
from vlmdata.parts import snapshot_folder
from vlmdata.report import charts, comparison, facts
from vlmdata.report.contamination import contamination
from vlmdata.report.histograms import histograms
from vlmdata.report.sheets import contact_sheets, cut
from vlmdata.report.training import training_jobs
from vlmdata.snapshot import page_note


def write_report(dataset: Dataset, manifest: dict[str, Any]) -> str:
    """Write `snapshots/<number>/report.html` and return where it is.

    manifest: of a snapshot, as it was published. Times of stages and jobs are taken from `jobs`, so the report
    is written after them. Raises DataError where a file that the manifest names is not there.
    """
    connection = catalog.connect(dataset, manifest)
    try:
        page = environment().get_template("page.html").render(_content(dataset, connection, manifest))
    finally:
        connection.close()
    folder = snapshot_folder(manifest["number"])
    relative, content = f"{folder}/report.html", page.rstrip("\n").encode("utf-8", "replace") + b"\n"
    described = dataset.sha256(f"{folder}/manifest.json")[0] if dataset.exists(f"{folder}/manifest.json") else "-"
    dataset.write_bytes(relative, content + page_note(described, content))
    return dataset.address(relative)


def _content(dataset: Dataset, connection: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template shows, as plain values; the template escapes all texts."""
    steps = facts.funnel(manifest)
    drawn = histograms(connection, manifest)
    jobs = training_jobs(dataset, connection, manifest)
    seconds = facts.stage_seconds(connection, manifest)
    return {
        "name": dataset.root.rstrip("/").rsplit("/", 1)[-1],
        "manifest": manifest,
        "pairs": manifest["funnel"][0]["left"],
        "kept": manifest["funnel"][-1]["left"],
        "steps": steps,
        "splits": sorted(manifest["splits"].items(), key=lambda split: (-split[1], split[0])),
        "largest": sorted((step for step in steps if step.rejected), key=lambda step: -step.rejected)[:3],
        "judged": [(chart, charts.histogram(chart)) for chart in drawn if chart.thresholds],
        "observed": [(chart, charts.histogram(chart)) for chart in drawn if not chart.thresholds],
        "booleans": facts.booleans(connection, manifest),
        "balance": facts.balance(manifest),
        "languages": facts.languages(connection, manifest),
        "sources": facts.sources(connection),
        "sheets": contact_sheets(dataset, connection, manifest),
        "contamination": contamination(dataset, connection, manifest),
        "consent": facts.consent(connection, manifest),
        "downloads": facts.downloads(connection),
        "retries": layers.outcomes(dataset, manifest),
        "totals": facts.totals(connection),
        "seconds": seconds,
        "jobs": [(job, _curves(job)) for job in jobs],
        "comparison": comparison.of_snapshot(dataset, manifest),
        "files": manifest["shards"][: facts.FILES],
        "recipe": yaml.safe_dump(manifest["recipe"], sort_keys=False, allow_unicode=True, width=100),
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _curves(job: Any) -> dict[str, Markup]:
    """The loss over steps, and recall at 10 over steps where it was measured more than once."""
    drawn = {}
    if job.loss:
        label = f"Loss of {job.name} over {job.loss[-1][0]} steps, from {job.loss[0][1]:.3g} to {job.smooth[-1][1]:.3g}"
        drawn["loss"] = charts.curve(job.loss, job.smooth, label)
    for direction, points in job.recalls.items():
        if len(points) > 1:
            chance = job.measures.get(f"retrieval/{direction}/R@10/chance")
            label = f"Recall at 10 of {job.name}, {direction.replace('_', ' ')}, up to {points[-1][1]:.3g}"
            drawn[direction] = charts.curve([], points, label, chance)
    return drawn


def environment() -> jinja2.Environment:
    """Of all pages: texts are escaped, and a name that is not there is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup(files(__package__).joinpath("style.css").read_text("utf-8"))  # noqa: S704 - our own
    environment.filters |= {
        "number": charts.number,
        "count": lambda number: f"{number:,}",
        "percent": percent,
        "size": size,
        "duration": duration,
        "cut": cut,
        "value": value,
    }
    return environment


def value(found: object) -> str:
    """A column's value for people."""
    if found is None:
        return "not measured"
    if isinstance(found, bool):
        return "true" if found else "false"
    return charts.number(found) if isinstance(found, int | float) else str(found)


def percent(share: float) -> str:
    """A share as 34 %, 0.4 %, or <0.1 %."""
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1\N{NO-BREAK SPACE}%"
    # 99.96 % of the pairs are not all of them
    shown = f"{min(value, 99.9) if share < 1 else value:.1f}" if value < 10 or 99 < value < 100 else f"{value:.0f}"
    return f"{shown.removesuffix('.0')}\N{NO-BREAK SPACE}%"


def size(count: int) -> str:
    """Bytes in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f}\N{NO-BREAK SPACE}{unit}" if unit == "B" else f"{value:.3g}\N{NO-BREAK SPACE}{unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\N{NO-BREAK SPACE}min {rest}\N{NO-BREAK SPACE}s"
    return f"{minutes // 60}\N{NO-BREAK SPACE}h {minutes % 60}\N{NO-BREAK SPACE}min"
