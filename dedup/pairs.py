"""From the keys of one bucket to edges between rows: equal texts, and candidates whose signatures agree well enough.

Rows are numbered over all parts, in the order of the parts. Edges say what may belong together; what does is settled by
`dedup.verification`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa

from contract.errors import InputError
from dedup.components import roots, unite
from dedup.config import DeduplicateConfig

KEYS = pa.schema([("kind", pa.uint16()), ("key", pa.uint64()), ("other", pa.uint64()), ("row", pa.int64())])
"""kind < num_bands: a band's key, and the first half of the content digest; num_bands: the two halves of the content digest;
num_bands + 1: the two halves of the id."""
EDGES = pa.schema([("left", pa.int64()), ("right", pa.int64()), ("near", pa.bool_())])


@dataclass(frozen=True)
class Groups:
    """Rows that share a band key: members[starts[g]:starts[g + 1]] share it in band bands[g]. Every group has two rows at least."""

    members: np.ndarray
    starts: np.ndarray
    bands: np.ndarray


def changes(*columns: np.ndarray) -> np.ndarray:
    """Where sorted rows differ from the row before; the first always does."""
    changed = np.ones(columns[0].size, bool)
    if changed.size:
        changed[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return changed


def group(bands: np.ndarray, members: np.ndarray, *keys: np.ndarray) -> Groups:
    """Groups of two and more among rows that are sorted by `keys`, of which the band is one."""
    first = np.flatnonzero(changes(*keys))
    sizes = np.diff(np.append(first, members.size))
    several = np.repeat(sizes > 1, sizes)
    starts = np.concatenate([[0], np.cumsum(sizes[sizes > 1])])
    return Groups(members[several], starts.astype(np.int64), bands[first[sizes > 1]].astype(np.int64))


@numba.njit(nogil=True, cache=True)
def first_shared_band(a: np.ndarray, b: np.ndarray, rows_per_band: int) -> int:
    """The first band in which two signatures agree, or -1. A pair is looked at there alone, however many bands it shares."""
    for band in range(a.size // rows_per_band):
        i = band * rows_per_band
        while i < (band + 1) * rows_per_band and a[i] == b[i]:
            i += 1
        if i == (band + 1) * rows_per_band:
            return band
    return -1


@numba.njit(nogil=True, cache=True)
def estimate(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity as two signatures tell it: the share of permutations in which they agree."""
    same = 0
    for i in range(a.size):
        same += a[i] == b[i]
    return same / a.size


@numba.njit(nogil=True, cache=True)
def _promising(
    signatures: np.ndarray, members: np.ndarray, starts: np.ndarray, bands: np.ndarray, rows_per_band: int, least: float
) -> np.ndarray:
    """Which members have a partner in their group whose signature agrees well enough, this band being their first in common."""
    marked = np.zeros(members.size, np.bool_)
    for g in range(bands.size):
        for i in range(starts[g], starts[g + 1]):
            a = signatures[members[i]]
            for j in range(i + 1, starts[g + 1]):
                if not (marked[i] and marked[j]):
                    b = signatures[members[j]]
                    if first_shared_band(a, b, rows_per_band) == bands[g] and estimate(a, b) >= least:
                        marked[i] = marked[j] = True
    return marked


def edges_of_bucket(keys: pa.Table, signatures_of: Callable[[np.ndarray], np.ndarray], config: DeduplicateConfig) -> pa.Table:
    """EDGES of one bucket. Raises InputError if ids repeat.

    signatures_of: sorted rows -> their signatures; asked once, for the rows that share a band key with another text.
    """
    kind, key, other, row = _that_meet(keys)
    ids = kind == config.num_bands + 1
    _refuse_repeated_ids(key[ids], other[ids], row[ids])
    exact = kind == config.num_bands
    left, right = _to_first(changes(key[exact], other[exact]), row[exact])
    near = kind < config.num_bands
    near_left, near_right = _near_edges(kind[near], key[near], other[near], row[near], signatures_of, config)
    return pa.table(
        [
            pa.array(np.concatenate([left, near_left])),
            pa.array(np.concatenate([right, near_right])),
            pa.array(np.repeat([False, True], [left.size, near_left.size])),
        ],
        schema=EDGES,
    )


def _that_meet(keys: pa.Table) -> list[np.ndarray]:
    """The columns of KEYS sorted by (kind, key, other, row), without the keys that stand alone: nearly all of them."""
    kind, key, other, row = (keys[name].to_numpy() for name in KEYS.names)
    order = np.argsort(key, kind="stable")
    new = changes(key[order])
    meets = ~new | ~np.append(new[1:], True)
    chosen = order[meets] if order.size else order
    chosen = chosen[np.lexsort((row[chosen], other[chosen], key[chosen], kind[chosen]))]
    return [column[chosen] for column in (kind, key, other, row)]


def _refuse_repeated_ids(key: np.ndarray, other: np.ndarray, row: np.ndarray) -> None:
    again = np.flatnonzero(~changes(key, other))
    if again.size:
        raise InputError(
            f"{again.size:,} documents have an id that another has too, the first of them in rows {row[again[0] - 1]:,} and "
            f"{row[again[0]]:,} (id {int(key[again[0]]):016x}{int(other[again[0]]):016x}). An id is the digest of source name and "
            "locator: give each source a name of its own, and each document of it a locator of its own."
        )


def _to_first(new: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges from the first row of each run of equals to each of the others."""
    first = row[np.flatnonzero(new)][np.cumsum(new) - 1] if row.size else row
    return first[~new], row[~new]


def _near_edges(
    band: np.ndarray,
    key: np.ndarray,
    digest: np.ndarray,
    row: np.ndarray,
    signatures_of: Callable[[np.ndarray], np.ndarray],
    config: DeduplicateConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Stars over the promising rows of each group: linear in the group's size, however many of its pairs are alike."""
    one = changes(band, key, digest)  # equal texts share all keys: one row stands for them
    band, key, row = band[one], key[one], row[one]
    groups = group(band, row, band, key)
    needed = np.unique(groups.members)
    signatures = signatures_of(needed) if needed.size else np.zeros((0, config.num_permutations), np.uint32)
    places = np.searchsorted(needed, groups.members)
    marked = _promising(signatures, places, groups.starts, groups.bands, config.rows_per_band, config.least_estimate)
    number = np.repeat(np.arange(groups.bands.size), np.diff(groups.starts))
    return _to_first(changes(number[marked]), groups.members[marked])


@dataclass(frozen=True)
class Clusters:
    """Rows that some edge joins to another row, sorted; the root names their cluster. near: the row's text must be compared."""

    rows: np.ndarray
    root: np.ndarray
    near: np.ndarray


def clusters(documents: int, edges: pa.Table) -> Clusters:
    """The connected components of all edges: the step over all rows, 8 bytes a document and 17 an edge."""
    left, right = edges["left"].to_numpy(), edges["right"].to_numpy()
    parent = np.arange(documents, dtype=np.int64)
    unite(parent, left, right)
    near = np.zeros(documents, bool)
    compared = edges["near"].to_numpy()
    near[left[compared]] = near[right[compared]] = True
    rows = np.unique(np.concatenate([left, right]))
    return Clusters(rows, roots(parent)[rows], near[rows])
