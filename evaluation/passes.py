"""Forward passes: what goes into one, and several side by side.

On a CPU each has one core to itself: a small model's operations are too short to be shared out among cores, and passes over different
texts need nothing of each other.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""`map`, or what gives the same in the same order."""


@contextmanager
def passes(threads: int, device: str) -> Iterator[tuple[Each, int]]:
    """(a map whose calls run side by side, how many do). On an accelerator one after the other: there one pass fills it."""
    if device != "cpu" or threads == 1:
        torch.set_num_threads(threads)
        yield map, 1
        return
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads, "pass") as pool:
        yield pool.map, threads


def batches(items: Iterable[Any], cost: Callable[[Any], tuple[int, int]], batch_tokens: int) -> Iterator[list[Any]]:
    """Consecutive items, at least one, whose rows times their greatest width stay within batch_tokens. cost: (rows, width)."""
    batch: list[Any] = []
    rows = width = 0
    for item in items:
        more, wide = cost(item)
        if batch and (rows + more) * max(width, wide) > batch_tokens:
            yield batch
            batch, rows, width = [], 0, 0
        batch.append(item)
        rows, width = rows + more, max(width, wide)
    if batch:
        yield batch
