"""The outcome of `vlmdata compare`: selections of one pool side by side, on a page of its own and in the report."""

import datetime
from typing import Any

from markupsafe import Markup, escape

from vlmdata.dataset import Dataset
from vlmdata.report import charts

_ROW, _LABEL, _RIGHT = 34.0, 190.0, 690.0


def of_snapshot(dataset: Dataset, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """What the template shows of the newest comparison, if it was made on this snapshot."""
    if not dataset.exists("compare/compare.json"):
        return None
    result = dataset.read_json("compare/compare.json")
    return content(result) if result["snapshot"] == manifest["number"] else None


def content(result: dict[str, Any]) -> dict[str, Any]:
    """The comparison's plain values, and its charts."""
    named = result["metrics"]
    rows = [(name, found["mean"]) for name, found in named.items()]
    best = f"{result['candidate']} reaches {named[result['candidate']]['mean']['value']:.3f}"
    ahead = [(other, found["mean"]) for other, found in result["differences"].items()]
    return {
        **result,
        "chart": intervals(rows, f"Mean recall of {len(rows)} selections with 95 % intervals; {best}"),
        "ahead": intervals(ahead, f"Mean recall of {result['candidate']} less that of each other", zero=True),
        "not_told": [
            other
            for other, found in result["differences"].items()
            if found["mean"]["low"] <= 0 <= found["mean"]["high"]
        ],
        "columns": [metric for metric in next(iter(named.values())) if metric != "mean"],
    }


def page(dataset: Dataset, result: dict[str, Any]) -> str:
    """The page as HTML, which opens without a network, a script or a second file."""
    from vlmdata.report import environment

    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    name = dataset.root.rstrip("/").rsplit("/", 1)[-1]
    return environment().get_template("compare.html").render(comparison=content(result), name=name, written=written)


def intervals(rows: list[tuple[str, dict[str, Any]]], label: str, zero: bool = False) -> Markup:
    """A row for each name: its interval as a line, its mean as a dot, its seeds as faint dots; the text behind says
    mean and interval. rows: (name, {value, low, high, by_seed}). zero: the scale has 0, which is drawn."""
    if not rows:
        return Markup("")
    everything = [each for _, found in rows for each in (found["low"], found["high"], *found["by_seed"])]
    everything += [0.0] if zero else []
    ticks = charts.nice(min(everything), max(everything), 5)
    low, high = min(ticks[0], *everything), max(ticks[-1], *everything)
    bottom = 14 + _ROW * len(rows)

    def x(value: float) -> float:
        return _LABEL + (_RIGHT - _LABEL) * (value - low) / (high - low or 1.0)

    parts = [
        f'<path class="grid" d="M{x(tick):.1f} 8V{bottom}"/>'
        f'<text class="tick middle" x="{x(tick):.1f}" y="{bottom + 16}">{charts.number(tick)}</text>'
        for tick in ticks
    ]
    if zero:
        parts.append(f'<path class="axis" d="M{x(0):.1f} 8V{bottom}"/>')
    for place, (name, found) in enumerate(rows):
        y = 8 + _ROW * (place + 0.5)
        sign = "+" if zero else ""
        says = f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"
        says = says.replace("-", "\N{MINUS SIGN}")
        parts.append(
            f'<text class="name end" x="{_LABEL - 12}" y="{y + 4:.1f}">{escape(name[:28])}</text>'
            f'<path class="strong" d="M{x(found["low"]):.1f} {y:.1f}H{x(found["high"]):.1f}"/>'
            + "".join(f'<circle class="seed" cx="{x(v):.1f}" cy="{y + 9:.1f}" r="2.5"/>' for v in found["by_seed"])
            + f'<circle class="dot" cx="{x(found["value"]):.1f}" cy="{y:.1f}" r="5"/>'
            f'<text class="tick" x="{_RIGHT + 10}" y="{y + 4:.1f}">{says}</text>'
        )
    return Markup(  # noqa: S704 - numbers, and text that is escaped
        f'<svg class="chart intervals" viewBox="0 0 890 {bottom + 24:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
