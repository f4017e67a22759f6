"""Pairs and the negatives made of them."""

import io
import json
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.config import IngestConfig, Source
from sources.files import SourceFile
from sources.formats import read
from sources.preferences import DAMAGED, GIVEN, OTHER, SHUFFLED, Pair, negatives, pair_of
from sources.rows import Document

answer = st.lists(st.text("abcdef", min_size=1, max_size=5), min_size=4, max_size=20).map(" ".join)


def pairs(answers: list[str]) -> list[Pair]:
    return [Pair(f"q{i}", text, (), "g") for i, text in enumerate(answers)]


@settings(max_examples=60, deadline=None)
@given(st.lists(answer, min_size=2, max_size=12, unique=True), st.integers(0, 9))
def test_each_negative_is_what_its_kind_says(answers: list[str], seed: int) -> None:
    for made in negatives(pairs(answers), 3, seed):
        assert made.rejected != made.chosen and made.rejected.strip()
        if made.kind == SHUFFLED:
            assert Counter(made.rejected.split()) == Counter(made.chosen.split())
        elif made.kind == OTHER:
            assert made.rejected in answers
        else:
            words, worse = made.chosen.split(), made.rejected.split()
            assert made.kind == DAMAGED and set(worse) <= set(words)
            assert words[: len(worse)] == worse if len(worse) < len(words) else len(worse) > len(words)


def test_lengths_tell_nothing_by_kind() -> None:
    rng = np.random.default_rng(0)
    made = negatives(pairs([" ".join(f"w{rng.integers(999)}" for _ in range(rng.integers(4, 40))) for _ in range(2000)]), 3, 1)
    for kind in (OTHER, SHUFFLED, DAMAGED):
        chosen, rejected = (np.mean([len(getattr(m, side).split()) for m in made if m.kind == kind]) for side in ("chosen", "rejected"))
        assert abs(rejected / chosen - 1) < 0.03  # three standard errors of the mean change of kind DAMAGED


def test_the_same_pairs_give_the_same_negatives_wherever_they_stand() -> None:
    texts = [f"one two three four five {i} {i * i}" for i in range(20)]
    ours, reversed_ = negatives(pairs(texts), 3, 1), negatives(pairs(texts)[::-1], 3, 1)
    assert sorted(ours) == sorted(reversed_)


def test_given_dialogues_are_cut_at_the_last_answer() -> None:
    chosen = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Help?\n\nAssistant: Sure, with what?"
    rejected = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Help?\n\nAssistant: No."
    pair = pair_of(Document("l", chosen, extra={"rejected": rejected}))
    assert pair is not None and pair.prompt == chosen[: -len(" Sure, with what?")]
    assert (pair.response, pair.rejected) == (" Sure, with what?", " No.")
    assert negatives([pair], 3, 1)[0].kind == GIVEN
    other = pair_of(Document("m", "\n\nHuman: Hi\n\nAssistant: Other", extra={"rejected": "\n\nHuman: Hi\n\nAssistant: No"}))
    assert other is not None and other.group == pair.group  # the same first turn stays on one side
    assert pair_of(Document("n", "no turns", extra={"rejected": "none"})) is None
    assert pair_of(Document("o", "an answer", extra={"prompt": "why"})) == Pair("why", "an answer", (), other.group[:0] + _group("why"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
turns = st.lists(st.sampled_from(["\n\nHuman:", "\n\nAssistant:", " a", " ", "\0", "\U0001f600 b"]), max_size=6).map("".join)
named = st.sampled_from(["chosen", "rejected", "prompt", "response", "names", "group", "other"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(named, turns | json_values, max_size=6), max_size=4), st.sampled_from(["chosen", "response"]))
def test_any_records_give_pairs_or_none_and_negatives_of_them(records: list[dict], field: str) -> None:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    source = Source(uri="x", domain="conversation", text_field=field, group_field="group")
    rows = list(read(SourceFile("f", "jsonl", len(data), "f"), source, IngestConfig(), io.BytesIO(data)))
    found = [pair for row in rows if isinstance(row, Document) and (pair := pair_of(row)) is not None]
    for made in negatives(found, 3, 1):
        assert (made.kind == GIVEN or made.rejected != made.chosen) and f"{made.prompt}{made.chosen}{made.rejected}{made.group}".encode()


def _group(text: str) -> str:
    from sources.preferences import draw

    return f"prompt:{draw(text):016x}"
