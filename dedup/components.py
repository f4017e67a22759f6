"""Disjoint sets of rows. The root of a set is its smallest row, whatever the order in which edges come."""

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def find(parent: np.ndarray, row: int) -> int:
    """The root of a row's set; halves the path on its way."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@numba.njit(nogil=True, cache=True)
def union(parent: np.ndarray, a: int, b: int) -> None:
    a, b = find(parent, a), find(parent, b)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b


@numba.njit(nogil=True, cache=True)
def unite(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join left[i] and right[i] for every i."""
    for i in range(left.size):
        union(parent, left[i], right[i])


@numba.njit(nogil=True, cache=True)
def roots(parent: np.ndarray) -> np.ndarray:
    """The root of every row. A parent is never above its row, so one pass in order is enough."""
    for row in range(parent.size):
        parent[row] = parent[parent[row]]
    return parent
