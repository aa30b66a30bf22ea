"""Charts as SVG text without a library. Colours come from the page's style by class, so that they follow its theme.

Every chart says in its label what it shows, for those who cannot see it.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from vlmdata.report.histograms import Histogram, limit
from vlmdata.report.thresholds import Threshold

_WIDTH = 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 2.0, 278.0, 22.0, 112.0


def number(value: float) -> str:
    """A number for people: 1,234, 12.3k, 4.5M, 0.05."""
    if value < 0:
        return "\N{MINUS SIGN}" + number(-value)
    size = value
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 10_000:
        return f"{value / 1e3:.3g}k"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def histogram(chart: Histogram) -> Markup:
    """Kept pairs below, rejected ones on top of them, every threshold as a line with its turned-away side shaded."""
    most = max(1, *(k + r for k, r in zip(chart.kept, chart.rejected, strict=True)))
    count = len(chart.kept)
    step = (_RIGHT - _LEFT) / count
    gap = 0.6 if step > 4 else 0.0
    lower, upper, hints = [], [], []
    for place, (kept, rejected) in enumerate(zip(chart.kept, chart.rejected, strict=True)):
        if not kept + rejected:
            continue
        x, width = _LEFT + place * step, step - gap
        kept_height = _height(kept, most)
        if kept:
            lower.append(f"M{x:.1f} {_BOTTOM}v{-kept_height:.1f}h{width:.1f}V{_BOTTOM}z")
        if rejected:
            upper.append(f"M{x:.1f} {_BOTTOM - kept_height:.1f}v{-_height(rejected, most):.1f}h{width:.1f}"
                         f"v{_height(rejected, most):.1f}z")  # fmt: skip
        says = f"{_bin(chart, place)}: {kept:,} kept, {rejected:,} not"
        hints.append(
            f'<rect class="hint" x="{x:.1f}" y="{_TOP}" width="{step:.1f}" height="{_BOTTOM - _TOP}">'
            f"<title>{says}</title></rect>"
        )
    lines = "".join(_threshold(chart, threshold) for threshold in chart.thresholds)
    label = (
        f"Histogram of {chart.name}: {sum(chart.kept):,} kept and {sum(chart.rejected):,} other pairs measured, "
        f"{chart.missing:,} without a value, from {number(chart.minimum)} to {number(chart.maximum)}"
        + "".join(f"; rule {t.rule} asks for {t.sign} {number(t.value)}" for t in chart.thresholds)
    )
    return Markup(  # noqa: S704 - numbers, and text that is escaped below
        f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} 130" role="img" aria-label="{escape(label)}">'
        f'<path class="kept" d="{"".join(lower)}"/><path class="lost" d="{"".join(upper)}"/>'
        f'{lines}<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>{_ticks(chart)}{"".join(hints)}</svg>'
    )


def curve(
    points: Sequence[tuple[float, float]], smooth: Sequence[tuple[float, float]], label: str, floor: float | None = None
) -> Markup:
    """A line over steps: `points` faint, `smooth` strong, and a dashed line at `floor` (chance) where there is one."""
    everything = [*points, *smooth]
    if not everything:
        return Markup("")
    left, right, top, bottom = 40.0, 414.0, 12.0, 168.0
    last = max(x for x, _ in everything) or 1.0
    lows = [y for _, y in everything] + ([floor] if floor is not None else [])
    ticks = nice(min(lows), max(lows), 4)
    low, high = min(ticks[0], *lows), max(ticks[-1], *lows)
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> str:
        return f"{left + (right - left) * x / last:.1f} {bottom - (bottom - top) * (y - low) / (high - low):.1f}"

    def line(pairs: Sequence[tuple[float, float]], style: str) -> str:
        if len(pairs) == 1:
            x, y = place(*pairs[0]).split()
            return f'<circle class="{style} dot" cx="{x}" cy="{y}" r="3"/>'
        return f'<path class="{style}" d="M{"L".join(place(x, y) for x, y in pairs)}"/>' if pairs else ""

    grid = "".join(
        f'<path class="grid" d="M{place(0, y)}H{right}"/>'
        f'<text class="tick end" x="{left - 6}" y="{float(place(0, y).split()[1]) + 4:.1f}">{number(y)}</text>'
        for y in ticks
        if low <= y <= high
    )
    steps = "".join(
        f'<text class="tick {"end" if x > 0.97 * last else "middle"}" x="{place(x, low).split()[0]}" y="186">'
        f"{number(x)}</text>"
        for x in nice(0, last, 5)
        if 0 < x <= last
    )
    chance = f'<path class="chance" d="M{place(0, floor)}H{right}"/>' if floor is not None else ""
    return Markup(  # noqa: S704 - numbers, and a label that is escaped
        f'<svg class="chart wide" viewBox="0 0 420 192" role="img" aria-label="{escape(label)}">'
        f"{grid}{steps}{chance}{line(points, 'faint')}{line(smooth, 'strong')}</svg>"
    )


def _height(count: int, most: int) -> float:
    """In the picture's units; what is there can be seen, however little it is."""
    return max(1.0, (_BOTTOM - _TOP) * count / most) if count else 0.0


def _bin(chart: Histogram, place: int) -> str:
    low, high = chart.edges[place], chart.edges[place + 1]
    if place == 0 and chart.below:
        return f"below {number(high)}"
    if place == len(chart.kept) - 1 and chart.above:
        return f"{number(low)} and more"
    if chart.whole and high - low == 1:
        return number(low)
    return f"{number(low)} to {number(high - 1 if chart.whole and not chart.logarithmic else high)}"


def _x(chart: Histogram, value: float) -> float:
    low, high = chart.edges[0], chart.edges[-1]
    if chart.logarithmic:
        low, high, value = (math.log10(1 + max(v, 0)) for v in (low, high, value))
    return _LEFT + (_RIGHT - _LEFT) * min(max((value - low) / (high - low), 0.0), 1.0)


def _threshold(chart: Histogram, threshold: Threshold) -> str:
    x = _x(chart, limit(threshold, chart.whole and not chart.logarithmic))
    start, stop = (_LEFT, x) if threshold.sign in ("≥", ">") else (x, _RIGHT)
    anchor = "end" if x > 0.7 * _RIGHT else "start"
    return (
        f'<rect class="away" x="{start:.1f}" y="{_TOP}" width="{stop - start:.1f}" height="{_BOTTOM - _TOP}"/>'
        f'<path class="limit" d="M{x:.1f} {_TOP - 8}V{_BOTTOM}"/>'
        f'<text class="limit-text {anchor}" x="{x + (-5 if anchor == "end" else 5):.1f}" y="{_TOP - 4}">'
        f"{escape(threshold.sign)} {number(threshold.value)}</text>"
    )


def _ticks(chart: Histogram) -> str:
    low, high = chart.edges[0], chart.edges[-1]
    if chart.logarithmic:
        values = [0.0] * (low < 0.5) + [10.0**p for p in range(-2, 12) if low <= 10.0**p <= high and p >= 0]
        values = values if len(values) > 1 else nice(low, high, 4)
    else:
        values = [value for value in nice(low, high, 5) if not chart.whole or value == int(value)]
    texts = []
    for value in values:
        shown = value + 0.5 * (chart.edges[1] - low) if chart.whole and not chart.logarithmic else value
        x = _x(chart, shown)
        if low <= value <= high:
            anchor = "start" if x < 14 else "end" if x > _RIGHT - 14 else "middle"
            texts.append(f'<text class="tick {anchor}" x="{x:.1f}" y="{_BOTTOM + 15}">{number(value)}</text>')
    return "".join(texts)


def nice(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that cover low to high (Heckbert 1990, "Nice numbers for graph labels")."""
    if high <= low:
        high = low + 1.0
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]
