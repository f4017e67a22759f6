"""The report of a run as one HTML page, from figures.json (what was measured) and the manifests' times (what it took).

Only what is in the figures is shown; what is missing is left out and named at the end. Every figure names its artifact as
stage and the first 12 characters of its fingerprint. Samples and labels may hold any text, and none of it is markup.
The sections on the corpus are in report_corpus.py, those on models in report_models.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.charts import arcs, number, short
from evaluation.page import Figures, Verdict, block, card, figure, grid, heading, page, paragraph, points, source, source_line, table
from evaluation.report_corpus import absent, corpus, drops, signals, token_ledger
from evaluation.report_models import alignment, bits, samples, tasks, titled, training

Costs = Mapping[str, Mapping[str, Any]]
"""By role: seconds, cores, created, execution, bytes. Only they may differ between equal runs."""


def report(figures: Figures, costs: Costs) -> str:
    """The whole page. figures["titles"] says what the trained models are called, by role and in the order of training.

    figures["claims_nothing"], if it is there, is why the model makes no claims (evaluation/claims.py). figures["asked"], if it is there,
    is what the run that wrote the page was asked for: a title, and settings (key, value, origin).
    """
    sections = [
        ("claims", "Claims", _claims(figures)),
        ("run", "The run", _run(figures, costs)),
        ("corpus", "Corpus and mixture", corpus(figures)),
        ("drops", "What was dropped", drops(figures) + token_ledger(figures)),
        ("signals", "Signals", signals(figures)),
        ("training", "Training", training(figures)),
        ("loss", "Bits per byte", bits(figures)),
        ("tasks", "Multiple choice", tasks(figures)),
        ("alignment", "Alignment", alignment(figures)),
        ("samples", "Samples before and after alignment", samples(figures)),
        ("cost", "Cost", _cost(figures, costs)),
        ("limits", "Limits", _limits(figures)),
    ]
    return page("Bessemer report", _headline(figures, costs), sections)


def _headline(figures: Figures, costs: Costs) -> str:
    evaluation, where = figures.get("evaluation") or {}, source(figures, "evaluation")
    scored = evaluation.get("bits_per_byte", {})
    cards = []
    if mixture := figures.get("mixture"):
        cards.append(card(short(mixture["got"]), "tokens in the mixture", source(figures, "blocks")))
    if base := scored.get("models", {}).get("base"):
        value = base["all"]["bits_per_byte"]
        cards.append(card(number(value, 4), "bits per byte of the pretrained model, validation", where))
        if bigram := scored.get("baselines", {}).get("bigram"):
            change = value / bigram["all"]["bits_per_byte"] - 1
            cards.append(card(f"{100 * change:+.1f} %", "against an absolute-discount bigram", where))
    if choice := evaluation.get("tasks", {}).get("base", {}).get("continuation"):
        cards.append(card(f"{100 * choice['acc_norm']['mean']:.1f} %", f"multiple choice; chance is {100 * choice['chance']:.0f} %", where))
    gains = evaluation.get("alignment", {}).get("gains", {})
    cards += [
        card(f"{gains[name]['gold']['mean']:+.3f}", f"gold reward by {title}", where) for name, title in titled(gains, figures).items()
    ]
    if costs:
        total = sum(cost["seconds"] for cost in costs.values())
        cards.append(card(duration(total), "for all stages, each when it last ran", "manifests of all stages"))
    return grid(cards, "cards")


def _claims(figures: Figures) -> str:
    claims = figures.get("claims")
    if not claims:
        return ""
    held = sum(claim["holds"] for claim in claims)
    rows = [(Verdict(claim["holds"]), claim["claim"].replace("_", " "), claim["found"]) for claim in claims]
    where = source_line(source(figures, "evaluation", "export"))
    nothing = figures.get("claims_nothing")
    if nothing:
        text = f"None: {nothing}. What a whole run is held to stands below, so that the page shows its form."
    else:
        text = f"{held} of {len(claims)} hold."
    return paragraph(text) + table(["", "claim", "found"], rows, sentences=(1, 2), stacked=True) + where


def _run(figures: Figures, costs: Costs) -> str:
    stages = figures["stages"]
    place = {stage["role"]: i for i, stage in enumerate(stages)}
    reads = {stage["role"]: {role for role in stage["reads"] if role in place} for stage in stages}
    edges = [(place[role], place[name]) for name in place for role in sorted(_direct(name, reads), key=place.__getitem__)]
    longest = max((cost["seconds"] for cost in costs.values()), default=0) or 1
    nodes, rows = [], []
    for stage in stages:
        seconds = costs.get(stage["role"], {}).get("seconds", 0.0)
        nodes.append((stage["stage"], duration(seconds), seconds / longest))
        rows.append(((stage["stage"], stage["fingerprint"]), *_in_and_out(stage.get("documents")), duration(seconds)))
    chart = figure("Stages in order, with their times", arcs(nodes, edges), note="An arc is an input; those that others imply are left out")
    ledger = table(["stage", "in", "out", "kept", "time"], rows)
    return _asked(figures) + grid([chart, block(heading("Documents in and out of each stage"), ledger)], "pair")


def _asked(figures: Figures) -> str:
    asked = figures.get("asked")
    if not asked:
        return ""
    given = asked["settings"]
    if not given:
        return paragraph(f"Asked for: {asked['title']}, with no setting changed.")
    text = f"Asked for: {asked['title']}, with the settings below. A later run that differs in speed and place alone shows this page too."
    return paragraph(text) + grid([table(["setting", "value", "from"], given, sentences=(1, 2), stacked=True)])


def _direct(name: str, reads: Mapping[str, set[str]]) -> set[str]:
    """Inputs that no other input of `name` leads to."""

    def behind(role: str) -> set[str]:
        return reads[role] | {further for inner in reads[role] for further in behind(inner)}

    implied = {further for role in reads[name] for further in behind(role)}
    return reads[name] - implied


def _in_and_out(count: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if not count:
        return "", "", ""
    kept = f"{100 * count['out'] / count['in']:.1f} %" if count["in"] else ""
    return f"{count['in']:,}", f"{count['out']:,}", kept


def _cost(figures: Figures, costs: Costs) -> str:
    if not costs:
        return ""
    total, written = (sum(cost[name] for cost in costs.values()) for name in ("seconds", "bytes"))
    cores, began = next(iter(costs.values()))["cores"], sorted(cost["created"] for cost in costs.values())
    text = (
        f"{duration(total)} for all stages, each counted when it last ran, and {_size(written)} written. The first began at {began[0]}, "
        f"the last at {began[-1]} UTC. The machine that wrote this page has {cores} cores: at most {number(total * cores / 3600)} "
        "core-hours."
    )
    rows, classes = [], dict[str, list[str]]()
    for stage in (stage for stage in figures["stages"] if stage["role"] in costs):
        cost = costs[stage["role"]]
        share = f"{100 * cost['seconds'] / total:.1f} %" if total else ""
        rows.append(((stage["stage"], stage["fingerprint"]), duration(cost["seconds"]), share, _size(cost["bytes"])))
        if named := ", ".join(f"{key} {value}" for key, value in sorted((cost.get("execution") or {}).items()) if value is not None):
            classes.setdefault(named, []).append(stage["stage"])
    kinds = table(["stages", "execution class"], [(", ".join(stages), named) for named, stages in classes.items()], (0, 1), stacked=True)
    ran_on = heading("What they ran on") + kinds if classes else ""
    return paragraph(text) + grid([table(["stage", "time", "share", "written"], rows), block(ran_on, _calibration(figures))])


def _calibration(figures: Figures) -> str:
    """The ways to train that calibrate tried on this machine."""
    found = figures.get("calibration")
    if not found:
        return ""
    rows = []
    for trial in sorted(found["tried"], key=lambda trial: trial["step_s"]):
        way = f"{trial['ranks']} x {trial['threads']} threads, {trial['dtype']}{', compiled' * trial['compile']}"
        rows.append((way, f"{1000 * trial['step_s']:,.0f} ms"))
    title = heading("What calibrate tried; it chose the fastest")
    return title + table(["processes", "a step of pretraining"], rows) + source_line(source(figures, "calibration"))


def _limits(figures: Figures) -> str:
    texts: Sequence[str] = figures.get("limits", ())
    gone = absent(figures)
    missing = figures.get("missing") or []
    found = [f"The mixture asks for {' and '.join(gone)}, of which there was no text."] if gone else []
    left = [f"Not in this report, as there was no such artifact: {', '.join(missing)}."] if missing else []
    return points([*texts, *found, *left])


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
