"""The global batch is a pure function of seed and position, and what is read is what was written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis.strategies import integers

from contract.schemas import blocks_schema
from training.loader import Blocks, Ragged, global_batch, rank_share, write_blocks, write_ragged


@given(seed=integers(-5, 2**31), num_rows=integers(1, 60), batch_size=integers(1, 40))
def test_every_epoch_takes_every_row_once(seed: int, num_rows: int, batch_size: int):
    taken = np.concatenate([global_batch(seed, position, num_rows, batch_size) for position in range(2 * num_rows)])
    for epoch in np.split(taken, range(num_rows, len(taken), num_rows))[: len(taken) // num_rows]:
        assert sorted(epoch) == list(range(num_rows))


def test_the_batch_depends_on_the_position_alone():
    late = global_batch(7, 31, 50, 8)
    assert [global_batch(7, position, 50, 8).tolist() for position in range(32)][31] == late.tolist()
    assert global_batch(8, 31, 50, 8).tolist() != late.tolist()


@given(ranks=integers(1, 8), share=integers(1, 5))
def test_the_ranks_shares_are_the_global_batch(ranks: int, share: int):
    rows = global_batch(1, 3, 1000, ranks * share)
    assert np.concatenate([rank_share(rows, rank, ranks) for rank in range(ranks)]).tolist() == rows.tolist()


def test_blocks_come_back_from_parquet_over_several_files(tmp_path: Path):
    ids = np.random.default_rng(1).integers(0, 2**16, (7, 9))
    for i, part in enumerate((ids[:3], ids[3:])):
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel(), pa.uint32()), 9)
        empty = [[] for _ in part]
        table = pa.table([tokens, pa.array(empty, pa.list_(pa.int32())), pa.array(empty, pa.list_(pa.binary(16)))], schema=blocks_schema(8))
        pq.write_table(table, tmp_path / f"{i}.parquet")
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for vocab_size, width in ((2**16, 2), (2**16 + 1, 4)):
        assert write_blocks(tmp_path / "blocks.npy", files, vocab_size) == 7
        blocks = Blocks(tmp_path / "blocks.npy")
        assert (blocks.take(np.array([6, 0, 3])) == ids[[6, 0, 3]]).all() and (len(blocks), blocks.context) == (7, 8)
        assert np.load(tmp_path / "blocks.npy").itemsize == width


def test_lists_of_ids_come_back(tmp_path: Path):
    lists = [[5], [1, 2, 3], [70_000, 0]]
    write_ragged(tmp_path, "prompt", lists)
    ragged = Ragged(tmp_path, "prompt")
    assert [ragged[i].tolist() for i in range(len(ragged))] == lists and ragged.lengths().tolist() == [1, 3, 2]
