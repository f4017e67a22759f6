"""Oracle: sets of word tuples in plain Python."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.contamination import item_texts, ngrams, occurrences, score
from filters.materialise import edit, plan

NONE = np.zeros(0, np.uint64)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def cut(text: str, spans: list[dict]) -> str:
    return edit(text, plan([], spans))


TEXT = st.lists(st.sampled_from(["a", "b", "Cé", "d1", "-", "..", "\n", "中"]), max_size=30).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3))
def test_what_is_left_holds_no_run_of_an_item_and_nothing_else_is_lost(items, texts):
    n = 4
    wanted = set().union(*(grams(item, n) for item in items)) if items else set()
    rows = score(column(texts), ngrams(column(items), n), NONE, n).to_pylist()
    for text, row in zip(texts, rows, strict=True):
        left = cut(text, row["spans"])
        assert not grams(left, n) & wanted
        assert row["overlap_words"] == len(words(text)) - len(words(left))
        assert row["overlap_fraction"] == pytest.approx(row["overlap_words"] / max(1, len(words(text))))
        if not grams(text, n) & wanted:
            assert left == text


@settings(max_examples=80, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=3), st.lists(TEXT, max_size=5))
def test_occurrences_count_texts(items, texts):
    n = 3
    keys = ngrams(column(items), n)
    counts = occurrences(column(texts), keys, n)
    wanted = set().union(*(grams(item, n) for item in items))
    assert len(keys) == len(wanted)
    assert sorted(counts.tolist()) == sorted(sum(gram in grams(text, n) for text in texts) for gram in wanted)


def test_a_run_is_found_through_case_punctuation_and_accents():
    item = "The quick, brown fox — ÉTÉ 1999 — jumps over the lazy dog and runs"
    text = "So: THE QUICK brown\nfox été 1999 jumps (over) the lazy dog and runs. End."
    row = score(column([text]), ngrams(column([item]), 13), NONE, 13).to_pylist()[0]
    assert cut(text, row["spans"]) == "So: . End."
    assert row["spans"][0]["label"] == "contamination"


def test_twelve_words_are_no_overlap():
    item = " ".join(f"w{i}" for i in range(13))
    text = " ".join(f"w{i}" for i in range(12)) + " other"
    assert score(column([text]), ngrams(column([item]), 13), NONE, 13).to_pylist()[0]["spans"] == []


def test_boilerplate_is_cut_and_does_not_count():
    licence, leak = (" ".join(f"{c}{i}" for i in range(13)) for c in "ab")
    items = ngrams(column([licence, leak]), 13)
    boilerplate = ngrams(column([licence]), 13)
    rows = score(column([f"own {licence}", f"own words {leak}"]), items, boilerplate, 13).to_pylist()
    assert [row["overlap_words"] for row in rows] == [0, 13]
    assert [len(row["spans"]) for row in rows] == [1, 1]


def test_a_run_that_a_cut_brings_together_goes_too():
    item, other = ("a b c d", "p q r s")
    text = "x a b p q r s c d y"
    row = score(column([text]), ngrams(column([item, other]), 4), NONE, 4).to_pylist()[0]
    assert words(cut(text, row["spans"])) == ["x", "y"]


def test_context_and_choice_are_one_text():
    items = pa.table({"context": ["one two", "alone"], "choices": pa.array([["three", "four"], []], pa.list_(pa.string()))})
    assert item_texts(items).to_pylist() == ["one two three", "one two four", "alone "]
