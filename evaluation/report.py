"""The report of a run as one HTML page, from figures.json (what was measured) and the manifests' times (what it took).

Only what is in the figures is shown; what is missing is left out and named at the end. Every figure names its artifact as
stage and the first 12 characters of its fingerprint. Samples and labels may hold any text, and none of it is markup.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.charts import Series, arcs, bars, escape, histogram, line_chart, number, short, whiskers
from evaluation.page import card, figure, grid, page, paragraph, pre, source_line, table

Figures = Mapping[str, Any]
BASELINES = {"bigram": "bigram", "gzip": "gzip -9", "kenlm": "KenLM"}
NAMES = {"base": "pretrained", "sft": "SFT", "ppo": "PPO", "dpo": "DPO"}


def report(figures: Figures, costs: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page. `costs`: by role {"seconds", "cores", "created", "execution"}; it is all that may differ between equal runs."""
    sections = [
        ("claims", "Claims", _claims(figures)),
        ("run", "The run", _run(figures, costs)),
        ("corpus", "Corpus and mixture", _mixture(figures)),
        ("drops", "What was dropped", _drops(figures)),
        ("signals", "Signals", _signals(figures)),
        ("training", "Training", _training(figures)),
        ("loss", "Bits per byte", _bits(figures)),
        ("tasks", "Multiple choice", _tasks(figures)),
        ("alignment", "Alignment", _alignment(figures)),
        ("samples", "Samples before and after alignment", _samples(figures)),
        ("cost", "Cost", _cost(figures, costs)),
        ("limits", "Limits", _limits(figures)),
    ]
    return page("Bessemer report", _headline(figures, costs), sections)


def source(figures: Figures, *roles: str) -> str:
    """The artifacts behind a figure: `mix 3f2a07b4e91c`."""
    known = {stage["role"]: f"{stage['stage']} {stage['fingerprint']}" for stage in figures["stages"]}
    return ", ".join(known[role] for role in roles if role in known)


def _headline(figures: Figures, costs: Mapping[str, Mapping[str, Any]]) -> str:
    evaluation = figures.get("evaluation") or {}
    bits = evaluation.get("bits_per_byte", {})
    cards = []
    if mixture := figures.get("mixture"):
        cards.append(card(short(mixture["got"]), "training tokens"))
    if base := bits.get("models", {}).get("base"):
        cards.append(card(number(base["all"]["bits_per_byte"], 4), "bits per byte, validation"))
        bigram = bits.get("baselines", {}).get("bigram")
        if bigram:
            change = base["all"]["bits_per_byte"] / bigram["all"]["bits_per_byte"] - 1
            cards.append(card(f"{100 * change:+.1f} %", "against an absolute-discount bigram"))
    choice = evaluation.get("tasks", {}).get("base", {}).get("continuation")
    if choice:
        cards.append(card(f"{100 * choice['acc_norm']['mean']:.1f} %", f"multiple choice, chance {100 * choice['chance']:.0f} %"))
    for method, gain in evaluation.get("alignment", {}).get("gains", {}).items():
        cards.append(card(f"{gain['gold']['mean']:+.3f}", f"gold reward by {NAMES.get(method, method)}"))
    if costs:
        cards.append(card(duration(sum(cost["seconds"] for cost in costs.values())), "for all stages, when they last ran"))
    return f'<div class="cards">{"".join(cards)}</div>'


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
    )


def _run(figures: Figures, costs: Mapping[str, Mapping[str, Any]]) -> str:
    stages = figures["stages"]
    place = {stage["role"]: i for i, stage in enumerate(stages)}
    reads = {stage["role"]: {role for role in stage["reads"] if role in place} for stage in stages}
    edges = [(place[role], place[name]) for name in place for role in sorted(_direct(name, reads), key=place.__getitem__)]
    longest = max((cost["seconds"] for cost in costs.values()), default=0) or 1
    nodes = []
    for stage in stages:
        seconds = costs.get(stage["role"], {}).get("seconds", 0.0)
        nodes.append((stage["stage"], duration(seconds), seconds / longest))
    rows = [
        (stage["stage"], stage["fingerprint"], *_account(stage.get("documents")), duration(costs.get(stage["role"], {}).get("seconds", 0)))
        for stage in stages
    ]
    chart = figure(
        "Stages in order, with the time each took; an arc is an input (those implied by others are left out)", arcs(nodes, edges), ""
    )
    chart = chart.replace("<figcaption>from </figcaption>", "")
    ledger = table(["stage", "fingerprint", "documents in", "out", "kept", "time"], rows)
    return grid([chart, f"<div><h3>The account of each stage</h3>{ledger}</div>"])


def _claims(figures: Figures) -> str:
    claims = (figures.get("evaluation") or {}).get("claims")
    if not claims:
        return ""
    rows = [("holds" if claim["holds"] else "does not hold", claim["claim"], claim["found"]) for claim in claims]
    return table(["", "claim", "found"], rows, sentences=(1, 2)) + source_line(source(figures, "evaluation"))


def _direct(name: str, reads: Mapping[str, set[str]]) -> set[str]:
    """Inputs that no other input of `name` leads to."""

    def behind(role: str) -> set[str]:
        return reads[role] | {further for inner in reads[role] for further in behind(inner)}

    implied = {further for role in reads[name] for further in behind(role)}
    return reads[name] - implied


def _account(count: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if not count:
        return "", "", ""
    kept = f"{100 * count['out'] / count['in']:.1f} %" if count["in"] else ""
    return f"{count['in']:,}", f"{count['out']:,}", kept


def _mixture(figures: Figures) -> str:
    mixture = figures.get("mixture")
    if not mixture:
        return ""
    domains = mixture["domains"]
    rows = [(name, [row["asked"], row["got"]], f"{short(row['asked'])} → {short(row['got'])}") for name, row in domains.items()]
    head = ["domain", "weight", "available", "asked", "got", "epochs"]
    cells = [
        (name, f"{100 * row['weight']:.1f} %", f"{row['available']:,}", f"{row['asked']:,}", f"{row['got']:,}", number(row["epochs"]))
        for name, row in domains.items()
    ]
    short_of = [name for name, row in domains.items() if row["got"] < row["asked"]]
    text = paragraph(f"Fewer tokens than asked: {', '.join(short_of)}; their share went to the other domains.") if short_of else ""
    where = source(figures, "blocks")
    chart = figure("Tokens by domain, asked and got", bars(rows, ("asked", "got")), where)
    return grid([chart, f"<div>{table(head, cells)}{text}{source_line(where)}</div>"])


def _drops(figures: Figures) -> str:
    parts = []
    for stage in figures["stages"]:
        dropped = {reason: n for reason, n in ((stage.get("documents") or {}).get("dropped") or {}).items() if n}
        if stage["stage"] not in ("ingest", "deduplicate", "select") or not dropped:
            continue
        came_in = stage["documents"]["in"]
        ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
        rows = [(reason, [n], f"{n:,} ({100 * n / max(came_in, 1):.2f} %)") for reason, n in ordered]
        parts.append(figure(f"{stage['stage']}: documents dropped by reason", bars(rows), source(figures, stage["role"])))
    return grid(parts)


def _signals(figures: Figures) -> str:
    parts = []
    for signal in figures.get("signals", []):
        chart = histogram(signal["edges"], signal["counts"], signal["signal"])
        beyond = f" ({signal['beyond']:,} beyond the ends)" if signal["beyond"] else ""
        parts.append(figure(f"{signal['family']}: {signal['signal']}{beyond}", chart, source(figures, signal["family"])))
    return grid(parts)


def _training(figures: Figures) -> str:
    parts = []
    for role, curves in figures.get("curves", {}).items():
        name, where = NAMES.get(role, role), source(figures, role)
        losses = [
            Series("validation" if kind == "validation" else "training", _column(rows, "step"), _column(rows, "loss"))
            for kind, rows in curves.items()
            if "loss" in rows
        ]
        parts.append(figure(f"{name}: loss", line_chart(losses, "step", "nats") if losses else "", where))
        steps = curves.get("training", {})
        if "lr" in steps:
            rate = line_chart([Series("learning rate", _column(steps, "step"), _column(steps, "lr"))], "step", "learning rate", zero=True)
            parts.append(figure(f"{name}: learning rate", rate, where))
        for kind, key, title in (("training", "reward", "reward model's score"), ("validation", "gold", "gold reward, validation prompts")):
            rows = curves.get(kind, {})
            if "kl" in rows and key in rows:
                track = Series(title, *zip(*sorted(zip(_column(rows, "kl"), _column(rows, key), strict=True)), strict=True))
                parts.append(figure(f"{name}: {title} against KL", line_chart([track], "KL a token (nats)", key), where))
    return grid(parts)


def _column(rows: Mapping[str, Sequence[float | None]], name: str) -> list[float]:
    return [math.nan if value is None else value for value in rows[name]]


def _bits(figures: Figures) -> str:
    bits = (figures.get("evaluation") or {}).get("bits_per_byte")
    if not bits:
        return ""
    where = source(figures, "evaluation", "tokens")
    scored = {NAMES.get(name, name): rows for name, rows in bits["models"].items()}
    scored |= {BASELINES.get(name, name): rows for name, rows in bits.get("baselines", {}).items()}
    domains = list(next(iter(bits["models"].values())))
    cells = [(name, *(number(rows.get(domain, {}).get("bits_per_byte"), 4) for domain in domains)) for name, rows in scored.items()]
    base = next(iter(bits["models"].values()))
    size = table(["", *domains], [(key, *(f"{base[domain][key]:,}" for domain in domains)) for key in ("documents", "bytes", "tokens")])
    rows = [(name, [rows["all"]["bits_per_byte"]], number(rows["all"]["bits_per_byte"], 4)) for name, rows in scored.items()]
    chart = figure("Bits per byte over all domains (less is better)", bars(rows), where)
    text = paragraph(bits["method"])
    return text + grid([chart, f"<div>{table(['model', *domains], cells)}<h3>What was scored</h3>{size}{source_line(where)}</div>"])


def _tasks(figures: Figures) -> str:
    tasks = (figures.get("evaluation") or {}).get("tasks")
    if not tasks:
        return ""
    where, parts, rows = source(figures, "evaluation", "items"), [], []
    for task in sorted({task for summary in tasks.values() for task in summary}):
        scored = [(NAMES.get(name, name), summary[task]) for name, summary in tasks.items() if task in summary]
        marks = [(name, *_limits_of(row["acc_norm"])) for name, row in scored]
        parts.append(figure(f"{task}: acc_norm; dashed: chance", whiskers(marks, scored[0][1]["chance"], "share of items"), where))
        for name, row in scored:
            above = row["standard_errors_above_chance"]
            rows.append((task, name, row["items"], row["documents"], _percent(row["acc"]), _percent(row["acc_norm"]), number(above)))
    head = ["task", "model", "items", "documents", "acc", "acc_norm", "SE above chance"]
    return grid(parts) + table(head, rows) + source_line(where)


def _limits_of(interval: Mapping[str, float]) -> tuple[float, float, float]:
    return interval["mean"], interval["low"], interval["high"]


def _percent(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _plain(interval: Mapping[str, float]) -> str:
    return "–" if not interval else f"{number(interval['mean'])} [{number(interval['low'])}, {number(interval['high'])}]"


def _mean_tokens(row: Mapping[str, float]) -> tuple[str, str]:
    return number(row["tokens_chosen"]), number(row["tokens_rejected"])


def _alignment(figures: Figures) -> str:
    evaluation = figures.get("evaluation") or {}
    parts: list[str] = []
    text = ""
    if aligned := evaluation.get("alignment"):
        where = source(figures, "evaluation", "pairs")
        models, gains = aligned["models"], aligned["gains"]
        points = [Series(NAMES.get(n, n), [m["kl_per_token"]], [m["gold"]["mean"]], [NAMES.get(n, n)]) for n, m in models.items()]
        parts.append(figure("Gold reward against KL from SFT", line_chart(points, "KL a token (nats)", "gold reward"), where))
        marks = [(NAMES.get(n, n), *_limits_of(gain["gold"])) for n, gain in gains.items()]
        if marks:
            parts.append(figure("Gain in gold reward, paired by prompt", whiskers(marks, 0.0, "after - before"), where))
        rows = [
            (NAMES.get(n, n), m["prompts"], _plain(m["gold"]), number(m["kl_per_token"]), _plain(m["tokens"]), _percent(m["ended"]))
            for n, m in models.items()
        ]
        text += table(["model", "prompts", "gold reward", "KL a token", "tokens", "ended"], rows)
        changes = [
            (NAMES.get(n, n), _plain(g["gold"]), _plain(g["tokens"]), _plain(g["gold_where_not_shorter"] or {})) for n, g in gains.items()
        ]
        text += table(["against SFT", "gold reward", "tokens", "gold where not shorter"], changes) if changes else ""
        text += source_line(where)
        text += paragraph(aligned["method"])
    if kinds := evaluation.get("reward_model"):
        where = source(figures, "reward", "pairs")
        marks = [(kind, *_limits_of(row["accuracy"])) for kind, row in kinds.items()]
        parts.append(figure("Reward model: accuracy by kind of negative; dashed: chance", whiskers(marks, 0.5, "accuracy"), where))
        judged = [
            (kind, row["pairs"], _percent(row["accuracy"]), _percent(row["shorter_is_right"]), *_mean_tokens(row))
            for kind, row in kinds.items()
        ]
        text += table(["negatives", "pairs", "accuracy", "the shorter is right", "tokens chosen", "rejected"], judged) + source_line(where)
    return grid(parts) + text


def _samples(figures: Figures) -> str:
    samples = ((figures.get("evaluation") or {}).get("alignment") or {}).get("samples") or []
    parts = []
    for sample in samples:
        texts = [
            f"<h3>{escape(NAMES.get(name, name))}, gold reward {number(answer['gold'])}</h3>{pre(answer['text'])}"
            for name, answer in sample["responses"].items()
        ]
        parts.append(f"<div><h3>Prompt</h3>{pre(sample['prompt'])}{''.join(texts)}</div>")
    return grid(parts) + (source_line(source(figures, "evaluation")) if parts else "")


def _cost(figures: Figures, costs: Mapping[str, Mapping[str, Any]]) -> str:
    if not costs:
        return ""
    order = [stage for stage in figures["stages"] if stage["role"] in costs]
    rows = []
    for stage in order:
        cost = costs[stage["role"]]
        execution = ", ".join(f"{key} {value}" for key, value in sorted((cost.get("execution") or {}).items()) if value is not None)
        rows.append((stage["stage"], duration(cost["seconds"]), cost["created"], execution))
    total = sum(cost["seconds"] for cost in costs.values())
    cores = figures.get("cores") or next(iter(costs.values())).get("cores")
    text = f"{duration(total)} for all stages, each counted when it last ran; the machine that wrote this page has {cores} cores."
    return paragraph(text) + table(["stage", "time", "started", "execution class"], rows)


def _limits(figures: Figures) -> str:
    texts: Sequence[str] = figures.get("limits", ())
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    missing = figures.get("missing") or []
    said = paragraph(f"Not in this report, as there was no such artifact: {', '.join(missing)}.") if missing else ""
    return (f"<ul>{items}</ul>" if items else "") + said
