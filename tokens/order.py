"""Orders that are a pure function of (seed, document id): no generator state, so parts, workers and restarts cannot change them."""

import hashlib

import numpy as np
import pyarrow as pa

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) over uint64, modulo 2**64."""
    x = (x + _GOLDEN).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def id_words(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """16-byte ids as (n, 2) uint64, so that comparing words in order is comparing bytes in order."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    words = np.frombuffer(ids.buffers()[1] or b"", dtype=">u8").reshape(-1, 2)
    return words[ids.offset : ids.offset + len(ids)].astype(np.uint64)


def keys(words: np.ndarray, seed: int, purpose: str, epoch: int = 0) -> np.ndarray:
    """(n,) uint64: one pseudo-random key an id, another for every seed, purpose and epoch."""
    salt = hashlib.blake2b(f"{seed}/{purpose}/{epoch}".encode(), digest_size=8).digest()
    start = np.full(len(words), int.from_bytes(salt, "big"), np.uint64)
    return _mix(_mix(start ^ words[:, 0]) ^ words[:, 1])


def ranks(keys: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Row numbers in the order of (key, id): total, whatever the keys, as long as ids are distinct."""
    return np.lexsort((words[:, 1], words[:, 0], keys))


def permutation(n: int, seed: int, purpose: str) -> np.ndarray:
    """A seeded order of 0 … n - 1."""
    numbers = np.stack([np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64)], axis=1)
    return ranks(keys(numbers, seed, purpose), numbers)
