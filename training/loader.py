"""Which rows make a step, and where they are read from.

The global batch is a pure function of (seed, position), position = step + data_offset: there is no sampler state, and any
number of ranks sees the same batch, each its own slice. Rows are read memory-mapped: blocks by `Blocks`, lists of ids of
different lengths by `Ragged`. Needs NumPy alone, except for the two functions that fill a folder from Parquet or lists.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_rows: int) -> Rows:
    """The order of all rows in one epoch; two epochs are kept, as a batch may lie across their border."""
    return np.random.default_rng([abs(seed), int(seed < 0), epoch]).permutation(num_rows)


def global_batch(seed: int, position: int, num_rows: int, batch_size: int) -> Rows:
    """Row numbers of the batch at `position`: each epoch takes every row once, in an order of its own."""
    places = np.arange(position * batch_size, (position + 1) * batch_size, dtype=np.int64)
    epochs, slots = np.divmod(places, num_rows)
    parts = [_order(seed, int(epoch), num_rows)[slots[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


def rank_share(rows: Rows, rank: int, ranks: int) -> Rows:
    """The consecutive part of a global batch that is this rank's; ranks must divide it."""
    share = len(rows) // ranks
    return rows[rank * share : (rank + 1) * share]


class Blocks:
    """Blocks of context + 1 ids in one memory-mapped array."""

    def __init__(self, path: Path) -> None:
        self._ids = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return int(self._ids.shape[0])

    @property
    def context(self) -> int:
        return int(self._ids.shape[1]) - 1

    def take(self, rows: Rows) -> NDArray[np.int64]:
        return self._ids[rows].astype(np.int64)


class Ragged:
    """Lists of ids, memory-mapped: <name>.ids.npy holds them end to end, <name>.ends.npy where each ends."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ids = np.load(folder / f"{name}.ids.npy", mmap_mode="r", allow_pickle=False)
        self._ends = np.load(folder / f"{name}.ends.npy", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        start = self._ends[row - 1] if row else 0
        return self._ids[start : self._ends[row]].astype(np.int64)

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self._ends, prepend=0)


def write_ragged(folder: Path, name: str, lists: Sequence[Sequence[int]]) -> None:
    np.save(folder / f"{name}.ids.npy", np.fromiter((i for ids in lists for i in ids), np.uint32))
    np.save(folder / f"{name}.ends.npy", np.cumsum([len(ids) for ids in lists], dtype=np.int64))


def write_blocks(path: Path, files: Iterable[Path], vocab_size: int) -> int:
    """Copy the `tokens` of packed Parquet blocks into one array that can be memory-mapped; returns the number of blocks.

    Two bytes an id where the vocabulary allows. Memory: one batch of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = [pq.ParquetFile(file) for file in files]
    num_rows = sum(source.metadata.num_rows for source in sources)
    if not num_rows:
        return 0
    field = sources[0].schema_arrow.field("tokens").type
    assert pa.types.is_fixed_size_list(field), f"blocks hold lists of one size, found {field}"
    kind = np.uint16 if vocab_size <= 2**16 else np.uint32
    target = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(num_rows, field.list_size))
    done = 0
    for source in sources:
        for batch in source.iter_batches(batch_size=1024, columns=["tokens"]):
            ids = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            target[done : done + batch.num_rows] = ids.reshape(batch.num_rows, -1)
            done += batch.num_rows
    target.flush()
    return num_rows
