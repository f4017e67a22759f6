"""How a run ends, from artifacts of a real engine."""

from pathlib import Path
from typing import Any

import pytest

from bessemer.summary import Summary
from contract.config import Frozen, RunOptions
from contract.ledger import Count, Ledger
from engine.stage import Engine, Output, stage
from store.artifact import Artifact
from store.root import open_root
from store.storage import Storage

CLAIMS = [
    {"claim": "less than a bigram's", "found": "2.0 against 2.4", "holds": True},
    {"claim": "right on <b>cut_or</b> | shuffled", "found": "0.4 [0.3, 0.5]", "holds": False},
]
EXPORTED = {"claim": "loads elsewhere", "found": "same", "holds": True}


class Nothing(Frozen):
    pass


class Training(Frozen):
    train: dict[str, Any]


class Silent:
    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None: ...
    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


@stage(version=1, config=lambda c: Nothing())
def ingest(config: Nothing, out: Output) -> Ledger:
    return Ledger(Count(0, 1000, added=1200, dropped={"blank": 200}))


@stage(version=1, config=lambda c: Nothing())
def evaluate(config: Nothing, out: Output) -> Ledger:
    out.json("evaluation.json", {"claims": CLAIMS})
    out.figures |= {"base_bits_per_byte": 2.0, "bigram_bits_per_byte": 2.4, "claims_held": 1, "claims": 2}
    return Ledger()


@stage(version=1, config=lambda c: Nothing())
def report(evaluation: Artifact, config: Nothing, out: Output) -> Ledger:
    out.json("figures.json", {"claims": [*CLAIMS, EXPORTED]})
    out.attach("report.html", b"<!doctype html>")
    return Ledger()


def made(storage: Storage) -> dict[str, Any]:
    engine = Engine(storage, object(), RunOptions(), Silent(), "test")
    found: dict[str, Any] = {"documents": engine.run(engine.plan(ingest, {})), "evaluation": engine.run(engine.plan(evaluate, {}))}
    return found | {"report": engine.run(engine.plan(report, {"evaluation": found["evaluation"]})), "ppo": None}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BESSEMER_HOME", str(tmp_path / "clone"))
    return made(open_root((tmp_path / "root").as_uri()))


def test_the_last_lines_name_the_claims_that_do_not_hold(results: dict[str, Any]) -> None:
    lines = Summary(results, 75).lines()
    assert lines[0].startswith("3 stages, ") and lines[0].endswith(" 1:15")
    assert lines[1:-1] == [
        "scores  bits per byte: base 2.000, bigram 2.400",
        "claims  2 of 3 hold",
        "not     right on <b>cut or</b> | shuffled: 0.4 [0.3, 0.5]",
    ]
    assert Path(lines[-1].removeprefix("report  ")).read_text() == "<!doctype html>"


def with_model(results: dict[str, Any], **train: Any) -> dict[str, Any]:
    """The same results with a model of 40 steps, 10,000 tokens and 100,000 parameters."""
    settings = Training.model_validate({"train": {"max_steps": 40, "init_from": None} | train})

    @stage(version=1, config=lambda c: settings)
    def pretrain(documents: Artifact, config: Training, out: Output) -> Ledger:
        out.figures |= {"steps": 40, "tokens": 10_000, "parameters": 100_000}
        return Ledger()

    engine = Engine(results["documents"].storage, object(), RunOptions(), Silent(), "test")
    return results | {"base": engine.run(engine.plan(pretrain, {"documents": results["documents"]}))}


def test_a_model_of_few_steps_claims_nothing_and_the_checks_are_counted(results: dict[str, Any]) -> None:
    results = with_model(results)
    summary = Summary(results, 75)
    assert not [line for line in summary.lines() if line.startswith("not ")]
    assert summary.lines()[-2:] == [
        "checks  3 of the machinery hold: 1 balance of ledgers, 2 digests of inputs",  # ingest's; those that report and pretrain read
        "claims  none: a model of 40 steps claims nothing (10,000 tokens seen, 100,000 parameters)",
    ]
    assert summary.title == "checks 3 of the machinery hold; a model of 40 steps claims nothing (10,000 tokens seen, 100,000 parameters)"
    assert "## Claims: none" in summary.markdown() and "does not hold" not in summary.markdown()


def test_a_check_that_fails_is_not_counted_as_held(results: dict[str, Any]) -> None:
    """Another run rebuilt an input with other content: what was made from it was made from other bytes."""
    results = with_model(results)
    known = results["documents"]
    other = Artifact(known.storage, known.manifest | {"digest": "0" * 64})
    assert Summary({**results, "documents": other}, 1).lines()[-2].startswith("checks  2 of 3 of the machinery hold: ")


@pytest.mark.parametrize("train", [{"max_steps": None}, {"init_from": "/models/trained"}])
def test_steps_fitted_to_a_machine_and_a_model_that_goes_on_make_claims(results: dict[str, Any], train: dict[str, Any]) -> None:
    assert "claims  2 of 3 hold" in Summary(with_model(results, **train), 1).lines()


def test_without_a_report_the_evaluations_claims_are_said(results: dict[str, Any]) -> None:
    assert Summary({**results, "report": None}, 1).held == "1 of 2 claims hold"
    assert Summary({"documents": results["documents"]}, 1).lines()[1:] == []


def test_the_summary_holds_figures_claims_stages_and_no_markup_of_names(results: dict[str, Any]) -> None:
    text = Summary(results, 75).markdown()
    assert "## 2 of 3 claims hold" in text and "| base bits per byte | 2 | `evaluate@" in text
    assert "| **does not hold** | right on &lt;b&gt;cut or&lt;/b&gt; \\| shuffled | 0.4 [0.3, 0.5] |" in text
    assert f"| ingest | `{results['documents'].fingerprint[:12]}` | 0 | 1,000 |" in text
    assert f"Report: `{results['report'].storage.local('artifacts/report')}" in text


def test_of_an_s3_root_the_uri_is_given(s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESSEMER_HOME", str(tmp_path))
    summary = Summary(made(s3), 1)
    assert summary.link is None and summary.lines()[-1].startswith(f"report  {s3.uri}/artifacts/report/")
    assert f"Report: `{s3.uri}/artifacts/report/" in summary.markdown()
