"""Overlap with the items that will be scored: runs of `ngram_words` words (13, as GPT-3) that a document shares with an item.

Words are runs of letters, digits and marks in lower case, so punctuation and spacing hide nothing. Every shared run is cut;
`overlap_fraction` says how much of the document that is, without the runs that so many documents hold that they are
boilerplate (a licence, a banner): those say nothing about an item having leaked. Keys are 64 bits wide: among 10**5 runs of
items and 10**9 words, a run is taken for another once in 10**5 corpora.
"""

import numba
import numpy as np
import pyarrow as pa

from contract.schemas import SPANS
from filters.text import classes, find, hash_set, ngram_key, normalised, split_words

SCHEMA = pa.schema([("spans", SPANS), ("overlap_words", pa.int32()), ("overlap_fraction", pa.float32())])
LABEL = "contamination"


def item_texts(items: pa.Table) -> pa.Array:
    """What a model sees of the items: each context with each of its choices behind it."""
    rows = zip(items["context"].to_pylist(), items["choices"].to_pylist(), strict=True)
    return pa.array([f"{context} {choice}" for context, choices in rows for choice in choices or [""]], pa.large_string())


def ngrams(texts: pa.ChunkedArray | pa.Array, n: int) -> np.ndarray:
    """The sorted distinct keys (uint64) of all runs of n words."""
    data, offsets = normalised(texts)
    return np.unique(_all_ngrams(data, offsets, classes(), n))


@numba.njit(nogil=True, cache=True)
def _scratch(offsets):  # type: ignore[no-untyped-def]
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    room = longest // 2 + 1
    return np.empty(room, np.uint64), np.empty(room, np.int32), np.empty(room, np.int32)


@numba.njit(nogil=True, cache=True)
def _all_ngrams(data, offsets, classes, n):  # type: ignore[no-untyped-def]
    """(m,) uint64: the key of every run of n words of every text."""
    keys, begins, ends = _scratch(offsets)
    out, used = np.empty(len(data) // 2 + 1, np.uint64), 0
    for row in range(len(offsets) - 1):
        for i in range(split_words(data, offsets[row], offsets[row + 1], classes, keys, begins, ends) - n + 1):
            out[used] = ngram_key(keys, i, n)
            used += 1
    return out[:used]


def occurrences(text: pa.ChunkedArray | pa.Array, keys: np.ndarray, n: int) -> np.ndarray:
    """In how many of the texts each item run of `keys` (sorted) occurs."""
    data, offsets = normalised(text)
    table = hash_set(keys)
    slots = _occurrences(data, offsets, classes(), table, n)
    used = table != 0
    counts = np.zeros(len(keys), np.int64)
    counts[np.searchsorted(keys, table[used])] = slots[used]
    return counts


@numba.njit(nogil=True, cache=True)
def _occurrences(data, offsets, classes, table, n):  # type: ignore[no-untyped-def]
    keys, begins, ends = _scratch(offsets)
    counts, last = np.zeros(len(table), np.int64), np.full(len(table), -1, np.int64)
    for row in range(len(offsets) - 1):
        for i in range(split_words(data, offsets[row], offsets[row + 1], classes, keys, begins, ends) - n + 1):
            slot = find(table, ngram_key(keys, i, n))
            if slot >= 0 and last[slot] != row:
                counts[slot] += 1
                last[slot] = row
    return counts


def score(text: pa.ChunkedArray | pa.Array, keys: np.ndarray, boilerplate: np.ndarray, n: int) -> pa.Table:
    """Spans to cut of each text, the words in them that are no boilerplate, and their share of its words.

    keys: sorted runs of the items; boilerplate: those of them that do not count. A cut may bring two halves of a run
    together: cutting goes on until what is left holds none, so that no run of an item survives in a text that is kept.
    """
    data, offsets = normalised(text)
    counts, words, starts, ends = _score(data, offsets, classes(), hash_set(keys), hash_set(boilerplate), n)
    bounds = np.concatenate([[0], np.cumsum(counts[:, 0])]).astype(np.int32)
    labels = pa.array(np.full(len(starts), LABEL, object), pa.string())
    struct = pa.StructArray.from_arrays([pa.array(starts), pa.array(ends), labels], fields=list(SPANS.value_type))
    spans = pa.ListArray.from_arrays(pa.array(bounds), struct).cast(SPANS)
    share = (counts[:, 1] / np.maximum(1, words)).astype(np.float32)
    return pa.table([spans, pa.array(counts[:, 1]), pa.array(share)], SCHEMA)


@numba.njit(nogil=True, cache=True)
def _score(data, offsets, classes, table, boilerplate, n):  # type: ignore[no-untyped-def]
    """Per text: spans and counted words (rows, 2), words (rows,); of all spans, their starts and ends."""
    keys, begins, ends = _scratch(offsets)
    left, left_keys = np.empty(len(keys), np.int32), np.empty(len(keys), np.uint64)
    cut, counted = np.empty(len(keys), np.bool_), np.empty(len(keys), np.bool_)
    counts, words = np.zeros((len(offsets) - 1, 2), np.int32), np.zeros(len(offsets) - 1, np.int32)
    starts, stops = [np.int32(0) for _ in range(0)], [np.int32(0) for _ in range(0)]
    for row in range(len(offsets) - 1):
        num_words = split_words(data, offsets[row], offsets[row + 1], classes, keys, begins, ends)
        words[row] = num_words
        cut[:num_words], counted[:num_words] = False, False
        again = True
        while again:
            again, num_left = False, 0
            for i in range(num_words):
                if not cut[i]:
                    left[num_left], left_keys[num_left] = i, keys[i]
                    num_left += 1
            for i in range(num_left - n + 1):
                key = ngram_key(left_keys, i, n)
                if find(table, key) < 0:
                    continue
                again = True
                counts_here = find(boilerplate, key) < 0
                for j in range(i, i + n):
                    cut[left[j]] = True
                    counted[left[j]] |= counts_here
        inside = False
        for i in range(num_words):
            if cut[i] and not inside:
                starts.append(begins[i])
                counts[row, 0] += 1
            if inside and not cut[i]:
                stops.append(ends[i - 1])
            inside = cut[i]
            counts[row, 1] += counted[i]
        if inside:
            stops.append(ends[num_words - 1])
    return counts, words, np.array(starts, dtype=np.int32), np.array(stops, dtype=np.int32)
