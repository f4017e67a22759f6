"""Windows, exact Jaccard and character counts against their definitions in plain Python."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup.shingles import CHUNK, count_chars, jaccard_of_pairs, leading_power, text_buffers

sys.path.insert(0, str(Path(__file__).parent))
import itertools

from brute_force import jaccard, shingles

TEXTS = st.lists(st.text(alphabet="abé漢😀\0 ", max_size=12) | st.text(max_size=20), min_size=2, max_size=6)


def all_pairs(texts: list[str], ngram: int = 5) -> list[float]:
    left, right = (np.array(side) for side in zip(*[(i, j) for i in range(len(texts)) for j in range(len(texts))], strict=True))
    return jaccard_of_pairs(*text_buffers(pa.array(texts, pa.large_string())), left, right, ngram, leading_power(ngram)).tolist()


@settings(deadline=None)
@given(texts=TEXTS, ngram=st.integers(1, 6))
def test_jaccard_is_that_of_python_sets_of_windows(texts: list[str], ngram: int):
    assert all_pairs(texts, ngram) == [jaccard(shingles(a, ngram), shingles(b, ngram)) for a in texts for b in texts]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 5 * CHUNK), min_size=2, max_size=3))
def test_jaccard_holds_across_chunks_and_growing_tables(seed: int, sizes: list[int]):
    """Texts of several chunks, whose distinct windows outgrow the first table."""
    rng = np.random.default_rng(seed)
    whole = "".join(map(chr, rng.integers(0x4E00, 0x4E00 + int(rng.integers(2, 3000)), 6 * CHUNK)))
    texts = [whole[int(rng.integers(0, CHUNK)) :][:size] for size in sizes]
    assert all_pairs(texts) == [jaccard(shingles(a), shingles(b)) for a in texts for b in texts]


def test_a_table_serves_long_and_short_texts_in_turn():
    rng = np.random.default_rng(0)
    long = "".join(map(chr, rng.integers(0x4E00, 0x9000, 40_000)))
    texts = ["short", long, "short text", long[:30_000] + "short"]
    assert all_pairs(texts) == [jaccard(shingles(a), shingles(b)) for a in texts for b in texts]


@settings(deadline=None)
@given(texts=TEXTS)
def test_count_chars_counts_code_points(texts: list[str]):
    assert count_chars(*text_buffers(pa.array(texts, pa.large_string()))).tolist() == [len(text) for text in texts]


@settings(deadline=None)
@given(texts=TEXTS, start=st.integers(0, 5))
def test_buffers_of_a_slice_and_of_a_small_string_column_are_those_of_its_texts(texts: list[str], start: int):
    for column in (pa.array(texts, pa.large_string()), pa.array(texts, pa.string()), pa.chunked_array([texts[:2], texts[2:]], pa.string())):
        data, offsets = text_buffers(column.slice(start))
        assert [bytes(data[a:b]).decode() for a, b in itertools.pairwise(offsets)] == texts[start:]
