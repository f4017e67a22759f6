"""MinHash signatures of texts, and the band keys under which similar ones meet.

One 32-bit mix of each window, then a * x + b mod 2**32 with odd a, and the minimum for each permutation.
"""

import hashlib
import itertools

import numba
import numpy as np
import pyarrow as pa

from dedup.config import DeduplicateConfig
from dedup.shingles import CHUNK, Buffers, first_window, leading_power, mix, next_windows

DIGEST_BYTES = 16
RECENT = 1 << 13  # windows remembered so that a repeated one is not hashed again: 64 kB, inside the second cache


def permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` odd multipliers and addends below 2**32, from SplitMix64: fixed by its definition, where NumPy's streams may change."""
    drawn, state = [], seed
    for _ in range(2 * count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        value = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        drawn.append((value ^ value >> 31) >> 32)
    return np.array(drawn[:count], np.uint32) | np.uint32(1), np.array(drawn[count:], np.uint32)


@numba.njit(nogil=True, cache=True)
def min_hash(windows: np.ndarray, mul: np.ndarray, add: np.ndarray, signature: np.ndarray) -> None:
    """Lower `signature` to the minimum over windows of (mul[j] * window + add[j]) mod 2**32, for each j.

    windows: (n,) uint32 window hashes; mul (odd), add, signature: (k,) uint32. O(n * k) time, no memory: the (n, k) table is
    never built. The windows run in the inner loop, so that a chunk of them stays in cache and nothing is stored.
    """
    for j in range(signature.size):
        a, b, least = mul[j], add[j], signature[j]
        for i in range(windows.size):
            value = np.uint32(a * windows[i] + b)
            least = value if value < least else least
        signature[j] = least


@numba.njit(nogil=True, cache=True)
def _sign(
    data: np.ndarray, offsets: np.ndarray, rows: np.ndarray, mul: np.ndarray, add: np.ndarray, ngram: int, power: np.uint64
) -> np.ndarray:
    signatures = np.full((rows.size, mul.size), 0xFFFFFFFF, np.uint32)
    chunk, windows, recent = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.uint32), np.zeros(RECENT, np.uint64)
    for row in range(rows.size):
        tail, end = offsets[rows[row]], offsets[rows[row] + 1]
        chunk[0], head = first_window(data, tail, end, ngram)
        value, written = chunk[0], 1
        while written:
            fresh = 0
            for i in range(written):
                window = mix(chunk[i]) >> np.uint64(32)
                slot, entry = window & np.uint64(RECENT - 1), np.uint64(row + 1) << np.uint64(32) | window
                if recent[slot] != entry:  # the minimum does not change by a window that was there before
                    recent[slot] = entry
                    windows[fresh] = np.uint32(window)
                    fresh += 1
            min_hash(windows[:fresh], mul, add, signatures[row])
            written, tail, head, value = next_windows(data, tail, head, end, value, power, chunk)
    return signatures


def sign(texts: Buffers, config: DeduplicateConfig, rows: np.ndarray | None = None) -> np.ndarray:
    """(rows, permutations) uint32 MinHash signatures of the texts `rows`, all of them when None."""
    data, offsets = texts
    mul, add = permutations(config.num_permutations, config.seed)
    chosen = np.arange(offsets.size - 1) if rows is None else rows
    return _sign(data, offsets, chosen, mul, add, config.ngram_chars, leading_power(config.ngram_chars))


@numba.njit(nogil=True, cache=True)
def band_keys(signatures: np.ndarray, num_bands: int) -> np.ndarray:
    """(rows, num_bands) uint64: equal for two rows whose signatures agree in that band; unequal ones meet by chance alone."""
    rows_per_band = signatures.shape[1] // num_bands
    keys = np.empty((signatures.shape[0], num_bands), np.uint64)
    for row in range(signatures.shape[0]):
        for band in range(num_bands):
            key = mix(np.uint64(band + 1))
            for i in range(band * rows_per_band, (band + 1) * rows_per_band):
                key = mix(key ^ np.uint64(signatures[row, i]))
            keys[row, band] = key
    return keys


def content_digests(texts: Buffers) -> pa.Array:
    """BLAKE2b-128 of the UTF-8 bytes of every text: what makes two texts exactly equal."""
    data, offsets = texts
    whole, places = memoryview(data.data), offsets.tolist()
    digests = (hashlib.blake2b(whole[a:b], digest_size=DIGEST_BYTES).digest() for a, b in itertools.pairwise(places))
    return pa.array(digests, pa.binary(DIGEST_BYTES))
