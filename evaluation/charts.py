"""Small charts as inline SVG text: no library, no script, no outside request, the same bytes for the same figures.

Every chart is drawn 360 units wide with 11-unit type and scales with its box, so that it reads on a phone and in a grid of columns.
Colours are CSS classes of the page (evaluation/page.py). All labels pass through `escape`.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 360
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff]")


def escape(value: object) -> str:
    """Any value as text of an HTML element or attribute; what would not be seen, or would turn the text around, is spelled out."""
    return html.escape(_UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", str(value)), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """Short and even: 1,234,567 · 12.3 · 0.0123 · 1.2e-05."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        return f"{value:,.{max(0, digits - whole) if whole else digits}f}"
    return f"{value:.{digits - 1}e}"


def short(value: float) -> str:
    """For an axis: at most five characters up to a billion."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Series:
    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()
    """Beside the points; then points are drawn and not a line."""


@dataclass(frozen=True)
class Scale:
    """Maps values low..high onto pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from at most `low` to at least `high`, steps of 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def line_chart(series: Sequence[Series], x_label: str, y_label: str, zero: bool = False) -> str:
    """Lines (or labelled points) over common axes. Values that are not finite are left out."""
    points = [(x, y) for s in series for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 4), ticks(min(0, *ys) if zero else min(ys), max(ys))
    height = 200 + 16 * ((len(series) + 1) // 2 if len(series) > 1 else 0)
    x_of, y_of = Scale(x_ticks[0], x_ticks[-1], 46, WIDTH - 12), Scale(y_ticks[0], y_ticks[-1], 162, 12)
    parts = [_axes(x_ticks, y_ticks, x_of, y_of, x_label, y_label)]
    for i, s in enumerate(series):
        kept = [(x_of(x), y_of(y)) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if s.labels:
            for (x, y), label in zip(kept, s.labels, strict=True):
                parts.append(f'<circle class="f{i % 5}" cx="{x}" cy="{y}" r="3.5"/>')
                anchor = "end" if float(x) > WIDTH * 0.7 else "start"
                shift = -6 if anchor == "end" else 6
                parts.append(_text(float(x) + shift, float(y) - 5, label, anchor))
        else:
            parts.append(f'<polyline class="s{i % 5}" points="{" ".join(f"{x},{y}" for x, y in kept)}"/>')
    if len(series) > 1:
        for i, s in enumerate(series):
            left, base = 46 + 155 * (i % 2), 206 + 16 * (i // 2)
            parts.append(f'<rect class="f{i % 5}" x="{left}" y="{base - 8}" width="10" height="8"/>' + _text(left + 14, base, s.name))
    return _svg(height, parts, f"{y_label} over {x_label}")


def histogram(edges: Sequence[float], counts: Sequence[int], x_label: str) -> str:
    x_ticks, y_ticks = ticks(edges[0], edges[-1], 4), ticks(0, max(max(counts), 1), 4)
    x_of, y_of = Scale(x_ticks[0], x_ticks[-1], 46, WIDTH - 12), Scale(y_ticks[0], y_ticks[-1], 162, 12)
    parts = [_axes(x_ticks, y_ticks, x_of, y_of, x_label, "documents")]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        width, top = float(x_of(right)) - float(x_of(left)), float(y_of(count))
        parts.append(f'<rect class="f0" x="{x_of(left)}" y="{top:.1f}" width="{max(width - 0.5, 0.5):.1f}" height="{162 - top:.1f}"/>')
    return _svg(200, parts, f"documents by {x_label}")


def bars(rows: Sequence[tuple[str, Sequence[float], str]], names: Sequence[str] = ()) -> str:
    """Horizontal bars: (label, one value a series, what is written behind). `names` of the series make a legend."""
    most = max([value for _, values, _ in rows for value in values] or [0]) or 1
    parts, y = [], 4
    for label, values, text in rows:
        room = 56 - len(text)  # letters of about 6 units, both texts on one line
        shown = label if len(label) <= room else label[: room - 1] + "…"
        parts.append(_text(0, y + 9, shown) + _text(WIDTH, y + 9, text, "end"))
        y += 13
        for i, value in enumerate(values):
            parts.append(f'<rect class="f{i % 5}" x="0" y="{y}" width="{max(WIDTH * value / most, 0.5):.1f}" height="6"/>')
            y += 7
        y += 7
    for i, name in enumerate(names):
        parts.append(f'<rect class="f{i % 5}" x="{120 * i}" y="{y}" width="10" height="8"/>' + _text(120 * i + 14, y + 8, name))
    return _svg(y + (14 if names else 0), parts, "bars of " + ", ".join(label for label, _, _ in rows[:6]))


def whiskers(rows: Sequence[tuple[str, float, float, float]], reference: float | None, x_label: str) -> str:
    """A dot with its interval for each (label, mean, low, high), and a line at the reference."""
    finite = [v for row in rows for v in row[1:] if math.isfinite(v)] + ([] if reference is None else [reference])
    x_ticks = ticks(min(finite), max(finite), 4)
    x_of, bottom = Scale(x_ticks[0], x_ticks[-1], 10, WIDTH - 14), 8 + 30 * len(rows)
    parts = [f'<line class="grid" x1="{x_of(t)}" y1="4" x2="{x_of(t)}" y2="{bottom}"/>' for t in x_ticks]
    parts += [_text(float(x_of(t)), bottom + 14, short(t), "middle") for t in x_ticks]
    parts.append(_text(WIDTH / 2, bottom + 28, x_label, "middle"))
    if reference is not None:
        parts.append(f'<line class="mark" x1="{x_of(reference)}" y1="4" x2="{x_of(reference)}" y2="{bottom}"/>')
    for i, (label, mean, low, high) in enumerate(rows):
        y = 30 + 30 * i
        parts.append(_text(10, y - 11, label))
        if math.isfinite(low) and math.isfinite(high):
            parts.append(f'<line class="s0" x1="{x_of(low)}" y1="{y}" x2="{x_of(high)}" y2="{y}"/>')
        parts.append(f'<circle class="f0" cx="{x_of(mean)}" cy="{y}" r="4"/>')
    return _svg(bottom + 34, parts, x_label + " with 95 % intervals")


def arcs(nodes: Sequence[tuple[str, str, float]], edges: Sequence[tuple[int, int]]) -> str:
    """A DAG as a column: nodes (name, note, share of the longest bar) from top to bottom, each edge an arc at the left."""
    row, left = 21, 96
    parts = []
    for source, target in edges:
        top, bottom = row * source + 14, row * target + 14
        reach = min(left - 12, 10 + 5 * (target - source))
        parts.append(
            f'<path class="edge" d="M{left - 6} {top} C{left - 6 - reach} {top} {left - 6 - reach} {bottom} {left - 6} {bottom}"/>'
        )
    for i, (name, note, share) in enumerate(nodes):
        y = row * i + 14
        parts.append(f'<circle class="f0" cx="{left - 2}" cy="{y}" r="3.5"/>')
        parts.append(f'<rect class="bar" x="{left + 6}" y="{y - 8}" width="{max((WIDTH - left - 6) * share, 0):.1f}" height="16"/>')
        parts.append(_text(left + 10, y + 4, name) + _text(WIDTH - 2, y + 4, note, "end"))
    return _svg(row * len(nodes) + 6, parts, "stages and what they read")


def _axes(x_ticks: list[float], y_ticks: list[float], x_of: Scale, y_of: Scale, x_label: str, y_label: str) -> str:
    lines = [f'<line class="grid" x1="46" y1="{y_of(t)}" x2="{WIDTH - 12}" y2="{y_of(t)}"/>' for t in y_ticks]
    lines += [_text(42, float(y_of(t)) + 4, short(t), "end") for t in y_ticks]
    lines += [_text(min(float(x_of(t)), WIDTH - 14), 176, short(t), "middle") for t in x_ticks]
    lines.append(_text(WIDTH - 12, 192, x_label, "end"))
    lines.append(_text(0, 192, y_label))
    return "".join(lines)


def _text(x: float, y: float, value: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(value)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
