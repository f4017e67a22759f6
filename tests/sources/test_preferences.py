"""Pairs and the negatives made of them."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

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


def _group(text: str) -> str:
    from sources.preferences import draw

    return f"prompt:{draw(text):016x}"
