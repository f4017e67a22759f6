import copy
import itertools
import math
import re
from html.parser import HTMLParser
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.charts import Series, arcs, bars, escape, histogram, line_chart, number, ticks, whiskers
from evaluation.report_page import report

NASTY = '<script>alert(1)</script><img src=x onerror="x()">\'"&\x00\u202e</pre>'


def interval(mean: float, half: float = 0.02) -> dict[str, Any]:
    return {"mean": mean, "se": half / 2, "low": mean - half, "high": mean + half, "n": 200, "clusters": 150}


def bits(value: float) -> dict[str, Any]:
    cell = {"bits_per_byte": value, "loss": 3.1, "nats": 100.0, "tokens": 900, "bytes": 3000, "documents": 12}
    return {"all": cell, "web": cell, NASTY: cell}


def score(mean: float) -> dict[str, Any]:
    row = {
        "items": 600,
        "documents": 300,
        "chance": 0.25,
        "acc": interval(mean),
        "acc_norm": interval(mean),
        "standard_errors_above_chance": 9.1,
    }
    return {"continuation": {**row, "domains": {}}}


def stage(role: str, name: str, reads: list[str], count: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"role": role, "stage": name, "fingerprint": f"{abs(sum(map(ord, role))) * 7919:012x}"[:12], "reads": reads, "documents": count}


def figures() -> dict[str, Any]:
    """Every section's figures, of the form that tasks/report.py collects."""
    count = {"in": 1200, "added": 0, "out": 1000, "dropped": {"exact copy": 150, NASTY: 50}, "quarantined": 0}
    tokens = {"in": 5_000, "added": 40, "out": 4_900, "dropped": {"remainder": 140, "none": 0}, "quarantined": 0}
    kind = {
        "pairs": 90,
        "accuracy": interval(0.9),
        "shorter_is_right": interval(0.6),
        "tokens_chosen": 20.5,
        "tokens_rejected": 31.0,
        "margin": 0.4,
    }
    aligned = {
        "prompts": 256,
        "gold": interval(0.63),
        "tokens": interval(19, 1),
        "ended": interval(0.9),
        "kl_per_token": 0.0,
        "kl_per_response": 0.0,
    }
    gain = {"gold": interval(0.04), "tokens": interval(-3, 1), "gold_where_not_shorter": None}
    signal = {"family": "rules", "edges": [0, 10, 20, 30], "counts": [5, 7, 0], "beyond": 3}
    domain = {"available": 5_000_000, "weight": 0.5, "asked": 2_000_000, "got": 1_500_000, "epochs": 0.3}
    return {
        "stages": [
            stage("documents", "ingest", [], {"in": 1200, "added": 0, "out": 1200, "dropped": {}, "quarantined": 0}),
            stage("duplicates", "deduplicate", ["documents"], count),
            stage("rules", "score_rules", ["documents", "duplicates"]),
            stage("items", "eval_tasks", ["documents", "duplicates"]),
            stage("selection", "select", ["rules"], {**count, "dropped": {**count["dropped"], "words": 7}}),
            stage("blocks", "mix", ["documents", "rules", "duplicates"]) | {"tokens": tokens},
            stage("tokens", "tokenize", ["rules"]),
            stage("base", "pretrain", ["blocks"]),
            stage("pairs", "align_data", ["documents"]),
            stage("reward", "reward", ["base", "pairs"]),
            stage("ppo", "ppo", ["base", "reward", "pairs"]),
            stage("evaluation", "evaluate", ["base", "tokens", "items"]),
        ],
        "corpus": {"web": {"documents": 1200, "bytes": 7_000_000, "kept": 900}},
        "mixture": {
            "max_epochs": 4.0,
            "trained": {"web": 8.4, "books": 0.0},
            "asked": 6_000_000,
            "got": 4_500_000,
            "domains": {
                "web": domain,
                "books": {**domain, "available": 0, "asked": 0, "got": 0, "epochs": 0},
                NASTY: {**domain, "got": 3_000_000},
            },
        },
        "signals": [
            {**signal, "signal": "words", "reason": "words", "dropped": 7, "bounds": [12, 50]},
            {**signal, "signal": NASTY, "reason": NASTY, "dropped": 0, "bounds": []},
        ],
        "claims": [
            {"claim": "less than a bigram", "found": "2.0 against 2.4", "holds": True},
            {"claim": NASTY, "found": NASTY, "holds": False},
        ],
        "curves": {
            "base": {
                "training": {"step": [0, 1, 2], "loss": [8.0, None, 5.0], "lr": [0, 0.1, 0.05]},
                "validation": {"step": [0], "loss": [8.1]},
            },
            "ppo": {
                "training": {"step": [0, 1, 2], "loss": [1, 2, 1.5], "lr": [1e-4] * 3, "kl": [0, 0.1, 0.2], "reward": [0.1, 0.2, 0.4]},
                "validation": {"step": [0, 2], "gold": [0.6, 0.64], "kl": [0.0, 0.2]},
            },
        },
        "evaluation": {
            "bits_per_byte": {
                "models": {"base": bits(2.0), "sft": bits(2.1)},
                "baselines": {"bigram": bits(2.4), "gzip": bits(2.5)},
                "method": "how",
            },
            "tasks": {"base": score(0.45), "sft": score(0.46)},
            "alignment": {
                "method": "so",
                "models": {"sft": aligned, "ppo": {**aligned, "kl_per_token": 0.17, "gold": interval(0.67)}},
                "gains": {"ppo": gain},
                "samples": [{"prompt": NASTY, "responses": {"sft": {"text": NASTY, "gold": 0.5}, "ppo": {"text": "fine", "gold": 0.6}}}],
            },
            "reward_model": {NASTY: kind, "all": kind},
        },
        "calibration": {
            "step_s": 0.2,
            "tried": [
                {"ranks": 1, "threads": 2, "dtype": "float32", "compile": False, "step_s": 0.25},
                {"ranks": 2, "threads": 1, "dtype": "bfloat16", "compile": True, "step_s": 0.2},
            ],
        },
        "limits": ["small", NASTY],
        "missing": ["dpo"],
        "asked": {"title": NASTY, "settings": [("mix.weights.web", NASTY, NASTY)]},
        "titles": {"base": "pretrained", "sft": "SFT", "reward": "reward model", "ppo": "PPO"},
    }


def costs(seconds: float = 90.0) -> dict[str, Any]:
    cost = {"seconds": seconds, "created": "2026-11-21 10:00", "cores": 2, "execution": {"dtype": NASTY}, "bytes": 12_000_000}
    return {row["role"]: cost for row in figures()["stages"]}


class Page(HTMLParser):
    """Tags, attributes and text; raises on tags that do not match."""

    VOID = ("meta", "rect", "circle", "line", "path", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_texts_of_documents_never_become_markup() -> None:
    page = Page(report(figures(), costs()))
    assert "script" not in page.tags and "img" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    shown = "".join(page.text)
    spelled = NASTY.replace("\x00", "\\u0000").replace("\u202e", "\\u202e")
    assert "\u202e" not in shown
    # claim and what was found, domain (three tables), drop reason, signal, prompt, response, kind of negative (chart, table), class, limit
    assert shown.count(spelled) >= 12


def test_it_asks_nothing_of_the_network() -> None:
    text = report(figures(), costs())
    page = Page(text)
    assert all(
        value and value.startswith("#") for name, value in page.attributes if name in ("href", "src", "xlink:href", "srcset", "action")
    )
    assert not re.search(r"url\(|@import|https?://", text)
    assert {"link", "iframe", "object", "embed", "base"}.isdisjoint(page.tags)


def test_every_chart_and_table_names_its_artifact() -> None:
    named = r"from \w+ [0-9a-f]{12}(, \w+ [0-9a-f]{12})*<"
    text = report(figures(), costs())
    folded = re.findall(r"<details>.*?</details>", text, re.S)
    assert folded and all(re.search(named, family) for family in folded)
    open_ones = re.findall(r"<figure>.*?</figure>", re.sub(r"<details>.*?</details>", "", text, flags=re.S), re.S)
    without = [one for one in open_ones if not re.search(named, one)]
    assert len(open_ones) >= 14 and [re.findall(r'aria-label="([^"]+)"', one) for one in without] == [["stages and what they read"]]
    for section in re.findall(r"<section id=.*?</section>", text, re.S):
        assert re.search(r"[0-9a-f]{12}", section) or 'id="limits"' in section, section[:80]


def test_signals_that_dropped_most_stand_open_and_the_others_are_folded() -> None:
    text = report(figures(), costs())
    section = re.search(r'<section id="signals">.*?</section>', text, re.S)[0]  # type: ignore[index]
    before, _, folded = section.partition("<details>")
    assert "rules: words" in before and before.count('class="mark"') == 1  # of the bounds 12 and 50 one lies within 0 to 30
    assert "rule words dropped 7, 3 beyond the ends" in before and folded.count("<svg") == 2


def test_a_domain_without_text_is_said_with_its_weight_and_who_got_it() -> None:
    shown = "".join(Page(report(figures(), costs())).text)
    assert "There is no text of books (50.0 % of the weight). There is less of web than was asked, even repeated" in shown
    assert "What they lack was shared out over" in shown and "In all 4,500,000 of the 6,000,000 tokens asked are there." in shown
    assert "Training goes through web 8.4 times, over mix.max_epochs (4)." in shown
    assert "The mixture asks for books, of which there was no text." in shown


def test_what_deduplication_dropped_is_not_counted_twice() -> None:
    shown = "".join(Page(report(figures(), costs())).text)
    assert "deduplicate: 200 of 1,200 documents, by reason" in shown and "select: 7 of 1,000 documents, by reason" in shown


def test_the_page_shows_all_sections_and_says_what_is_missing() -> None:
    shown = "".join(Page(report(figures(), costs())).text)
    for heading in (
        "The run",
        "Corpus and mixture",
        "What was dropped",
        "Signals",
        "Training",
        "Bits per byte",
        "Multiple choice",
        "Alignment",
        "Samples",
    ):
        assert heading in shown
    assert "reward model's score against KL" in shown and "gold reward, validation prompts against KL" in shown
    assert "-16.7 %" in shown and "45.0 %43.0 to 47.0" in shown and "no such artifact: dpo" in shown
    assert shown.index("2 x 1 threads, bfloat16, compiled200 ms") < shown.index("1 x 2 threads, float32250 ms")
    assert "1 of 2 hold." in shown and "remainder 140" in shown
    assert shown.index("SFT (before), gold reward 0.500") < shown.index("PPO (after), gold reward 0.600")


@pytest.mark.parametrize("missing", ["asked", "calibration", "corpus", "claims", "mixture", "signals", "curves", "evaluation", "limits"])
def test_any_part_may_be_missing(missing: str) -> None:
    rest = figures()
    del rest[missing]
    Page(report(rest, costs()))


@pytest.mark.parametrize("missing", ["bits_per_byte", "tasks", "alignment", "reward_model"])
def test_any_part_of_the_evaluation_may_be_missing(missing: str) -> None:
    rest = copy.deepcopy(figures())
    del rest["evaluation"][missing]
    Page(report(rest, {}))


def test_nothing_but_the_costs_moves_the_page() -> None:
    assert report(figures(), costs()) == report(figures(), costs())
    assert report(figures(), costs(80)) != report(figures(), costs(90))


def test_inputs_that_others_imply_are_not_drawn() -> None:
    column = next(svg for svg in re.findall(r"<svg.*?</svg>", report(figures(), costs()), re.S) if "stages and what they read" in svg)
    graph = nx.DiGraph((role, row["role"]) for row in figures()["stages"] for role in row["reads"])
    reduced = nx.transitive_reduction(graph)
    assert column.count('class="edge"') == reduced.number_of_edges() < graph.number_of_edges()


def numbers_of(svg: str) -> tuple[list[float], list[float], float]:
    height = float(re.search(r'viewBox="0 0 360 (\d+)"', svg)[1])  # type: ignore[index]
    xs = [float(v) for v in re.findall(r' (?:x|x1|x2|cx)="([^"]+)"', svg)]
    ys = [float(v) for v in re.findall(r' (?:y|y1|y2|cy)="([^"]+)"', svg)]
    for pair in re.findall(r'points="([^"]+)"', svg):
        for x, y in (point.split(",") for point in pair.split()):
            xs.append(float(x))
            ys.append(float(y))
    return xs, ys, height


FINITE = st.floats(-1e9, 1e9, allow_subnormal=False).map(lambda v: round(v, 6))


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_whatever_is_drawn_lies_within_its_box(points: list[tuple[float, float]]) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    charts = [
        line_chart([Series("a", xs, ys), Series("b", xs, ys)], "x", "y"),
        line_chart([Series("a", xs, ys, ["p"] * len(xs))], "x", "y", zero=True),
        whiskers([("a", x, min(x, y), max(x, y)) for x, y in points], 0.0, "x"),
        bars([("a", [abs(x), abs(y)], "t") for x, y in points], ("one", "two")),
        histogram([0.0, 1.0, 2.0], [int(abs(xs[0])), 2], "x", [0.5, 1e9]),
    ]
    for svg in charts:
        across, down, height = numbers_of(svg)
        assert all(-1 <= x <= 361 for x in across) and all(-1 <= y <= height + 1 for y in down)


@given(FINITE, FINITE)
def test_ticks_are_few_even_and_cover(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    marks = ticks(low, high)
    step = (marks[-1] - marks[0]) / (len(marks) - 1)
    slack = 1e-6 * step + 4 * math.ulp(max(abs(low), abs(high)))  # what a float can tell apart at this size
    assert 2 <= len(marks) <= 8
    assert all(abs(right - left - step) <= slack for left, right in itertools.pairwise(marks))
    assert marks[0] <= low + slack and high <= marks[-1] + slack


def test_an_unfinished_series_is_drawn_without_its_gaps() -> None:
    svg = line_chart([Series("a", [0, 1, 2], [1.0, float("nan"), 3.0])], "x", "y")
    assert "nan" not in svg and len(re.findall(r"points=\"([^\"]+)\"", svg)[0].split()) == 2
    assert line_chart([Series("a", [], [])], "x", "y") == ""
    assert arcs([("a", "1 s", 1.0)], []) != ""


@pytest.mark.parametrize(
    ("value", "said"),
    [(1234567, "1,234,567"), (12.345, "12.3"), (0.01234, "0.012"), (0.0000123, "1.23e-05"), (None, "–"), (2.0, "2"), (-0.5, "-0.500")],
)
def test_numbers_are_short(value: float | None, said: str) -> None:
    assert number(value) == said


def test_unseen_characters_are_spelled_out() -> None:
    assert escape("a\u200b\x07b\n\tc") == "a\\u200b\\u0007b\n\tc"
