"""The frame of the report: one HTML text that asks nothing of any network, readable at 390 and at 1280 pixels, light and dark.

The content policy in its head forbids scripts and requests, so that a document's text cannot do either even if an escape failed.
What is built here escapes what it is given; a section hands on only what was built here or in evaluation/charts.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.charts import COLOURS, escape
from evaluation.charts import STYLE as CHARTS

Figures = Mapping[str, Any]
Cell = object | tuple[object, object]
"""A tuple is a value and what stands small below it."""

STYLE = (
    COLOURS
    + CHARTS
    + """
:root{--yes:#22703f;--no:#a8480f}@media(prefers-color-scheme:dark){:root{--yes:#6fca91;--no:#f0a860}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:16px 20px 48px}
h1{font-size:25px;margin:12px 0}h2{font-size:19px;margin:44px 0 14px;border-bottom:1px solid var(--line);padding-bottom:5px}
h3{font-size:14px;margin:0 0 6px}
p,ul{max-width:75ch;margin:8px 0 16px}li{margin:4px 0}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:14px}nav a{color:var(--c0);text-decoration:none}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px;margin:16px 0 20px}
.card{background:var(--wash);border-radius:8px;padding:10px 12px;overflow-wrap:anywhere}
.card b{display:block;font-size:18px;line-height:1.3}.card span{display:block;color:var(--soft);font-size:13px;line-height:1.35}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:28px;align-items:start;margin:0 0 20px}
.pair{display:grid;grid-template-columns:minmax(0,420px) minmax(0,1fr);gap:28px 40px;align-items:start;margin:0 0 20px}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(145px,1fr));gap:18px 20px;margin:12px 0}
figure{margin:0;max-width:430px}
.small figure{max-width:200px}.small h3{font-size:12px;font-weight:600;margin:0;overflow-wrap:anywhere}
figcaption,.from,small{color:var(--soft);font-size:12px;overflow-wrap:anywhere;line-height:1.4}
.card .from{margin-top:4px}.from{margin-bottom:14px}small{display:block;font-weight:400}td:first-child small{display:inline;margin-left:8px}
svg{width:100%;height:auto;display:block}svg+svg{margin-top:8px}.scroll+h3{margin-top:20px}
details{border-bottom:1px solid var(--line);padding:8px 0}summary{cursor:pointer;font-size:14px}
.scroll{overflow-x:auto;margin:0 0 4px}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:4px 18px 4px 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
th:first-child,td:first-child{text-align:left}.words{text-align:left;white-space:normal}
th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
.yes{color:var(--yes);font-weight:600}.no{color:var(--no);font-weight:600}
pre{background:var(--wash);border-radius:6px;padding:8px 10px;margin:2px 0 12px;white-space:pre-wrap;overflow-wrap:anywhere;
unicode-bidi:isolate;font:12.5px/1.45 ui-monospace,monospace;max-height:260px;overflow-y:auto}
@media(max-width:900px){.pair{grid-template-columns:minmax(0,1fr)}}
@media(max-width:640px){
td:first-child small{display:block;margin:0}.card:last-child:nth-child(odd){grid-column:1/-1}
main{padding:10px 16px 40px}table{font-size:13px}th,td{padding-right:9px}
.stack table,.stack tbody{display:block}.stack thead{display:none}
.stack tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(96px,1fr));gap:4px 10px;padding:7px 0;
border-bottom:1px solid var(--line)}
.stack td{border:0;padding:0;text-align:left;white-space:normal}
.stack td::before{content:attr(data-label);display:block;color:var(--soft);font-size:12px}
.stack td:first-child,.stack .words{grid-column:1/-1}.stack td:first-child{font-weight:600}
.stack td:first-child::before,.stack .words::before{display:none}
}
"""
)


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """`sections`: (anchor, heading, HTML); those without HTML are left out."""
    kept = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{escape(anchor)}">{escape(heading)}</a>' for anchor, heading, _ in kept)
    body = "".join(f'<section id="{escape(anchor)}"><h2>{escape(heading)}</h2>{html}</section>' for anchor, heading, html in kept)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>{lead}<nav>{links}</nav>{body}</main></body></html>\n"
    )


def source(figures: Figures, *roles: str) -> str:
    """The artifacts behind a figure: `mix 3f2a07b4e91c`."""
    known = {stage["role"]: f"{stage['stage']} {stage['fingerprint']}" for stage in figures["stages"]}
    return ", ".join(known[role] for role in roles if role in known)


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], sentences: Sequence[int] = (), stacked: bool = False) -> str:
    """Cells are escaped here. Columns in `sentences` hold text that is read from the left and may wrap; others hold figures.

    stacked: on a narrow screen each row becomes a small block of labelled figures, for tables that would not fit across it.
    """
    kinds = [' class="words"' if i in sentences else "" for i in range(len(head))]
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    lines = []
    for row in rows:
        cells = zip(kinds, head, row, strict=True)
        lines.append("".join(f'<td{kind} data-label="{escape(label)}">{_cell(cell)}</td>' for kind, label, cell in cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    kind = "scroll stack" if stacked else "scroll"
    return f'<div class="{kind}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, Verdict):
        return f'<span class="{"yes" if cell.holds else "no"}">{escape(cell)}</span>'
    if isinstance(cell, tuple):
        return f"{escape(cell[0])}<small>{escape(cell[1])}</small>"
    return escape(cell)


class Verdict:
    """Whether a claim holds, as a cell: said in words, and in a colour beside them."""

    def __init__(self, holds: bool) -> None:
        self.holds = holds

    def __str__(self) -> str:
        return "holds" if self.holds else "does not hold"


def figure(heading: str, svg: str, source: str = "", note: str = "") -> str:
    """A chart with its heading and the artifact that its figures come from; nothing when there is no chart."""
    caption = "; ".join(part for part in (note, f"from {source}" if source else "") if part)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(heading)}</h3>{svg}{below}</figure>" if svg else ""


def folded(summary: str, html: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def points(texts: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def source_line(source: str) -> str:
    return f'<div class="from">from {escape(source)}</div>'


def card(value: str, label: str, source: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span><div class="from">{escape(source)}</div></div>'


def block(*parts: str) -> str:
    return f"<div>{''.join(parts)}</div>"


def grid(parts: Sequence[str], kind: str = "grid") -> str:
    kept = [part for part in parts if part]
    return f'<div class="{kind}">{"".join(kept)}</div>' if kept else ""


def pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
