"""Baselines against their definitions in plain Python."""

import gzip
import math
import shutil
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import StageFailed
from evaluation.baselines import (
    bigram,
    bits_per_byte,
    block_pairs,
    document_nats,
    gzip_bits_per_byte,
    kenlm_document_nats,
    train_kenlm,
)

V = 7
STREAM = st.lists(st.integers(0, V - 1), min_size=2, max_size=60)


def probability(stream: list[int], v: int, w: int) -> float:
    """Interpolated absolute discounting, word for word from its formula."""

    def discount(counts: Counter) -> float:
        n1, n2 = (sum(count == k for count in counts.values()) for k in (1, 2))
        return n1 / (n1 + 2 * n2) if n1 and n2 else 0.5

    pairs, words = Counter(pairwise(stream)), Counter(stream[1:])
    d1, d2 = discount(words), discount(pairs)
    n = sum(words.values())
    unigram = max(words[w] - d1, 0) / n + d1 * len(words) / n / V
    c = sum(count for (a, _), count in pairs.items() if a == v)
    types = len([1 for (a, _) in pairs if a == v])
    return unigram if c == 0 else max(pairs[v, w] - d2, 0) / c + d2 * types / c * unigram


@settings(deadline=None)
@given(stream=STREAM)
def test_the_bigram_is_its_formula_and_sums_to_one_after_every_token(stream: list[int]) -> None:
    ids = np.array(stream)
    model = bigram(ids[:-1], ids[1:], V)
    for v in range(V):
        got = np.exp(-model.nats(np.full(V, v), np.arange(V)))
        assert got == pytest.approx([probability(stream, v, w) for w in range(V)])
        assert got.sum() == pytest.approx(1)


@settings(deadline=None)
@given(stream=STREAM, documents=st.lists(st.lists(st.integers(1, V - 1), max_size=8), max_size=5))
def test_documents_pay_for_their_end_token_and_start_after_one(stream: list[int], documents: list[list[int]]) -> None:
    ids = np.array(stream)
    got = document_nats(bigram(ids[:-1], ids[1:], V), [np.array([*words, 0], np.uint32) for words in documents], end_id=0)
    want = [-sum(math.log(probability(stream, v, w)) for v, w in zip([0, *words], [*words, 0], strict=True)) for words in documents]
    assert got.tolist() == pytest.approx(want)


def test_pairs_of_blocks_are_the_targets_and_none_across_blocks() -> None:
    previous, current = block_pairs(np.array([[1, 2, 3], [4, 5, 6]]))
    assert list(zip(previous.tolist(), current.tolist(), strict=True)) == [(1, 2), (2, 3), (4, 5), (5, 6)]


def test_gzip_is_the_programs_own_size_over_the_bytes_of_the_text() -> None:
    texts = ["Call me Ishmael. " * 30, "été " * 50, ""]
    packed = gzip.compress(b"".join(text.encode() + b"\0" for text in texts), 9)
    assert gzip_bits_per_byte(texts) == pytest.approx(8 * len(packed) / sum(len(text.encode()) for text in texts))


def test_a_uniform_byte_costs_eight_bits() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)


def tool(name: str) -> Path:
    found = shutil.which(name, path=f"{Path(sys.prefix, 'bin')}:{sys.path[0]}") or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not built; `make setup` builds it")
    return Path(found)


@pytest.fixture(scope="module")
def blocks() -> np.ndarray:
    """300 blocks of a language where 3 follows 2 often; 9 never occurs."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 9, (300, 12))
    rows[:, 1:][rows[:, :-1] == 2] = 3
    return rows


@pytest.fixture(scope="module")
def binary(blocks: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_kenlm(blocks, 3, tool("lmplz"), tool("build_binary"), tmp_path_factory.mktemp("kenlm"), memory="64M")


def test_the_n_gram_sums_to_one_over_the_ids_in_any_context(binary: Path) -> None:
    for context in ([], [2], [5, 2], [9], [0, 0, 9]):
        before = kenlm_document_nats(binary, [np.array(context)], 0, 12)[0]
        after = kenlm_document_nats(binary, [np.array([*context, w]) for w in range(12)], 0, 12)
        assert np.exp(before - after).sum() == pytest.approx(1, abs=1e-4)


def test_the_n_gram_has_learned_its_language_and_ids_never_seen_cost_more(binary: Path) -> None:
    three, four, never = kenlm_document_nats(binary, [np.array([5, 2, w]) for w in (3, 4, 9)], 0, 12)
    assert three + 1 < four < never


def test_a_tool_that_fails_is_named_with_its_message(blocks: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="lmplz ended with"):
        train_kenlm(blocks, 3, tool("lmplz"), tool("build_binary"), tmp_path, memory="nonsense")
