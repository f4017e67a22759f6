"""Alignment data through the engine: sides, negatives, and a gold judge that has seen none of it."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bessemer.takedown import look_up
from contract.config import Frozen, RunOptions
from contract.errors import InputError
from contract.ledger import Ledger
from contract.schemas import document_id
from engine.stage import Engine, Output, stage
from evaluation.gold import MODEL, Gold, Squash, distinct_3, ends, tokens
from filters.config_split import SplitConfig
from filters.group_split import GROUPS
from sources.config import AlignDataConfig, IngestConfig, IngestIdentity, Source
from sources.plug_in_reader import Reader
from sources.preferences import Pair
from sources.removals import Removal, record
from store.artifact import Artifact
from store.root import open_root
from tasks.align_data import AlignDataIdentity, _by_side, align_data

WORDS = "a the number list of words that are joined and sorted by their name when it is given".split()  # noqa: SIM905
SIDES = ("train", "validation", "test")


class Quiet:
    """A journal that says nothing."""

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...

    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...

    def warn(self, stage: str, text: str) -> None: ...

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


class Nothing(Frozen):
    pass


@stage(version=1, config=lambda c: Nothing())
def split(config: Nothing, out: Output) -> Ledger:
    sides = {"g0": "test", "g1": "validation", **{f"g{i}": "train" for i in range(2, 20)}}
    out.table("groups.parquet", pa.table([list(sides), list(sides.values())], schema=GROUPS))
    return Ledger()


def sentence(rng: np.random.Generator) -> str:
    return "Return " + " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(5, 12))) + "."


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """600 answers in 20 groups; the first ten answers of every group are the same in all."""
    rng = np.random.default_rng(0)
    shared = [sentence(rng) for _ in range(10)]
    rows = [
        {"prompt": f"What is {group}/{i}?", "response": shared[i] if i < 10 else sentence(rng), "book": f"g{group}"}
        for group in range(20)
        for i in range(30)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(root: Path, path: Path, source: Source | None = None, **settings: object) -> Artifact:
    source = source or Source(uri=str(path), domain="conversation", group_field="book")
    config = SimpleNamespace(
        align_data=AlignDataConfig(sources=(source,), gold_docstrings=80, **settings),
        ingest=IngestConfig(),
        split=SplitConfig(),
        storage=SimpleNamespace(endpoint_url=None),
    )
    engine = Engine(open_root(str(root)), config, RunOptions(workers=1), Quiet(), "test")
    return engine.run(engine.plan(align_data, {"splits": engine.run(engine.plan(split, {}))}))


def test_sides_follow_the_split_and_share_no_group_and_no_answer(tmp_path: Path, pairs: Path) -> None:
    made = run(tmp_path / "root", pairs)
    rows = made.table("sft.parquet").to_pylist()
    assert {row["split"] for row in rows if row["group"] == "g0"} == {"test"} == {row["split"] for row in rows if row["split"] == "test"}
    answers = {side: {row["response"] for row in rows if row["split"] == side} for side in SIDES}
    groups = {side: {row["group"] for row in rows if row["split"] == side} for side in SIDES}
    assert groups["validation"] == {"g1"} and not groups["train"] & {"g0", "g1"}
    assert (
        not answers["train"] & answers["test"]
        and not answers["validation"] & answers["test"]
        and not answers["train"] & answers["validation"]
    )
    assert all(len(side) for side in answers.values())
    assert made.table("prompts.parquet")["prompt"].to_pylist() == [row["prompt"] for row in rows]
    kinds = {(row["split"], row["kind"]) for row in made.table("preferences.parquet").to_pylist()}
    assert len(kinds) == 9


def test_a_reader_of_the_users_own_gives_the_same_pairs_and_its_version_is_identity(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("their_pairs")
    module.READER = Reader(version=3, suffixes=(".pairs",), read=lambda handle, locator: map(json.loads, handle))
    monkeypatch.setitem(sys.modules, "their_pairs", module)
    theirs = tmp_path / "theirs.pairs"
    theirs.write_bytes(pairs.read_bytes())
    source = Source(uri=str(theirs), domain="conversation", group_field="book", reader="their_pairs:READER")
    made, want = run(tmp_path / "root", theirs, source), run(tmp_path / "root", pairs)
    for name in ("sft.parquet", "preferences.parquet", "prompts.parquet"):
        assert made.table(name).equals(want.table(name))
    (placed,) = made.manifest["identity"]["config"]["reading"]["sources"]
    assert (placed["reader"], placed["reader_version"]) == ("their_pairs:READER", 3)


def test_the_judge_has_seen_no_answer_of_any_side(tmp_path: Path, pairs: Path) -> None:
    made = run(tmp_path / "root", pairs, max_train=10**6)
    in_tables = {row["group"] for row in made.table("sft.parquet").to_pylist()}
    held = {f"g{i}" for i in range(20)} - in_tables
    assert len(held) == made.figures["groups"]["gold"] > 0
    own = [json.loads(line) for line in pairs.read_text().splitlines()]

    def said(groups: set[str]) -> set[str]:
        return {" ".join(tokens(row["response"])) for row in own if row["book"] in groups}

    elsewhere = {" ".join(tokens(row["response"])) for row in made.table("sft.parquet").to_pylist()}
    assert said(held) & elsewhere <= said({"g0"})  # the answers that all groups share: the test side has them, so the judge has not
    learned = made.read(f"gold/{MODEL}").decode()
    assert "\\3-grams:" in learned and made.figures["gold"]["docstrings"] <= made.figures["pairs"]["gold"]


def test_true_answers_score_above_shuffled_repeated_and_cut_ones(tmp_path: Path, pairs: Path) -> None:
    made = run(tmp_path / "root", pairs)
    gold = Gold.load(made.folder("gold"))
    rows = [row for row in made.table("preferences.parquet").to_pylist() if row["split"] == "train"]

    def mean(kind: str, side: str) -> float:
        own = [row for row in rows if row["kind"] == kind]
        scores = gold.score([r["prompt"] for r in own], [r[side] for r in own], [[] for _ in own], [True] * len(own))
        assert scores.min() >= 0 and scores.max() <= 1
        return float(scores.mean())

    assert mean("shuffled", "chosen") > mean("shuffled", "rejected") + 0.05
    assert mean("repetitive_or_cut", "chosen") > mean("repetitive_or_cut", "rejected") + 0.05


def test_one_config_gives_one_digest_in_another_place(tmp_path: Path, pairs: Path) -> None:
    first = run(tmp_path / "one", pairs)
    moved = tmp_path / "elsewhere" / "pairs.jsonl"
    moved.parent.mkdir()
    pairs.rename(moved)
    second = run(tmp_path / "two", moved)
    assert (first.fingerprint, first.digest) == (second.fingerprint, second.digest)


def test_sizes_are_those_asked_for_and_too_little_is_refused(tmp_path: Path, pairs: Path) -> None:
    made = run(tmp_path / "root", pairs, max_train=50, max_held_out=5, negatives_per_pair=1)
    assert made.figures["pairs"] | {"gold": 0} == {"train": 50, "validation": 5, "test": 5, "gold": 0}
    assert made.table("preferences.parquet").num_rows == 60
    few = tmp_path / "few.jsonl"
    few.write_text("".join(pairs.read_text().splitlines(keepends=True)[:40]))
    with pytest.raises(InputError, match="0 pairs on the train side"):
        run(tmp_path / "root", few)


def test_real_preferences_keep_their_answers(tmp_path: Path, test_data: Path) -> None:
    source = test_data / "preferences" / "hh_harmless_base.jsonl.zst"
    made = run(tmp_path / "root", source, max_prompt_chars=2000, max_response_chars=400)
    rows = made.table("preferences.parquet").to_pylist()
    assert {row["kind"] for row in rows} == {"given"} and len(rows) > 300
    assert all(row["prompt"].startswith("\n\nHuman: ") and row["prompt"].endswith("\n\nAssistant:") for row in rows)


def test_each_part_of_the_judge_is_what_it_says() -> None:
    class Uniform:
        def score(self, sentence: str, bos: bool = True, eos: bool = True) -> float:
            return -2.0 * (len(sentence.split()) + 1)

    gold = Gold(Uniform(), Squash(-2.0, 1.0))
    parts = gold.parts(["p"] * 3, ["Sort names by key.", "", "the the the the the"], [["names", "missing"], ["a"], []], [True, True, False])
    assert parts["fluency"].tolist() == [0.5, 0.0, 0.5]
    assert parts["distinct_3"].tolist() == [1.0, 0.0, 1 / 3]
    assert parts["ends"].tolist() == [1.0, 0.0, 0.0]
    assert parts["names"].tolist()[:2] == [0.5, 0.0] and np.isnan(parts["names"][2])
    score = gold.score(["p"] * 3, ["Sort names by key.", "", "the the the the the"], [["names", "missing"], ["a"], []], [True, True, False])
    assert np.allclose(score, [3 / 4, 0, (0.5 + 1 / 3) / 3])
    assert (distinct_3("one two"), ends("x", True), ends("x.", True), ends("x.", False)) == (0.0, 0.5, 1.0, 0.0)
    true, mixed = [-1.0, -1.2], [-2.0, -2.2]
    assert np.allclose(Squash.between(true, mixed)(np.mean(true)), 1 / (1 + np.exp(-1)))


def test_a_pair_that_was_taken_down_is_in_no_table(tmp_path: Path, pairs: Path) -> None:
    lines = pairs.read_bytes().splitlines(keepends=True)
    locator, prompt = f"{pairs.name}:{sum(map(len, lines[:15]))}", json.loads(lines[15])["prompt"]
    before = run(tmp_path / "root", pairs)
    record(open_root(str(tmp_path / "root")), Removal(kind="url", value=locator, sources=("conversation",)))
    after = run(tmp_path / "root", pairs)
    assert before.ledger.documents and after.ledger.documents
    assert "removed" not in before.ledger.documents.dropped and after.ledger.documents.dropped["removed"] == 1
    assert before.ledger.documents.came_in == after.ledger.documents.came_in == 600
    prompts = [made.table("sft.parquet")["prompt"].to_pylist() for made in (before, after)]
    assert prompt in prompts[0] and prompt not in prompts[1]
    assert prompt not in after.table("preferences.parquet")["prompt"].to_pylist()


def test_a_takedown_finds_the_records_that_only_pairs_were_made_of(tmp_path: Path, pairs: Path) -> None:
    """By place, id and licence, on whichever side its pair is; gold has no table of its own, and what is in none is not found."""
    lines = pairs.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) | {"terms": "CC-BY-NC-4.0" if i % 2 else "CC0-1.0"} for i, line in enumerate(lines)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(uri=str(pairs), domain="conversation", group_field="book", license_field="terms")
    made, storage = run(tmp_path / "root", pairs, source), open_root(str(tmp_path / "root"))
    in_tables = {row["prompt"]: row["split"] for row in made.table("sft.parquet").to_pylist()}
    where = {"train": "1 pair", "validation": "1 held-out pair", "test": "1 held-out pair", None: "1 gold pair"}
    ends = np.cumsum([0, *(len(json.dumps(row)) + 1 for row in rows)]).tolist()
    seen = set()
    for row, start in list(zip(rows, ends, strict=False))[11::15]:
        locator = f"{pairs.name}:{start}"
        try:
            found = look_up(storage, "url", locator)
        except InputError:
            assert row["prompt"] not in in_tables
            continue
        seen.add(side := in_tables.get(row["prompt"]))
        assert [holder.how for holder in found.holders] == [where[side]]
        assert look_up(storage, "id", document_id("conversation", locator).hex()).documents == found.documents
    assert seen == set(where)
    licensed = [len(look_up(storage, "license", name).documents) for name in ("CC-BY-NC-4.0", "CC0-1.0")]
    assert sum(licensed) == sum(made.figures["pairs"].values()) and min(licensed) > 100


def test_an_answer_given_with_and_without_a_worse_one_is_no_crash() -> None:
    config = AlignDataIdentity(align_data=AlignDataConfig(), reading=IngestIdentity.of((), IngestConfig()), split=SplitConfig())
    pairs = [Pair("p", "an answer", (), "g", rejected) for rejected in ("worse", None, "bad")]
    assert sum(map(len, _by_side(pairs, {}, config).values())) == 1
