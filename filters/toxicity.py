"""Toxicity and NSFW: words of a documented lexicon in a thousand, and the probability of a learned classifier where one is set.

The lexicon is better-profanity's word list (0.7.0, MIT; English, sexual and insulting words, slurs). It finds words, not meaning:
an insult without such a word passes, and a medical text is spared only by `toxicity.exempt`.
"""

from functools import lru_cache
from importlib.resources import files
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.config import ToxicityConfig
from filters.language import predict
from filters.text import classes, find, hash_set, ngram_key, normalised, split_words, word_keys

SCHEMA = pa.schema(
    [("toxic_words", pa.int32()), ("words", pa.int32()), ("toxic_words_per_1000", pa.float32()), ("probability", pa.float32())]
)

LONGEST_PHRASE = 4
"""Words of the longest entry."""
MODEL_CHARS = 2000
"""How much of a document the classifier reads."""


def word_list() -> bytes:
    """The lexicon's file, as the package carries it."""
    return (files("better_profanity") / "profanity_wordlist.txt").read_bytes()


def lexicon(exempt: tuple[str, ...]) -> tuple[str, ...]:
    """The entries that are looked for, sorted.

    Left out: `exempt`, entries with capitals (a name, an abbreviation) and those written with marks (s.h.i.t.), as
    only whole words of letters and digits are compared.
    """
    spared = {word.lower() for word in exempt}
    lines = {line.strip() for line in word_list().decode().splitlines()} - spared
    return tuple(sorted(line for line in lines if line == line.lower() and line.replace("-", "").replace(" ", "").isalnum()))


def score(text: pa.ChunkedArray | pa.Array, model: Any, config: ToxicityConfig) -> pa.Table:
    """Occurrences of entries (a phrase counts as one), words, their density, and the classifier's probability or null."""
    data, offsets = normalised(text)
    counts = np.zeros((len(offsets) - 1, 2), np.int32)
    _count(data, offsets, classes(), *_tables(config.exempt), counts)
    density = 1000 * counts[:, 0] / np.maximum(1, counts[:, 1])
    learned = pa.nulls(len(counts), pa.float32()) if model is None else pa.array(_learned(text, model, config), pa.float32())
    return pa.table([pa.array(counts[:, 0]), pa.array(counts[:, 1]), pa.array(density.astype(np.float32)), learned], SCHEMA)


def _learned(text: pa.ChunkedArray | pa.Array, model: Any, config: ToxicityConfig) -> list[float]:
    head = pc.utf8_slice_codeunits(pc.cast(text, pa.large_string()), 0, MODEL_CHARS)
    labels, probabilities = predict(head, model, k=-1)
    toxic = set(config.labels)
    rows = zip(labels, probabilities, strict=True)
    return [min(1.0, sum(p for name, p in zip(names, values, strict=True) if name in toxic)) for names, values in rows]


@lru_cache(maxsize=4)
def _tables(exempt: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Hash sets: of all entries by their words, and of the words that an entry begins with."""
    entries = [word_keys(entry) for entry in lexicon(exempt)]
    assert max(map(len, entries)) <= LONGEST_PHRASE
    whole = np.array([ngram_key(keys, 0, len(keys)) for keys in entries], np.uint64)
    return hash_set(whole), hash_set(np.array([keys[0] for keys in entries], np.uint64))


@numba.njit(nogil=True, cache=True)
def _count(data, offsets, classes, entries, first_words, counts):  # type: ignore[no-untyped-def]
    """Fill counts (n, 2): entries found, the longest first and none inside another; words."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    keys = np.empty(longest // 2 + 1, np.uint64)
    begins, ends = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
    for row in range(len(offsets) - 1):
        num_words = split_words(data, offsets[row], offsets[row + 1], classes, keys, begins, ends)
        hits = i = 0
        while i < num_words:
            taken = 0
            if find(first_words, keys[i]) >= 0:
                for n in range(min(LONGEST_PHRASE, num_words - i), 0, -1):
                    if find(entries, ngram_key(keys, i, n)) >= 0:
                        taken = n
                        break
            hits += taken > 0
            i += max(1, taken)
        counts[row, 0], counts[row, 1] = hits, num_words
