"""The frame of the report: one HTML text that asks nothing of any network, readable at 390 and at 1280 pixels, light and dark.

The content policy in its head forbids scripts and requests, so that a document's text cannot do either even if an escape failed.
"""

from collections.abc import Sequence

from evaluation.charts import escape

STYLE = """
:root{--ink:#1d2733;--soft:#5b6775;--line:#d9dee5;--paper:#fff;--wash:#f4f6f9;--c0:#2f6fb2;--c1:#d9822b;--c2:#3c9a5f;--c3:#a4508b;--c4:#7a6a53}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#a3adba;--line:#38424f;--paper:#151b22;--wash:#1e2630;--c0:#6ea8e6;--c1:#f0a860;
--c2:#6fca91;--c3:#d890c4;--c4:#c0ad90}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:24px;margin:8px 0}h2{font-size:18px;margin:36px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}
h3{font-size:14px;margin:4px 0}
p{max-width:75ch;margin:8px 0}nav a{margin-right:12px;color:var(--c0)}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}
.card{background:var(--wash);border-radius:8px;padding:10px 14px;flex:1 1 150px}
.card b{display:block;font-size:21px}.card span{color:var(--soft);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:20px;align-items:start}
figure{margin:0;max-width:520px}figcaption,.from{color:var(--soft);font-size:12px;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:3px 10px 3px 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}.words{text-align:left;white-space:normal}th{color:var(--soft);font-weight:600}
pre{background:var(--wash);border-radius:6px;padding:8px 10px;margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;
font:12.5px/1.45 ui-monospace,monospace;max-height:260px;overflow-y:auto}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}
line.grid{stroke:var(--line);stroke-width:1}.mark{stroke:var(--c3);stroke-width:1.5;stroke-dasharray:4 3}
.edge{fill:none;stroke:var(--soft);stroke-width:1;opacity:.55}.bar{fill:var(--c0);opacity:.18}
polyline{fill:none;stroke-width:1.6}
""" + "".join(f"svg .s{i}{{stroke:var(--c{i});stroke-width:1.8}}.f{i}{{fill:var(--c{i})}}" for i in range(5))


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


def table(head: Sequence[str], rows: Sequence[Sequence[object]], sentences: Sequence[int] = ()) -> str:
    """Cells are escaped here. Columns in `sentences` hold text that is read from the left and may wrap; others hold figures."""
    kinds = [' class="words"' if i in sentences else "" for i in range(len(head))]
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    cells = ["".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def figure(heading: str, svg: str, source: str) -> str:
    """A chart with its heading and the artifact that its figures come from; nothing when there is no chart."""
    return f"<figure><h3>{escape(heading)}</h3>{svg}<figcaption>from {escape(source)}</figcaption></figure>" if svg else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def source_line(source: str) -> str:
    return f'<div class="from">from {escape(source)}</div>'


def card(value: str, label: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def grid(parts: Sequence[str]) -> str:
    kept = [part for part in parts if part]
    return f'<div class="grid">{"".join(kept)}</div>' if kept else ""


def pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
