"""Character n-grams of texts as 64-bit hashes, straight from Arrow's UTF-8 buffers, and the exact Jaccard similarity of two texts.

The shingles of a text are its windows of `ngram` code points as they stand: nothing is lowered, trimmed or normalised. A
text with fewer code points, the empty one too, has one shingle: itself. A window is known by a 64-bit polynomial hash, so
"exact" means: but for a collision, under 1e-11 for two texts of ten thousand windows.
"""

import numba
import numpy as np
import pyarrow as pa

BASE = np.uint64(0x9E3779B97F4A7C15)
SHORT = np.uint64(0xD1B54A32D192ED03)  # keeps texts shorter than a window apart from each other and from windows
CHUNK = 1024  # windows hashed before they are used: 8 kB, which stays in the first cache

Buffers = tuple[np.ndarray, np.ndarray]


def text_buffers(texts: pa.Array | pa.ChunkedArray) -> Buffers:
    """UTF-8 bytes and (n + 1) byte offsets of a string column without nulls; no copy when it is one large_string chunk."""
    column = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    column = column.cast(pa.large_string()) if column.type != pa.large_string() else column
    assert column.null_count == 0
    if len(column) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int64, count=len(column) + 1, offset=column.offset * 8)
    return (np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)), starts


def leading_power(ngram: int) -> np.uint64:
    """The weight of a window's first code point, which leaves when the window slides on."""
    return np.uint64(pow(int(BASE), ngram - 1, 2**64))


@numba.njit(nogil=True, cache=True)
def mix(value: np.uint64) -> np.uint64:
    """MurmurHash3's 64-bit finaliser: every bit of the polynomial reaches every bit of the result."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@numba.njit(nogil=True, cache=True)
def code_point(data: np.ndarray, at: int) -> tuple[np.uint64, int]:
    """The code point that starts at byte `at` of valid UTF-8, and the byte after it."""
    lead = data[at]
    if lead < 0x80:
        return np.uint64(lead), at + 1
    if lead < 0xE0:
        return np.uint64((lead & 0x1F) << 6 | (data[at + 1] & 0x3F)), at + 2
    if lead < 0xF0:
        return np.uint64((lead & 0x0F) << 12 | (data[at + 1] & 0x3F) << 6 | (data[at + 2] & 0x3F)), at + 3
    high = (lead & 0x07) << 18 | (data[at + 1] & 0x3F) << 12
    return np.uint64(high | (data[at + 2] & 0x3F) << 6 | (data[at + 3] & 0x3F)), at + 4


@numba.njit(nogil=True, cache=True)
def first_window(data: np.ndarray, start: int, end: int, ngram: int) -> tuple[np.uint64, int]:
    """The hash of the first window, or of the whole of a shorter text, and the byte after it."""
    value, at, points = np.uint64(0), start, 0
    while at < end and points < ngram:
        point, at = code_point(data, at)
        value = value * BASE + point
        points += 1
    if points < ngram:
        value += SHORT * np.uint64(points + 1)
    return value, at


@numba.njit(nogil=True, cache=True)
def next_windows(
    data: np.ndarray, tail: int, head: int, end: int, value: np.uint64, power: np.uint64, out: np.ndarray
) -> tuple[int, int, int, np.uint64]:
    """Slide the window data[tail:head] on until the text ends or `out` is full: (windows written, tail, head, last hash)."""
    written = 0
    while head < end and written < out.size:
        old, tail = code_point(data, tail)
        new, head = code_point(data, head)
        value = (value - old * power) * BASE + new
        out[written] = value
        written += 1
    return written, tail, head, value


@numba.njit(nogil=True, cache=True)
def count_chars(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Code points of every text: its bytes that do not continue one."""
    counts = np.zeros(offsets.size - 1, np.int64)
    for text in range(counts.size):
        for at in range(offsets[text], offsets[text + 1]):
            counts[text] += (data[at] & 0xC0) != 0x80
    return counts


@numba.njit(nogil=True, cache=True)
def _mark(
    data: np.ndarray,
    start: int,
    end: int,
    second: bool,
    ngram: int,
    power: np.uint64,
    keys: np.ndarray,
    stamps: np.ndarray,
    mask: np.uint64,
    epoch: int,
    chunk: np.ndarray,
) -> tuple[int, int]:
    """Enter a text's windows into the table of this epoch: (those it did not hold, those of the first text met again).

    A slot counts only when its stamp is of this epoch (2 * epoch: seen in the first text alone), so nothing is ever cleared.
    Returns (-1, 0) when the table would be more than half full.
    """
    new, shared, stamp, most = 0, 0, 2 * epoch + second, int(mask >> np.uint64(1)) // 2
    chunk[0], head = first_window(data, start, end, ngram)
    value, tail, written = chunk[0], start, 1
    while written:
        for i in range(written):
            slot = mix(chunk[i]) & mask
            while stamps[slot] >> 1 == epoch and keys[slot] != chunk[i]:
                slot = (slot + np.uint64(1)) & mask
            if stamps[slot] >> 1 != epoch:
                if new > most:
                    return -1, 0
                keys[slot], stamps[slot] = chunk[i], stamp
                new += 1
            elif second and stamps[slot] == 2 * epoch:
                stamps[slot] = stamp
                shared += 1
        written, tail, head, value = next_windows(data, tail, head, end, value, power, chunk)
    return new, shared


@numba.njit(nogil=True, cache=True)
def new_table() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Room for jaccard(): keys, stamps, the last epoch, and one chunk of windows."""
    return np.zeros(1 << 12, np.uint64), np.zeros(1 << 12, np.int64), np.zeros(1, np.int64), np.zeros(CHUNK, np.uint64)


@numba.njit(nogil=True, cache=True)
def jaccard(data: np.ndarray, offsets: np.ndarray, a: int, b: int, ngram: int, power: np.uint64, table: tuple) -> tuple[float, tuple]:
    """Exact Jaccard similarity of the shingle sets of texts a and b, and the table, which grows with their distinct windows.

    O(bytes of both) time; 32 bytes a distinct window at most, however long the texts are.
    """
    keys, stamps, epoch, chunk = table
    bytes_of_both = offsets[a + 1] - offsets[a] + offsets[b + 1] - offsets[b]
    size = 64
    while size < 4 * bytes_of_both and size < 1 << 16:
        size *= 2
    while True:
        if size > keys.size:
            keys, stamps = np.zeros(size, np.uint64), np.zeros(size, np.int64)
        epoch[0] += 1
        mask = np.uint64(size - 1)
        first, _ = _mark(data, offsets[a], offsets[a + 1], False, ngram, power, keys, stamps, mask, epoch[0], chunk)
        if first >= 0:
            only_second, shared = _mark(data, offsets[b], offsets[b + 1], True, ngram, power, keys, stamps, mask, epoch[0], chunk)
            if only_second >= 0:
                return shared / (first + only_second), (keys, stamps, epoch, chunk)
        size *= 4


@numba.njit(nogil=True, cache=True)
def jaccard_of_pairs(
    data: np.ndarray, offsets: np.ndarray, left: np.ndarray, right: np.ndarray, ngram: int, power: np.uint64
) -> np.ndarray:
    """Exact Jaccard similarity of texts left[i] and right[i], for every i."""
    similarities, table = np.empty(left.size, np.float64), new_table()
    for i in range(left.size):
        similarities[i], table = jaccard(data, offsets, left[i], right[i], ngram, power, table)
    return similarities
