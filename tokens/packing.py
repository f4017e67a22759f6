"""Documents into blocks: whole documents one after another, cut every context + 1 tokens; what does not fill a block is left out.

The global shuffle is in two steps, so that it needs neither the corpus in memory nor a random read. `scatter` gives every
occurrence of a document a seeded key and, by the key's highest bits, a bucket; `pack` sorts one bucket by the key, cuts it and
shuffles its blocks (else a book would fill whole batches). Both are pure functions of the seed and of which documents there are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.schemas import blocks_schema
from tokens.mixture import Draw
from tokens.order import id_words, keys, permutation, ranks

SCATTERED = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("id", pa.binary(16), nullable=False),
        pa.field("tokens", pa.large_list(pa.uint32()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Packed:
    """Blocks, the documents in them, and what did not get in: the remainder's tokens, and documents that lie wholly in it."""

    blocks: pa.Table
    documents: int
    remainder_documents: int
    remainder_tokens: int

    def counts(self) -> dict[str, int]:
        return {
            "blocks": len(self.blocks),
            "documents": self.documents,
            "remainder_documents": self.remainder_documents,
            "remainder_tokens": self.remainder_tokens,
        }


def selection_keys(words: np.ndarray, seed: int) -> np.ndarray:
    """Which documents go into a partial pass: an order of its own, so that they do not crowd the first buckets."""
    return keys(words, seed, "select")


def scatter(rows: pa.Table, draws: Mapping[str, Draw], seed: int, num_buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """(bucket, SCATTERED rows) for every bucket that gets any of `rows` (TOKENS rows of the train split)."""
    words = id_words(rows["id"])
    sizes = rows["num_tokens"].to_numpy().astype(np.int64)
    select = selection_keys(words, seed)
    row, size, key = [], [], []
    for domain, draw in sorted(draws.items()):
        here = np.flatnonzero(pc.equal(rows["domain"], domain).to_numpy())
        partial = draw.taken(select[here], words[here], sizes[here])
        for epoch, taken in enumerate([sizes[here]] * draw.passes + [partial]):
            used = here[taken > 0]
            row.append(used)
            size.append(taken[taken > 0])
            key.append(keys(words[used], seed, "order", epoch))
    if not row:
        return
    all_rows, all_sizes, all_keys = np.concatenate(row), np.concatenate(size), np.concatenate(key)
    buckets = ((all_keys >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)
    tokens = _single(rows["tokens"])
    for bucket in np.unique(buckets).tolist():
        here = np.flatnonzero(buckets == bucket)
        chosen, lists = all_rows[here], _gather(tokens, all_rows[here], all_sizes[here])
        yield bucket, pa.table([pa.array(all_keys[here]), _single(rows["id"]).take(pa.array(chosen)), lists], schema=SCATTERED)


def pack(bucket: pa.Table, context: int) -> Packed:
    """SCATTERED rows in the order of their keys, as blocks. An equal key of two rows is settled by the id."""
    order = ranks(bucket["key"].to_numpy(), id_words(bucket["id"]))
    lengths = pc.list_value_length(bucket["tokens"]).to_numpy().astype(np.int64)
    tokens = _gather(_single(bucket["tokens"]), order, lengths[order])
    return cut(_single(bucket["id"]).take(pa.array(order)), tokens, context)


def cut(ids: pa.Array, tokens: pa.Array, context: int) -> Packed:
    """Blocks of consecutive documents (every one at least a token long), in this order."""
    width = context + 1
    offsets = np.asarray(tokens.offsets, np.int64) - tokens.offsets[0].as_py() if len(tokens) else np.zeros(1, np.int64)
    total = int(offsets[-1])
    num_blocks, remainder = divmod(total, width)
    edges = np.arange(num_blocks + 1, dtype=np.int64) * width
    flat = tokens.flatten()[: num_blocks * width]
    begins = offsets[:-1][offsets[:-1] < edges[-1]]
    starts = pa.ListArray.from_arrays(pa.array(np.searchsorted(begins, edges), pa.int32()), pa.array(begins % width, pa.int32()))
    first = np.searchsorted(offsets, edges[:-1], side="right") - 1
    last = np.searchsorted(offsets, edges[1:] - 1, side="right") - 1
    members = last - first + 1
    spread = np.concatenate([[0], np.cumsum(members)])
    rows = np.arange(spread[-1]) - np.repeat(spread[:-1] - first, members)
    documents = pa.ListArray.from_arrays(pa.array(spread, pa.int32()), ids.take(pa.array(rows, pa.int64())))
    blocks = pa.table([pa.FixedSizeListArray.from_arrays(flat, width), starts, documents], schema=blocks_schema(context))
    return Packed(blocks, len(begins), len(ids) - len(begins), remainder)


def shuffled(blocks: pa.Table, seed: int, bucket: int) -> pa.Table:
    """The blocks of a bucket in a seeded order."""
    return blocks.take(pa.array(permutation(len(blocks), seed, f"blocks/{bucket}"), pa.int64())).combine_chunks()


def _gather(lists: pa.Array, rows: np.ndarray, sizes: np.ndarray) -> pa.Array:
    """The first `sizes` items of these rows of a large_list, as a new large_list."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    source = np.asarray(lists.offsets, np.int64)[rows] - offsets[:-1]
    values = np.asarray(lists.values)[np.repeat(source, sizes) + np.arange(offsets[-1])]
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, pa.uint32()))


def _single(column: pa.ChunkedArray) -> pa.Array:
    chunk = column.combine_chunks()
    return chunk if isinstance(chunk, pa.Array) else pa.concat_arrays(chunk.chunks)
