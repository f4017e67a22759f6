"""The report's sections on models: how they were trained, what they score, and what alignment changed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.charts import Series, bars, line_chart, number, whiskers
from evaluation.page import Figures, block, figure, grid, heading, paragraph, pre, source, source_line, table

BASELINES = {"bigram": "bigram", "gzip": "gzip -9", "kenlm": "KenLM"}


def titled(roles: Iterable[str], figures: Figures) -> dict[str, str]:
    """{role: what the model is called}, as they were trained, whatever order a file has them in."""
    titles: dict[str, str] = figures["titles"]
    known = list(titles)
    ordered = sorted(roles, key=lambda role: (known.index(role) if role in known else len(known), role))
    return {role: titles.get(role, role) for role in ordered}


def training(figures: Figures) -> str:
    curves, parts = figures.get("curves", {}), []
    for role, name in titled(curves, figures).items():
        where = source(figures, role)
        named = (("training", "training"), ("validation", "validation"))
        losses = [
            Series(title, _column(curves[role][kind], "step"), _column(curves[role][kind], "loss"))
            for kind, title in named
            if "loss" in curves[role].get(kind, {})
        ]
        steps = curves[role].get("training", {})
        rate = [Series("learning rate", _column(steps, "step"), _column(steps, "lr"))] if "lr" in steps else []
        charts = line_chart(losses, "step", "loss") + (line_chart(rate, "step", "learning rate", zero=True, plot=50) if rate else "")
        parts.append(figure(f"{name}: loss and learning rate" if rate else f"{name}: loss", charts, where))
        parts += [figure(f"{name}: {title} against KL", chart, where) for title, chart in _against_kl(curves[role])]
    return grid(parts)


def _against_kl(curves: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The way that a policy took, from step to step, in reward and distance from where it began."""
    found = []
    for kind, key, title in (("training", "reward", "reward model's score"), ("validation", "gold", "gold reward, validation prompts")):
        rows = curves.get(kind, {})
        if "kl" in rows and key in rows:
            steps, kl, reward = (_column(rows, name) for name in ("step", "kl", key))
            ends = [i for i in range(len(steps)) if math.isfinite(kl[i]) and math.isfinite(reward[i])]
            ends = [ends[0], ends[-1]] if len(ends) > 1 else ends
            marks = Series("ends", [kl[i] for i in ends], [reward[i] for i in ends], [f"step {steps[i]:.0f}" for i in ends])
            found.append((title, line_chart([Series(title, kl, reward), marks], "KL a token (nats)", title.partition(",")[0])))
    return found


def _column(rows: Mapping[str, Sequence[float | None]], name: str) -> list[float]:
    return [math.nan if value is None else value for value in rows[name]]


def bits(figures: Figures) -> str:
    found = (figures.get("evaluation") or {}).get("bits_per_byte")
    if not found:
        return ""
    where = source(figures, "evaluation", "tokens")
    scored = {title: found["models"][name] for name, title in titled(found["models"], figures).items()}
    scored |= {title: found["baselines"][name] for name, title in BASELINES.items() if name in found.get("baselines", {})}
    base = next(iter(scored.values()))
    domains = list(base)
    cells = [(name, *(number(rows.get(domain, {}).get("bits_per_byte"), 4) for domain in domains)) for name, rows in scored.items()]
    size = [(key, *(f"{base[domain][key]:,}" for domain in domains)) for key in ("documents", "bytes", "tokens")]
    rows = [(name, [rows["all"]["bits_per_byte"]], number(rows["all"]["bits_per_byte"], 4)) for name, rows in scored.items()]
    chart = figure("Over all domains (less is better)", bars(rows), where)
    tables = table(["model", *domains], cells, stacked=True), heading("What was scored"), table(["", *domains], size, stacked=True)
    return paragraph(found["method"]) + grid([chart, block(heading("By domain"), *tables, source_line(where))], "pair")


def tasks(figures: Figures) -> str:
    found = (figures.get("evaluation") or {}).get("tasks")
    if not found:
        return ""
    where, parts = source(figures, "evaluation", "items"), []
    for task in sorted({task for summary in found.values() for task in summary}):
        scored = [(title, found[name][task]) for name, title in titled(found, figures).items() if task in found[name]]
        marks = [(name, *_limits_of(row["acc_norm"])) for name, row in scored]
        chart = whiskers(marks, scored[0][1]["chance"], "share of items")
        parts.append(figure(f"{task}: acc_norm with 95 % intervals", chart, where, "dashed: chance"))
        head = ["model", "items", "documents", "acc", "acc_norm", "SE above chance"]
        rows = [
            (
                n,
                f"{r['items']:,}",
                f"{r['documents']:,}",
                *map(_percent, (r["acc"], r["acc_norm"])),
                number(r["standard_errors_above_chance"]),
            )
            for n, r in scored
        ]
        parts.append(block(heading(task), table(head, rows, stacked=True), source_line(where)))
    return grid(parts, "pair")


def _limits_of(interval: Mapping[str, float]) -> tuple[float, float, float]:
    return interval["mean"], interval["low"], interval["high"]


def _percent(interval: Mapping[str, float]) -> tuple[str, str]:
    return f"{100 * interval['mean']:.1f} %", f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}"


def _value(interval: Mapping[str, float] | None, form: str = ".3f") -> tuple[str, str]:
    """An interval as a cell: the mean, and its limits below it."""
    if not interval:
        return "–", ""
    return format(interval["mean"], form), f"{format(interval['low'], form)} to {format(interval['high'], form)}"


def alignment(figures: Figures) -> str:
    evaluation = figures.get("evaluation") or {}
    aligned, kinds = evaluation.get("alignment"), evaluation.get("reward_model")
    return (_policies(aligned, figures) if aligned else "") + (_reward_model(kinds, figures) if kinds else "")


def _policies(aligned: Mapping[str, Any], figures: Figures) -> str:
    where = source(figures, "evaluation", "pairs")
    models = {title: aligned["models"][name] for name, title in titled(aligned["models"], figures).items()}
    gains = {title: aligned["gains"][name] for name, title in titled(aligned["gains"], figures).items()}
    places = [Series(n, [m["kl_per_token"]], [m["gold"]["mean"]], [n]) for n, m in models.items()]
    charts = [figure("Gold reward against KL from SFT", line_chart(places, "KL a token (nats)", "gold reward"), where)]
    if gains:
        marks = [(n, *_limits_of(gain["gold"])) for n, gain in gains.items()]
        charts.append(figure("Gain in gold reward, paired by prompt", whiskers(marks, 0.0, "after - before"), where, "dashed: no change"))
    rows = [
        (n, f"{m['prompts']:,}", _value(m["gold"]), number(m["kl_per_token"]), _value(m["tokens"], ".1f"), _percent(m["ended"]))
        for n, m in models.items()
    ]
    tables = [
        block(heading("On test prompts"), table(["model", "prompts", "gold reward", "KL a token", "tokens", "ended"], rows, stacked=True))
    ]
    if gains:
        head = ["against SFT", "gold reward", "tokens", "gold, not shorter"]
        changes = [
            (n, _value(g["gold"], "+.3f"), _value(g["tokens"], "+.1f"), _value(g["gold_where_not_shorter"], "+.3f"))
            for n, g in gains.items()
        ]
        tables.append(block(heading("What alignment changed, paired by prompt"), table(head, changes, stacked=True)))
    return paragraph(aligned["method"]) + grid(charts) + grid(tables) + source_line(where)


def _reward_model(kinds: Mapping[str, Any], figures: Figures) -> str:
    where = source(figures, "reward", "pairs", "evaluation")
    marks = [(kind.replace("_", " "), *_limits_of(row["accuracy"])) for kind, row in kinds.items()]
    chart = figure("Reward model: accuracy by kind of negative", whiskers(marks, 0.5, "accuracy"), where, "dashed: chance")
    head = ["negatives", "pairs", "accuracy", "the shorter is right", "tokens chosen", "rejected"]
    rows = [
        (
            kind.replace("_", " "),
            f"{row['pairs']:,}",
            _percent(row["accuracy"]),
            _percent(row["shorter_is_right"]),
            number(row["tokens_chosen"]),
            number(row["tokens_rejected"]),
        )
        for kind, row in kinds.items()
    ]
    return grid(
        [chart, block(heading("Accuracy, and what length alone would say"), table(head, rows, stacked=True), source_line(where))], "pair"
    )


def samples(figures: Figures) -> str:
    found = ((figures.get("evaluation") or {}).get("alignment") or {}).get("samples") or []
    parts = []
    for sample in found:
        texts = [heading("Prompt"), pre(sample["prompt"])]
        for name, title in titled(sample["responses"], figures).items():
            answer, when = sample["responses"][name], "before" if name in ("base", "sft") else "after"
            texts += [heading(f"{title} ({when}), gold reward {number(answer['gold'])}"), pre(answer["text"])]
        parts.append(block(*texts))
    return grid(parts) + (source_line(source(figures, "evaluation", "pairs")) if parts else "")
