"""The score stages, select and the gates, run by the engine over real text with planted documents."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import GateFailed, InputError
from contract.ledger import Ledger
from contract.schemas import blocks_schema
from engine.stage import stage
from filters.config import PerplexityConfig
from filters.materialise import materialise
from tasks.gate_ingest import gate_ingest
from tasks.gate_mix import gate_mix
from tasks.gate_select import gate_select
from tasks.score_contamination import score_contamination
from tasks.score_language import score_language
from tasks.score_perplexity import _limits, _trusted, score_perplexity
from tasks.score_pii import score_pii
from tasks.score_rules import score_rules
from tasks.score_toxicity import score_toxicity
from tasks.select import select
from tokens.order import id_words

pytestmark = pytest.mark.slow

_spec = importlib.util.spec_from_file_location("filters_corpus", Path(__file__).parent / "corpus.py")
assert _spec is not None and _spec.loader is not None
corpus = importlib.util.module_from_spec(_spec)
sys.modules["filters_corpus"] = corpus
_spec.loader.exec_module(corpus)

SCORES = {
    "rules": score_rules,
    "language": score_language,
    "toxicity": score_toxicity,
    "pii": score_pii,
    "contamination": score_contamination,
    "perplexity": score_perplexity,
}


@pytest.fixture(scope="module")
def rows(test_data: Path) -> list[dict[str, Any]]:
    return corpus.corpus(test_data)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def curate(root: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    run = corpus.Run(root, rows, **settings)
    for role, one in SCORES.items():
        run.made[role] = run.run(one)
    run.made["selection"] = run.run(select)
    return run


@pytest.fixture(scope="module")
def made(root: Path, rows: list[dict[str, Any]]) -> Any:
    return curate(root, rows)


def test_planted_documents_are_dropped_for_their_reason(made: Any, rows: list[dict[str, Any]]) -> None:
    decisions = made.whole("selection").to_pylist()
    planted = {i: row["reason"] for i, row in enumerate(rows) if row["planted"]}
    assert {i: decisions[i]["reason"] for i in planted} == planted
    assert [row["id"] for row in decisions] == [row["id"] for row in rows]
    assert all(row["kept"] == (row["reason"] is None) for row in decisions)


def test_duplicates_keep_their_survivor_and_have_no_signals(made: Any, rows: list[dict[str, Any]]) -> None:
    last = made.whole("selection").to_pylist()[-1]
    assert (last["kept"], last["reason"], last["survivor"]) == (False, "exact_duplicate", rows[corpus.DUPLICATE_OF]["id"])
    for role in SCORES:
        signals = made.whole(role).to_pylist()
        assert signals[-1].pop("id") == rows[-1]["id"]
        assert set(signals[-1].values()) == {None}


def test_most_real_text_is_kept_and_the_ledger_says_what_went(made: Any) -> None:
    figures, count = made.made["selection"].figures, made.made["selection"].ledger.documents
    kept = {domain: row["kept"] / row["in"] for domain, row in figures["domains"].items()}
    assert kept["web"] > 0.5 and kept["academic"] > 0.7 and kept["code"] > 0.8
    dropped = [reason for reason in made.whole("selection")["reason"].to_pylist() if reason]
    assert count.dropped == {reason: dropped.count(reason) for reason in set(dropped)}
    assert sum(figures["splits"].values()) == count.out


def test_the_middle_of_the_perplexities_is_kept_and_trusted_rows_are_spared(made: Any, rows: list[dict[str, Any]]) -> None:
    values = made.whole("perplexity")["perplexity"].to_pylist()
    labels = made.whole("language")["label"].to_pylist()
    reasons = made.whole("selection")["reason"].to_pylist()
    counted = [
        value
        for value, label, row in zip(values, labels, rows, strict=True)
        if (row["domain"], row["split"], row["trusted"], row["kept"], label) == ("web", "train", False, True, "en")
    ]
    low, high = np.percentile(np.array(counted, np.float64), [10, 90])
    assert made.made["selection"].figures["perplexity_ranges"]["web/en"] == pytest.approx([low, high])
    for value, label, row, reason in zip(values, labels, rows, reasons, strict=True):
        if row["domain"] == "web" and label == "en" and reason in (None, "perplexity"):
            assert (reason == "perplexity") == (not low <= value <= high)
        assert not (row["trusted"] and reason == "perplexity")
        assert not (row["domain"] == "code" and reason == "perplexity")
    trusted = [value for value, row in zip(values, rows, strict=True) if row["trusted"]]
    others = [v for v, row in zip(values, rows, strict=True) if row["domain"] == "academic" and not row["trusted"]]
    assert np.median(trusted) < np.median(others) < np.median(counted)  # in-sample, same field, other fields


def test_no_run_of_an_item_is_left_in_what_is_trained_on(made: Any) -> None:
    text = [
        materialise(*(made.made[role].table(name) for role in ("documents", "selection", "pii", "contamination")))["text"].to_pylist()
        for name in made.made["documents"].names()
    ]
    words = [re.findall(r"[^\W_]+", one.lower()) for part in text for one in part]
    item = re.findall(r"[^\W_]+", corpus.ITEM.lower())
    runs = {tuple(item[i : i + 13]) for i in range(len(item) - 12)}
    assert runs and not any(tuple(one[i : i + 13]) in runs for one in words for i in range(len(one) - 12))
    planted = text[-1][-1]
    assert planted.endswith("Write to <EMAIL> today.") and "surveyor" not in planted and len(planted.split()) >= 200


def test_the_test_side_is_not_compared_with_its_own_items(root: Path, rows: list[dict[str, Any]]) -> None:
    moved = [{**row, "split": "test"} if row.get("reason") == "contamination" else row for row in rows]
    run = corpus.Run(root / "moved", moved)
    signals = run.run(score_contamination)
    table = [row for name in signals.names() for row in signals.table(name).to_pylist()]
    assert all((row["spans"] is None) == (given["split"] == "test" or not given["kept"]) for row, given in zip(table, moved, strict=True))


def test_parts_do_not_change_decisions(made: Any, rows: list[dict[str, Any]], root: Path) -> None:
    other = curate(root, rows, rows_a_part=37)
    assert other.whole("selection").equals(made.whole("selection"))
    assert other.made["selection"].figures == made.made["selection"].figures
    models = [run.made["perplexity"].record("model.binary").digest for run in (made, other)]
    assert models[0] == models[1]


def test_a_threshold_reruns_no_measurement(made: Any, rows: list[dict[str, Any]], root: Path) -> None:
    changed = {
        "select": {"domains": {"web": {"min_words": 90}}},
        "pii": {"action": "drop"},
        "contamination": {"max_overlap_fraction": 0.01},
    }
    run = corpus.Run(root, rows, filters=changed)
    for role, one in SCORES.items():
        assert run.cached(one), role
        run.made[role] = run.run(one)
    assert not run.cached(select)
    run.made["selection"] = run.run(select)
    reasons = run.whole("selection")["reason"].to_pylist()
    pii = run.whole("pii")["count"].to_pylist()
    assert all(reason for reason, count in zip(reasons, pii, strict=True) if count)
    assert reasons[-2] == "contamination"
    words = run.whole("rules")["words"].to_pylist()
    assert not any(reason is None and row["domain"] == "web" and n < 90 for reason, row, n in zip(reasons, rows, words, strict=True))


def test_nothing_kept_for_training_is_an_input_error_that_names_the_rule(rows: list[dict[str, Any]], root: Path) -> None:
    rules = {domain: {"min_words": 10**8} for domain in ("web", "academic", "code")}
    with pytest.raises(InputError, match=r"none of the \d+ train documents; \d+ of them were dropped for 'words'.*min_words"):
        curate(root, rows, filters={"select": {"domains": rules}})


def test_without_trusted_text_there_is_a_warning_and_no_perplexity_rule(rows: list[dict[str, Any]], root: Path) -> None:
    run = curate(root / "untrusted", [{**row, "trusted": False} for row in rows])
    assert any("trusted" in warning for warning in run.notes.warnings)
    assert "perplexity" not in run.made["selection"].ledger.documents.dropped
    assert set(run.whole("perplexity")["perplexity"].to_pylist()) == {None}


def test_a_learned_classifier_is_used_and_is_part_of_the_identity(
    made: Any, rows: list[dict[str, Any]], root: Path, test_data: Path
) -> None:
    labelled = list(corpus.lines(test_data / "web/toxicity/train.jsonl.zst"))[:1500]
    text = root / "toxicity.txt"
    text.write_text("".join(f"__label__{'toxic' if row['label'] else 'fine'} {' '.join(row['text'].split())}\n" for row in labelled))
    model = fasttext.train_supervised(str(text), dim=8, epoch=5, thread=1, verbose=0, bucket=1000)
    model.save_model(str(root / "toxicity.bin"))
    run = corpus.Run(root, rows, filters={"toxicity": {"model": str(root / "toxicity.bin")}})
    scored = run.run(score_toxicity)
    assert scored.fingerprint != made.made["toxicity"].fingerprint
    assert scored.figures["classifier"] == "toxicity.bin" and made.made["toxicity"].figures["classifier"] == "none"
    probabilities = [p for name in scored.names() for p in scored.table(name)["probability"].to_pylist()]
    assert all(0 <= p <= 1 for p in probabilities[:-1]) and probabilities[-1] is None
    want = dict(zip(*model.predict(" ".join(rows[0]["text"][:2000].split()), k=-1), strict=True))["__label__toxic"]
    assert probabilities[0] == pytest.approx(want, abs=1e-6)
    with pytest.raises(InputError, match="where no file is"):
        corpus.Run(root, rows, filters={"toxicity": {"model": str(root / "absent.bin")}}).run(score_toxicity)


def test_gates_pass_on_sound_data_and_tell_their_figures(made: Any) -> None:
    verdicts = made.run(gate_select).json("validation.json")
    figures = {verdict["column"]: verdict["figures"] for verdict in verdicts}
    assert all(verdict["holds"] for verdict in verdicts)
    assert figures["groups_on_two_sides"] == {"all": 0}
    assert figures["train_documents"]["all"] == made.made["selection"].figures["splits"]["train"]
    assert figures["mean_language_probability"]["code"] is None and figures["mean_language_probability"]["web"] > 0.8
    assert made.run(gate_ingest).json("statistics.json")["totals"][0]["documents"] == len(made.rows)


@pytest.mark.parametrize(
    ("gates", "gate", "sentence"),
    [
        (
            {"min_documents": 10**6},
            gate_ingest,
            r"expect_column_values_to_be_between documents: found 261 \(all\), expected at least 1,000,000",
        ),
        (
            {"min_kept_fraction": 1},
            gate_select,
            r"kept_fraction: found 0\.\d+ \(all\), expected at least 1 \(gates.min_kept_fraction\); most are dropped for \w+",
        ),
        ({"max_toxic_words_per_1000": 0}, gate_select, r"mean_toxic_words_per_1000: found .*\(web\), expected at most 0"),
    ],
)
def test_a_gate_that_does_not_hold_names_expectation_and_figure(
    made: Any, rows: list[dict[str, Any]], root: Path, gates: dict[str, float], gate: Any, sentence: str
) -> None:
    run = corpus.Run(root, rows, gates=gates)
    run.made = made.made
    with pytest.raises(GateFailed, match=sentence):
        run.run(gate)
    assert not run.cached(gate)


def test_a_group_on_two_sides_is_caught(made: Any, rows: list[dict[str, Any]], root: Path) -> None:
    leaked = [{**row, "group": "same" if i in (1, 7) else row["group"]} for i, row in enumerate(rows)]
    run = corpus.Run(root / "leaked", leaked)
    run.made = made.made | {"splits": run.made["splits"]}
    with pytest.raises(GateFailed, match=r"groups_on_two_sides: found 1 \(all\), expected at most 0"):
        run.run(gate_select)


def blocks(figures: dict[str, Any]) -> Any:
    """A stage that publishes three blocks, the last of which names no document when told so."""

    def work(config: Any, out: Any) -> Ledger:
        documents = [[bytes(16)], [bytes(16)], [] if figures.get("untraced") else [bytes(16)]]
        rows = [{"tokens": [1, 2, 3, 4, 5], "starts": [0], "documents": ids} for ids in documents]
        out.table("part-00000.parquet", pa.Table.from_pylist(rows, blocks_schema(4)))
        out.figures |= figures
        return Ledger()

    work.__name__ = f"blocks_{figures['name']}"
    return stage(version=1, config=lambda c: c.given)(work)


def cell(asked: int, got: int) -> dict[str, Any]:
    return {"asked": asked, "got": got, "epochs": 1.0}


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"name": "near", "asked": 100, "got": 80, "domains": {"web": cell(60, 60), "books": cell(40, 20)}}, None),
        ({"name": "far", "asked": 100, "got": 50, "domains": {"web": cell(40, 50), "books": cell(60, 0)}}, r"share_deviation: found 0\.6"),
        ({"name": "lost", "asked": 1, "got": 1, "domains": {"web": cell(1, 1)}, "untraced": True}, r"blocks_without_documents: found 1"),
    ],
)
def test_the_mix_is_held_to_what_was_asked_for(
    rows: list[dict[str, Any]], root: Path, figures: dict[str, Any], sentence: str | None
) -> None:
    run = corpus.Run(root, rows)
    run.made["blocks"] = run.run(blocks(figures))
    if sentence is not None:
        with pytest.raises(GateFailed, match=sentence):
            run.run(gate_mix)
        return
    statistics = run.run(gate_mix).json("statistics.json")
    assert [row["share_deviation"] for row in statistics["domains"]] == pytest.approx([0.15, 0.15])
    assert statistics["totals"][0]["blocks"] == 3


@pytest.mark.parametrize("place", [0, 3, 63])
def test_a_trusted_document_larger_than_the_bound_is_not_the_whole_model_nor_its_end(
    rows: list[dict[str, Any]], root: Path, place: int
) -> None:
    """64 abstracts of which one is a book, in parts of 10: each part gives some of the sample."""
    trusted = [dict(row) for row in rows if row["trusted"] and row["split"] == "train" and row["kept"]][:48]
    trusted = (trusted * 2)[:64]
    trusted = [{**row, "id": i.to_bytes(16, "big"), "text": f"{row['text']} {i}"} for i, row in enumerate(trusted)]
    trusted[place]["text"] = "a long book says the same again and again " * 5000
    run = corpus.Run(root / str(place), trusted, rows_a_part=10, filters={"perplexity": {"max_train_bytes": 24_000, "order": 2}})
    made = run.run(score_perplexity)
    assert made.figures["trained_on"]["documents"] >= 10 and 0.6 * 24_000 < made.figures["trained_on"]["bytes"] <= 24_000
    assert made.figures["scored"] == 64
    sample = list(_trusted({**run.made, "config": PerplexityConfig(max_train_bytes=24_000)}))
    assert max(map(len, sample)) < 24_000 / 10
    assert len(sample) == made.figures["trained_on"]["documents"]


@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=60), budget=st.integers(1, 60_000), cut=st.integers(0, 60))
def test_the_sample_of_trusted_text_fills_the_bound_and_depends_on_no_parts(sizes: list[int], budget: int, cut: int) -> None:
    words = id_words(pa.array([i.to_bytes(16, "big") for i in range(len(sizes))], pa.binary(16)))
    all_sizes, room = np.array(sizes, np.int64), max(1, budget * 3 // 4)
    (whole,) = _limits([(words, all_sizes)], budget)
    parts = _limits([(words[:cut], all_sizes[:cut]), (words[cut:], all_sizes[cut:])], budget)
    assert np.array_equal(np.concatenate(parts), whole)
    assert (whole <= all_sizes).all() and whole.sum() <= room
    if all_sizes.sum() <= room:
        assert np.array_equal(whole, all_sizes)
    else:
        assert whole.sum() > 0.9 * room - len(sizes), "it is filled"
        assert whole.max() <= max(1, room // 16) or (whole[all_sizes > 0] > 0).all(), "a long one is cut where others are left out"
