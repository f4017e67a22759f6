"""Small charts as inline SVG text: no library, no script, no outside request, the same bytes for the same figures.

Every chart is drawn 360 units wide with 12-unit type and scales with its box, so that it reads on a phone and in a grid of columns.
Colours are CSS classes (STYLE), which the page and `standalone` bring along. All labels pass through `escape`.
"""

import base64
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 360
LEFT, RIGHT, TOP = 46, WIDTH - 18, 22
"""Of the plotted area; above it stands what the vertical axis shows."""
POINTS = 300
"""Of a curve; longer ones are drawn as means of stretches."""
LETTER = 6.6
"""About the width of a letter."""
COLOURS = """
:root{--ink:#1d2733;--soft:#5b6775;--line:#d9dee5;--paper:#fff;--wash:#f4f6f9;--c0:#2f6fb2;--c1:#d9822b;--c2:#3c9a5f;--c3:#a4508b;--c4:#7a6a53}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#a3adba;--line:#38424f;--paper:#151b22;--wash:#1e2630;--c0:#6ea8e6;--c1:#f0a860;
--c2:#6fca91;--c3:#d890c4;--c4:#c0ad90}}
"""
STYLE = """
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg text.soft{fill:var(--soft)}
svg text.over{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
line.grid{stroke:var(--line);stroke-width:1}.mark{stroke:var(--c3);stroke-width:1.5;stroke-dasharray:4 3}
.edge{fill:none;stroke:var(--soft);stroke-width:1;opacity:.55}.bar{fill:var(--c0);opacity:.18}
polyline{fill:none}
""" + "".join(f"svg .s{i}{{stroke:var(--c{i});stroke-width:1.8}}.f{i}{{fill:var(--c{i})}}" for i in range(5))
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc\ufffe\uffff]")


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
    """For an axis: six characters, a sign apart."""
    if 0 < abs(value) < 1e-3 and len(f"{abs(value):.4g}") > 6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
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


def within(low: float, high: float, count: int) -> list[float]:
    """Those of the ticks that lie between the ends: for an axis that ends where its values do."""
    slack = 1e-9 * (high - low)
    return [tick for tick in ticks(low, high, count) if low - slack <= tick <= high + slack]


def line_chart(series: Sequence[Series], x_label: str, y_label: str, zero: bool = False, plot: int = 150) -> str:
    """Lines (or labelled points) over common axes, `plot` units high. Values that are not finite are left out."""
    points = [(x, y) for s in series for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes = Axes.over(min(xs), max(xs), min(0, *ys) if zero else min(ys), max(ys), plot)
    parts, labels = [axes.drawn(x_label, y_label)], Labels()
    for i, s in enumerate(series):
        kept = [(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if s.labels:
            for (x, y), label in zip(kept, s.labels, strict=True):
                parts.append(f'<circle class="f{i % 5}" cx="{axes.x(x)}" cy="{axes.y(y)}" r="3.5"/>')
                parts.append(labels.beside(float(axes.x(x)), float(axes.y(y)), label, axes.bottom))
        elif len(kept) == 1:
            parts.append(f'<circle class="f{i % 5}" cx="{axes.x(kept[0][0])}" cy="{axes.y(kept[0][1])}" r="2.5"/>')
        else:
            parts.append(f'<polyline class="s{i % 5}" points="{" ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in kept)}"/>')
    named = [(i, s.name) for i, s in enumerate(series) if not s.labels]
    legend = _legend(named, axes.bottom + 46) if len(named) > 1 else []
    return _svg(axes.bottom + 34 + (18 if legend else 0), parts + legend, f"{y_label} over {x_label}")


@dataclass(frozen=True)
class Axes:
    """Two scales, their ticks, and the lower end of the plotted area."""

    x: Scale
    y: Scale
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    bottom: int

    @classmethod
    def over(cls, left: float, right: float, low: float, high: float, plot: int) -> "Axes":
        bottom, y_ticks = TOP + plot, ticks(low, high, 5 if plot > 100 else 2)
        if left == right:
            right = left + (abs(left) or 1.0)
        y = Scale(y_ticks[0], y_ticks[-1], bottom, TOP)
        return cls(Scale(left, right, LEFT, RIGHT), y, within(left, right, 5), y_ticks, bottom)

    def drawn(self, x_label: str, y_label: str) -> str:
        lines = [f'<line class="grid" x1="{LEFT}" y1="{self.y(t)}" x2="{RIGHT}" y2="{self.y(t)}"/>' for t in self.y_ticks]
        lines += [_text(LEFT - 5, float(self.y(t)) + 4, short(t), "end") for t in self.y_ticks]
        lines += [_text(float(self.x(t)), self.bottom + 15, short(t), "middle") for t in self.x_ticks]
        lines += [_text(RIGHT, self.bottom + 30, x_label, "end", "soft"), _text(0, 10, y_label, "start", "soft")]
        return "".join(lines)


class Labels:
    """Texts beside points, each moved up or down until it covers none of those before it."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []

    def beside(self, x: float, y: float, label: str, bottom: float) -> str:
        width = LETTER * len(label)
        left = x - 7 - width if x > WIDTH * 0.7 else x + 7
        free = [base for base in (y - 5, y + 14, y - 19, y + 28, y - 33) if 10 <= base <= bottom and not self._covers(left, base, width)]
        base = free[0] if free else y - 5
        self._taken.append((left, base, width))
        return _text(left, base, label, kind="over")

    def _covers(self, left: float, base: float, width: float) -> bool:
        return any(abs(base - b) < 13 and left < a + w and a < left + width for a, b, w in self._taken)


def _legend(names: Sequence[tuple[int, str]], base: float) -> list[str]:
    parts, left = [], 0.0
    for i, name in names:
        parts.append(f'<rect class="f{i % 5}" x="{left:.1f}" y="{base - 9}" width="10" height="9"/>' + _text(left + 15, base, name))
        left += 35 + LETTER * len(name)
    return parts


def histogram(edges: Sequence[float], counts: Sequence[int], x_label: str, marks: Sequence[float] = ()) -> str:
    """Documents by value; a dashed line at each of the `marks` that lies within."""
    axes = Axes.over(edges[0], edges[-1], 0, max(*counts, 1), 110)
    parts = [axes.drawn(x_label, "documents"), _boxes(edges, counts, axes.x, axes.y, axes.bottom)]
    for mark in (mark for mark in marks if edges[0] <= mark <= edges[-1]):
        parts.append(f'<line class="mark" x1="{axes.x(mark)}" y1="{TOP}" x2="{axes.x(mark)}" y2="{axes.bottom}"/>')
    return _svg(axes.bottom + 34, parts, f"documents by {x_label}")


def small_histogram(edges: Sequence[float], counts: Sequence[int], name: str) -> str:
    """The same in a box of 160 by 66 units, with its ends as the only figures."""
    x, y = Scale(edges[0], edges[-1], 0, 160), Scale(0, max(*counts, 1), 48, 2)
    parts = [_boxes(edges, counts, x, y, 48), '<line class="grid" x1="0" y1="48" x2="160" y2="48"/>']
    low, high = (short(float(f"{edge:.2g}")) for edge in (edges[0], edges[-1]))
    parts += [_text(0, 62, low, "start", "soft"), _text(160, 62, high, "end", "soft")]
    return _svg(66, parts, f"documents by {name}", 160)


def _boxes(edges: Sequence[float], counts: Sequence[int], x: Scale, y: Scale, bottom: float) -> str:
    boxes = []
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        width, top = float(x(right)) - float(x(left)), min(float(y(count)), bottom - 1.0 if count else bottom)  # a few are not none
        boxes.append(f'<rect class="f0" x="{x(left)}" y="{top:.1f}" width="{max(width - 0.5, 0.5):.1f}" height="{bottom - top:.1f}"/>')
    return "".join(boxes)


def bars(rows: Sequence[tuple[str, Sequence[float], str]], names: Sequence[str] = ()) -> str:
    """Horizontal bars: (label, one value a series, what is written behind). `names` of the series make a legend."""
    most = max([value for _, values, _ in rows for value in values] or [0]) or 1
    parts, y = [], 4
    for label, values, text in rows:
        room = int(WIDTH / LETTER) - len(text) - 2  # both texts on one line
        shown = label if len(label) <= room else label[: room - 1] + "…"
        parts.append(_text(0, y + 9, shown) + _text(WIDTH, y + 9, text, "end", "soft"))
        y += 14
        for i, value in enumerate(values):
            parts.append(f'<rect class="f{i % 5}" x="0" y="{y}" width="{max(WIDTH * value / most, 0.5):.1f}" height="6"/>')
            y += 7
        y += 8
    legend = _legend(list(enumerate(names)), y + 10)
    return _svg(y + (14 if names else 0), parts + legend, "bars of " + ", ".join(label for label, _, _ in rows[:6]))


def whiskers(rows: Sequence[tuple[str, float, float, float]], reference: float | None, x_label: str) -> str:
    """A dot with its interval for each (label, mean, low, high), and a line at the reference."""
    finite = [v for row in rows for v in row[1:] if math.isfinite(v)] + ([] if reference is None else [reference])
    x_ticks = ticks(min(finite), max(finite), 4)
    x_of, bottom = Scale(x_ticks[0], x_ticks[-1], 20, WIDTH - 20), 10 + 32 * len(rows)
    parts = [f'<line class="grid" x1="{x_of(t)}" y1="4" x2="{x_of(t)}" y2="{bottom}"/>' for t in x_ticks]
    parts += [_text(float(x_of(t)), bottom + 15, short(t), "middle") for t in x_ticks]
    parts.append(_text(WIDTH, bottom + 30, x_label, "end", "soft"))
    if reference is not None:
        parts.append(f'<line class="mark" x1="{x_of(reference)}" y1="4" x2="{x_of(reference)}" y2="{bottom}"/>')
    for i, (label, mean, low, high) in enumerate(rows):
        y = 30 + 32 * i
        parts.append(_text(0, y - 10, label, kind="over"))
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


def _text(x: float, y: float, value: str, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(value)}</text>'


def _svg(height: float, parts: Sequence[str], title: str, width: int = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def curve(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """One line over steps, of at most POINTS points: means of stretches."""
    size = -(-len(steps) // POINTS)

    def means(column: Sequence[float]) -> list[float]:
        return [sum(column[i : i + size]) / len(column[i : i + size]) for i in range(0, len(column), size)]

    return line_chart([Series(name, means(steps), means(values))], "step", name)


def as_image(svg: str) -> str:
    """A chart as the address of an image, with colours of its own: for Markdown that is shown where the page's style is not."""
    style = f"<style>{COLOURS}{STYLE}svg{{background:var(--paper)}}</style>"
    whole = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(whole.encode()).decode()
