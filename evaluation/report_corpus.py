"""The report's sections on text: what was read, mixed and dropped, and what the signals measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.charts import bars, histogram, number, short, small_histogram
from evaluation.page import Figures, block, figure, folded, grid, heading, paragraph, source, source_line, table

MOST_SHOWN = 6
"""Signals that stand open: those by whose rule most documents were dropped."""


def corpus(figures: Figures) -> str:
    """By domain: what was read and kept, the tokens there are, and the mixture asked and got."""
    mixture = figures.get("mixture")
    if not mixture:
        return ""
    domains, read = mixture["domains"], figures.get("corpus") or {}
    rows = [(name, [row["asked"], row["got"]], f"{short(row['asked'])} → {short(row['got'])}") for name, row in domains.items()]
    where = source(figures, "blocks")
    chart = figure("Tokens by domain, asked and got", bars(rows, ("asked", "got")), where)
    head = ["domain", "documents", "kept", "MB read", "tokens available", "asked", "got", "epochs"]
    cells = [(name, *_read(read.get(name)), *_mixed(row, mixture)) for name, row in domains.items()]
    sources = source_line(source(figures, "documents", "selection", "blocks"))
    return paragraph(_shares(mixture)) + grid([chart, block(table(head, cells, stacked=True), sources)], "pair")


def _read(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if not row:
        return "0", "0", "0"
    return f"{row['documents']:,}", f"{row['kept']:,}" if row.get("kept") is not None else "", f"{row['bytes'] / 1e6:.2f}"


def _mixed(row: Mapping[str, Any], mixture: Mapping[str, Any]) -> tuple[str, str, str, str]:
    got = row["got"] / mixture["got"] if mixture["got"] else 0.0
    return f"{row['available']:,}", f"{100 * row['weight']:.1f} %", f"{100 * got:.1f} %", number(row["epochs"])


def absent(figures: Figures) -> list[str]:
    """Domains that have a weight and no token."""
    domains = (figures.get("mixture") or {}).get("domains", {})
    return [name for name, row in domains.items() if not row["available"] and row["weight"]]


def _shares(mixture: Mapping[str, Any]) -> str:
    """Which domains fell short, and where their weight went: in words, so that it cannot be overlooked."""
    domains = mixture["domains"]
    lacking = {name: row for name, row in domains.items() if row["got"] < row["asked"]}
    none = [name for name, row in domains.items() if not row["available"] and row["weight"]]
    said = []
    if none:
        said.append(f"There is no text of {' and '.join(none)} ({_weight(domains, none)} of the weight).")
    if lacking:
        said.append(
            f"There is less of {' and '.join(lacking)} than was asked, even repeated ({_weight(domains, list(lacking))} of the weight)."
        )
    if (none or lacking) and (given := [name for name, row in domains.items() if row["got"] > row["asked"]]):
        said.append(f"What they lack was shared out over {', '.join(given)} in proportion to their weights.")
    if mixture["got"] < mixture["asked"]:
        said.append(f"In all {mixture['got']:,} of the {mixture['asked']:,} tokens asked are there.")
    most = mixture.get("max_epochs")
    if often := {name: times for name, times in mixture.get("trained", {}).items() if most and times > most * (1 + 1e-9)}:
        times = ", ".join(f"{name} {count:.1f} times" for name, count in sorted(often.items()))
        said.append(f"Training goes through {times}, over mix.max_epochs ({most:g}).")
    return " ".join(said) if said else "Every domain has the tokens that were asked of it."


def _weight(domains: Mapping[str, Any], names: Sequence[str]) -> str:
    return f"{100 * sum(domains[name]['weight'] for name in names):.1f} %"


def drops(figures: Figures) -> str:
    """Documents that a stage dropped, by reason, each counted where it was first dropped."""
    parts, before = [], dict[str, int]()
    for stage in figures["stages"]:
        count = stage.get("documents") or {}
        if stage["stage"] not in ("ingest", "deduplicate", "select"):
            continue
        dropped = {reason: n - before.get(reason, 0) for reason, n in (count.get("dropped") or {}).items()}
        dropped["quarantined (unreadable)"] = count.get("quarantined", 0)
        if stage["stage"] == "deduplicate":  # select repeats these
            before = dict(count.get("dropped") or {})
        came_in = count.get("in", 0) - sum(before.values()) * (stage["stage"] == "select")
        ordered = sorted(((reason, n) for reason, n in dropped.items() if n), key=lambda item: (-item[1], item[0]))
        if ordered:
            rows = [(reason.replace("_", " "), [n], f"{n:,} ({100 * n / max(came_in, 1):.2f} %)") for reason, n in ordered]
            title = f"{stage['stage']}: {sum(n for _, n in ordered):,} of {came_in:,} documents, by reason"
            parts.append(figure(title, bars(rows), source(figures, stage["role"])))
    return grid(parts)


def token_ledger(figures: Figures) -> str:
    """From the first tokens on: what each stage let through and why the rest went."""
    rows = []
    for stage in figures["stages"]:
        if count := stage.get("tokens"):
            reasons = sorted(((n, reason) for reason, n in count["dropped"].items() if n), reverse=True)
            gone = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for n, reason in reasons) or "none"
            name = (stage["stage"], stage["fingerprint"])
            rows.append((name, f"{count['in']:,}", f"{count['added']:,}", f"{count['out']:,}", gone))
    if not rows:
        return ""
    return heading("Tokens") + table(["stage", "in", "added", "out", "dropped"], rows, sentences=(4,), stacked=True)


def signals(figures: Figures) -> str:
    """Those that dropped most in full, the others by family, folded."""
    found = figures.get("signals") or []
    judged: dict[str, Mapping[str, Any]] = {}
    for signal in sorted(found, key=lambda signal: -signal.get("dropped", 0)):
        if signal.get("dropped"):
            judged.setdefault(signal["reason"], signal)
    shown = [_open(signal, figures) for signal in list(judged.values())[:MOST_SHOWN]]
    families: dict[str, list[Mapping[str, Any]]] = {}
    for signal in found:
        families.setdefault(signal["family"], []).append(signal)
    texts = paragraph("Open: the signals by which most documents were dropped. A dashed line is a bound of one of the domains' rule sets.")
    return (texts if shown else "") + grid(shown) + "".join(_family(name, rows, figures) for name, rows in families.items())


def _open(signal: Mapping[str, Any], figures: Figures) -> str:
    name = signal["signal"].replace("_", " ")
    title = name if name == signal["family"] else f"{signal['family']}: {name}"
    chart = histogram(signal["edges"], signal["counts"], name, signal.get("bounds", ()))
    where = source(figures, signal["family"], "selection")
    return figure(title, chart, where, _fate(signal))


def _family(name: str, rows: Sequence[Mapping[str, Any]], figures: Figures) -> str:
    charts = [figure(s["signal"].replace("_", " "), small_histogram(s["edges"], s["counts"], s["signal"]), note=_fate(s)) for s in rows]
    summary = f"{name}: {len(rows)} {'signals' if len(rows) > 1 else 'signal'}"
    return folded(summary, grid(charts, "small") + source_line(source(figures, name)))


def _fate(signal: Mapping[str, Any]) -> str:
    """What a histogram does not show: the documents beyond its ends, and those that were dropped by it."""
    beyond = f"{signal['beyond']:,} beyond the ends" if signal["beyond"] else ""
    dropped = f"rule {signal['reason'].replace('_', ' ')} dropped {signal['dropped']:,}" if signal.get("dropped") else ""
    return ", ".join(part for part in (dropped, beyond) if part)
