"""Text as kernels see it: an Arrow column's own bytes, decoded in the loop, with a table of what each code point is.

A word here is a run of letters, digits and marks, in lower case (`normalised`); rules.py has words in the sense of white space.
"""

import unicodedata
from functools import lru_cache

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

OTHER, SPACE, LETTER, DIGIT, MARK, PUNCTUATION = range(6)
"""Classes of code points. Symbols (+, $, ©) count as punctuation; a mark belongs to the letter before it."""

_CLASS_OF = {"L": LETTER, "N": DIGIT, "M": MARK, "P": PUNCTUATION, "S": PUNCTUATION, "Z": SPACE}

EMPTY = np.uint64(0)
"""The key of a free slot in a hash set; `mix` never makes a key of it."""


_ASSIGNED = (range(0x40000), range(0xE0000, 0xE1000))
"""Planes 4 to 13 are empty, 15 and 16 are for private use: all of them OTHER."""


@lru_cache(maxsize=1)
def classes() -> np.ndarray:
    """(0x110000,) uint8: the class of every code point (Python's Unicode tables)."""
    table = np.full(0x110000, OTHER, np.uint8)
    for codes in _ASSIGNED:
        table[codes.start : codes.stop] = [_CLASS_OF.get(unicodedata.category(chr(code))[0], OTHER) for code in codes]
    table[[*b"\t\n\v\f\r\x1c\x1d\x1e\x1f", 0x85]] = SPACE
    return table


def buffers(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of a text column and the (n + 1,) int64 offsets of its rows, without a copy where it is one chunk.

    The column holds no nulls.
    """
    array = pc.cast(column, pa.large_string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    _, offsets, data = array.buffers()
    rows = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8) if offsets else np.zeros(1, np.int64)
    return np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), rows


def normalised(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """`buffers` of the text in lower case. Code points keep their places (the simple case mapping is one to one)."""
    return buffers(pc.utf8_lower(pc.cast(column, pa.large_string())))


@numba.njit(nogil=True, cache=True, inline="always")
def decode(data, i):  # type: ignore[no-untyped-def]
    """The code point that starts at byte i of valid UTF-8, and its width."""
    b = np.uint32(data[i])
    if b < 0x80:
        return b, 1
    if b < 0xE0:
        return ((b & 0x1F) << 6) | (data[i + 1] & 0x3F), 2
    if b < 0xF0:
        return ((b & 0x0F) << 12) | (np.uint32(data[i + 1] & 0x3F) << 6) | (data[i + 2] & 0x3F), 3
    return ((b & 0x07) << 18) | (np.uint32(data[i + 1] & 0x3F) << 12) | (np.uint32(data[i + 2] & 0x3F) << 6) | (data[i + 3] & 0x3F), 4


@numba.njit(nogil=True, cache=True, inline="always")
def mix(h):  # type: ignore[no-untyped-def]
    """splitmix64's finaliser, never 0: equal inputs give equal keys, others differ but for 1 in 2**64."""
    h = np.uint64(h)
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h if h != np.uint64(0) else np.uint64(1)


@numba.njit(nogil=True, cache=True, inline="always")
def step(h, code):  # type: ignore[no-untyped-def]
    """FNV-1a over code points."""
    return (np.uint64(h) ^ np.uint64(code)) * np.uint64(0x100000001B3)


@numba.njit(nogil=True, cache=True)
def split_words(data, start, stop, classes, keys, begins, ends):  # type: ignore[no-untyped-def]
    """The words in data[start:stop], which holds at most len(keys) of them.

    Fills keys (uint64) with a hash of each, begins and ends (int32) with its code points, half-open; returns their number.
    """
    count, place, i = 0, 0, start
    inside, h = False, np.uint64(0xCBF29CE484222325)
    while i < stop:
        code, width = decode(data, i)
        kind = classes[code]
        if kind in (LETTER, DIGIT) or (kind == MARK and inside):
            if not inside:
                begins[count], inside, h = place, True, np.uint64(0xCBF29CE484222325)
            h = step(h, code)
        elif inside:
            keys[count], ends[count], inside = mix(h), place, False
            count += 1
        i += width
        place += 1
    if inside:
        keys[count], ends[count] = mix(h), place
        count += 1
    return count


@numba.njit(nogil=True, cache=True, inline="always")
def ngram_key(keys, i, n):  # type: ignore[no-untyped-def]
    """One key of the n words from i."""
    h = np.uint64(n)
    for j in range(i, i + n):
        h = h * np.uint64(0x9E3779B97F4A7C15) + keys[j]
    return mix(h)


@numba.njit(nogil=True, cache=True, inline="always")
def find(table, key):  # type: ignore[no-untyped-def]
    """The slot of `key` in an open-addressed table (a power of two long, not full), or -1."""
    mask = np.uint64(len(table) - 1)
    slot = key & mask
    while table[slot] != np.uint64(0):
        if table[slot] == key:
            return np.int64(slot)
        slot = (slot + np.uint64(1)) & mask
    return np.int64(-1)


@numba.njit(nogil=True, cache=True)
def _fill(table, keys):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(table) - 1)
    for key in keys:
        slot = key & mask
        while table[slot] != np.uint64(0) and table[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = key


def hash_set(keys: np.ndarray) -> np.ndarray:
    """An open-addressed table of uint64 keys (none 0), at most half full, for `find`."""
    table = np.zeros(1 << max(3, int(2 * len(keys)).bit_length()), np.uint64)
    _fill(table, keys.astype(np.uint64))
    return table


def word_keys(text: str) -> np.ndarray:
    """The keys of one text's words, by the same kernel that reads documents."""
    data, offsets = normalised(pa.array([text], pa.large_string()))
    room = max(1, len(text))
    keys, places = np.empty(room, np.uint64), np.empty((2, room), np.int32)
    count = split_words(data, offsets[0], offsets[1], classes(), keys, places[0], places[1])
    return keys[:count]
