"""report on real artifacts: what it collects, that times stay out of its content, and what a part that is missing does."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest

from contract.config import Frozen, RunOptions
from contract.ledger import Count, Ledger
from engine.stage import Engine, Output, stage
from evaluation.charts import POINTS
from filters.config import RuleSet
from store.artifact import Artifact
from store.root import open_root
from tasks.report import HISTOGRAM_ROWS, collect, judged, report
from tasks.select import Selecting

SIGNAL = np.concatenate([np.random.default_rng(0).normal(10, 2, 995), [1e6] * 5])
RULES = {"web": RuleSet(min_words=40), "code": RuleSet(min_words=5)}
SELECTING = Selecting(rules=RULES, min_perplexity_group=1, max_overlap_fraction=0.3, drop_pii=False)
DOMAIN = {"available": 900, "weight": 1.0, "asked": 1000, "got": 800, "epochs": 0.9}


class Nothing(Frozen):
    pass


class Notes:
    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None: ...
    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


@stage(version=1, config=lambda c: Nothing())
def ingest(config: Nothing, out: Output) -> Ledger:
    out.figures["domains"] = {"web": {"documents": 1000, "bytes": 5_000, "files": 1}}
    return Ledger(Count(0, 1000, added=1000))


@stage(version=1, config=lambda c: Nothing(), counts="documents")
def deduplicate(documents: Artifact, config: Nothing, out: Output) -> Ledger:
    return Ledger(Count(1000, 900, dropped={"<b>copy</b>": 100}))


@stage(version=1, config=lambda c: Nothing())
def score_rules(documents: Artifact, duplicates: Artifact, config: Nothing, out: Output) -> Ledger:
    for part in range(2):
        values = SIGNAL[part * 500 : part * 500 + 500]
        columns = {"id": [bytes(16)] * 500, "words": values, "always": [3] * 500, "named": ["x"] * 500, "absent": pa.nulls(500, pa.int32())}
        out.table(f"part-{part:05d}.parquet", pa.table(columns))
    return Ledger()


@stage(version=1, config=lambda c: SELECTING, counts="documents")
def select(documents: Artifact, config: Selecting, out: Output) -> Ledger:
    out.figures["domains"] = {"web": {"in": 1000, "kept": 700}}
    return Ledger(Count(1000, 700, dropped={"words": 280, "perplexity": 20}))


@stage(version=1, config=lambda c: Nothing())
def mix(documents: Artifact, config: Nothing, out: Output) -> Ledger:
    out.figures |= {"asked": 1000, "got": 800, "context": 8, "domains": {"web": DOMAIN}}
    return Ledger()


@stage(version=1, config=lambda c: Nothing())
def pretrain(blocks: Artifact, config: Nothing, out: Output) -> Ledger:
    rows = [{"step": i, "loss": None if i == 5 else 10 - i / 200, "lr": 1e-3, "tokens": i} for i in range(1000)]
    out.bytes("losses.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))
    out.figures["validation"] = [{"step": 0, "loss": 10.0, "bits_per_byte": 3.0}, {"step": 1000, "loss": 5.0, "bits_per_byte": 2.0}]
    return Ledger()


def made(root: Path) -> tuple[Engine, dict[str, Artifact]]:
    storage = open_root(str(root))
    storage.probe()
    engine = Engine(storage, object(), RunOptions(workers=1), Notes(), "test")
    found = {"documents": engine.run(engine.plan(ingest, {}))}
    found["duplicates"] = engine.run(engine.plan(deduplicate, found))
    found["rules"] = engine.run(engine.plan(score_rules, found))
    found["blocks"] = engine.run(engine.plan(mix, {"documents": found["documents"]}))
    found["base"] = engine.run(engine.plan(pretrain, {"blocks": found["blocks"]}))
    return engine, found


def test_stages_follow_what_they_read_and_are_named_by_role(tmp_path: Path) -> None:
    _, found = made(tmp_path)
    stages = collect(dict(reversed(found.items())), [])["stages"]
    order = [row["role"] for row in stages]
    assert all(order.index(read) < order.index(row["role"]) for row in stages for read in row["reads"])
    assert {row["role"]: row["reads"] for row in stages}["rules"] == ["documents", "duplicates"]
    assert {row["role"]: row["fingerprint"] for row in stages} == {role: a.fingerprint[:12] for role, a in found.items()}


def test_histograms_count_every_document_once(tmp_path: Path) -> None:
    _, found = made(tmp_path)
    signals = collect(found, [])["signals"]
    assert [row["signal"] for row in signals] == ["words"]  # ids, texts, nulls and single values have no histogram
    row = signals[0]
    assert sum(row["counts"]) + row["beyond"] == 1000 < HISTOGRAM_ROWS
    inside = (np.percentile(SIGNAL, 0.5) <= SIGNAL) & (np.percentile(SIGNAL, 99.5) >= SIGNAL)
    assert row["beyond"] == 1000 - inside.sum() and row["edges"][-1] < 1e6


def test_a_signal_is_shown_with_what_it_dropped_and_the_bounds_of_the_domains_there_are(tmp_path: Path) -> None:
    engine, found = made(tmp_path)
    selection = engine.run(engine.plan(select, {"documents": found["documents"]}))
    assert judged(found) == {}
    found["selection"] = selection
    assert judged(found)["rules", "words"] == {"reason": "words", "dropped": 280, "bounds": [40]}  # there is no code
    assert judged(found)["perplexity", "perplexity"]["dropped"] == 20
    assert judged(found)["contamination", "overlap_fraction"] == {"reason": "contamination", "dropped": 0, "bounds": [0.3]}
    figures = collect(found, [])
    assert figures["signals"][0]["dropped"] == 280
    assert figures["corpus"] == {"web": {"documents": 1000, "bytes": 5_000, "kept": 700}}


def test_a_long_curve_is_drawn_as_means(tmp_path: Path) -> None:
    _, found = made(tmp_path)
    curves = collect(found, [])["curves"]["base"]
    training = curves["training"]
    assert sorted(training) == ["loss", "lr", "step"] and {len(column) for column in training.values()} == {POINTS}
    assert np.mean([v for v in training["step"] if v is not None]) == pytest.approx(499.5, abs=1)
    assert training["loss"][-1] == pytest.approx(10 - 998 / 200, abs=0.01)
    assert curves["validation"] == {"step": [0.0, 1000.0], "loss": [10.0, 5.0]}


def test_content_is_the_same_in_another_run_and_times_are_attached_only(tmp_path: Path) -> None:
    (one, first), (two, second) = made(tmp_path / "a"), made(tmp_path / "b")
    pages = [engine.run(engine.plan(report, found)) for engine, found in ((one, first), (two, second))]
    assert pages[0].digest == pages[1].digest
    assert [name for name, record in pages[0].files.items() if record.content] == ["figures.json"]
    assert "created" not in pages[0].read("figures.json").decode()


def test_the_page_names_sources_escapes_reasons_and_says_what_is_missing(tmp_path: Path) -> None:
    engine, found = made(tmp_path)
    text = engine.run(engine.plan(report, found)).read("report.html").decode()
    assert f"from mix {found['blocks'].fingerprint[:12]}" in text and f"from pretrain {found['base'].fingerprint[:12]}" in text
    assert "<b>copy</b>" not in text and "&lt;b&gt;copy&lt;/b&gt;" in text
    missing = re.search(r"no such artifact: ([^<]*)\.", text)
    assert missing and "evaluation" in missing[1] and "base" not in missing[1].split(", ")


def test_the_page_says_what_the_run_was_asked_for_and_the_content_does_not(tmp_path: Path) -> None:
    """Equal artifacts may be asked for in many ways: the digest must not depend on it."""
    (one, first), (two, second) = made(tmp_path / "a"), made(tmp_path / "b")
    asked = {"title": "<my>.yaml over preset smoke", "settings": [("train.max_steps", "9", "override")]}
    told, untold = (engine.run(engine.plan(report, found)) for engine, found in ((replace(one, asked=asked), first), (two, second)))
    text = told.read("report.html").decode()
    assert "Asked for: &lt;my&gt;.yaml over preset smoke" in text
    assert re.search(r"<td[^>]*>train\.max_steps</td><td[^>]*>9</td><td[^>]*>override</td>", text)
    assert "Asked for" not in untold.read("report.html").decode()
    assert told.digest == untold.digest and "smoke" not in told.read("figures.json").decode()
