"""Blocks: every token of every occurrence once, in an order that only the seed decides."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.schemas import TOKENS, blocks_schema
from tokens.mixture import Draw
from tokens.packing import cut, pack, scatter, shuffled


def corpus(sizes: list[int], domains: str = "web") -> pa.Table:
    """Document i holds the tokens 1000 i, 1000 i + 1, …, so that every token names its place."""
    ids = [i.to_bytes(16, "little") for i in range(len(sizes))]
    tokens = [list(range(1000 * i, 1000 * i + size)) for i, size in enumerate(sizes)]
    names = [domains.split()[i % len(domains.split())] for i in range(len(sizes))]
    columns = [ids, names, ["train"] * len(sizes), sizes, sizes, tokens]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, TOKENS, strict=True)], schema=TOKENS)


SIZES = st.lists(st.integers(1, 40), max_size=30)


@given(sizes=SIZES, context=st.integers(2, 17))
def test_blocks_are_the_stream_cut_and_name_their_documents(sizes: list[int], context: int) -> None:
    rows = corpus(sizes)
    packed = cut(rows["id"].combine_chunks(), rows["tokens"].combine_chunks(), context)
    stream = [(token, row) for row, tokens in enumerate(rows["tokens"].to_pylist()) for token in tokens]
    num_blocks = len(stream) // (context + 1)
    want = [stream[i * (context + 1) : (i + 1) * (context + 1)] for i in range(num_blocks)]
    assert packed.blocks.schema == blocks_schema(context)
    assert packed.blocks["tokens"].to_pylist() == [[token for token, _ in block] for block in want]
    assert packed.blocks["starts"].to_pylist() == [[at for at, (token, _) in enumerate(block) if token % 1000 == 0] for block in want]
    assert packed.blocks["documents"].to_pylist() == [
        [rows["id"][row].as_py() for row in dict.fromkeys(row for _, row in block)] for block in want
    ]
    used = {row for block in want for _, row in block}
    assert (packed.documents, packed.remainder_documents) == (len(used), len(sizes) - len(used))
    assert packed.remainder_tokens == len(stream) % (context + 1)


@given(sizes=SIZES, passes=st.integers(0, 3), num_buckets=st.integers(1, 5), seed=st.integers(0, 9))
def test_scatter_holds_every_document_as_often_as_it_is_drawn(sizes: list[int], passes: int, num_buckets: int, seed: int) -> None:
    rows = corpus(sizes)
    buckets = dict(scatter(rows, {"web": Draw(passes)}, seed, num_buckets))
    assert sorted(t for b in buckets.values() for t in b["tokens"].to_pylist()) == sorted(rows["tokens"].to_pylist() * passes)
    for bucket, table in buckets.items():
        key = table["key"].to_numpy()
        assert (key.astype(object) * num_buckets // 2**64 == bucket).all()


@given(sizes=SIZES.filter(bool), turn=st.integers(0, 29), split_at=st.integers(0, 30), seed=st.integers(0, 9))
def test_the_packed_order_does_not_depend_on_parts_or_the_order_of_rows(sizes: list[int], turn: int, split_at: int, seed: int) -> None:
    rows = corpus(sizes, "web code")
    draws = {"web": Draw(2), "code": Draw(1)}

    def packed(parts: list[pa.Table]) -> pa.Table:
        tables = [table for part in parts for _, table in scatter(part, draws, seed, 1)]
        return shuffled(pack(pa.concat_tables(tables), 4).blocks, seed, 0)

    roll = rows.take(np.roll(np.arange(len(sizes)), turn))
    assert packed([rows]).equals(packed([roll[:split_at], roll[split_at:]]))


def test_another_seed_is_another_order() -> None:
    rows = corpus([7] * 60)
    one, two = (pack(next(table for _, table in scatter(rows, {"web": Draw(1)}, seed, 1)), 4).blocks for seed in (1, 2))
    assert not one.equals(two)


def test_the_last_document_of_a_partial_pass_is_cut_and_other_domains_are_not_taken() -> None:
    from tokens.mixture import draw
    from tokens.order import id_words
    from tokens.packing import selection_keys

    rows = corpus([10] * 20, "web code")
    web = rows.filter(pa.array([True, False] * 10))
    words = id_words(web["id"])
    chosen = draw(selection_keys(words, 1), words, np.full(10, 10), 137)
    tables = [table for _, table in scatter(rows, {"web": chosen}, 1, 3)]
    lists = [tokens for table in tables for tokens in table["tokens"].to_pylist()]
    assert sum(len(tokens) for tokens in lists) == 137
    assert sorted(len(tokens) for tokens in lists)[:2] == [7, 10]
    assert {tokens[0] // 1000 % 2 for tokens in lists} == {0}
    assert all(tokens == list(range(tokens[0], tokens[0] + len(tokens))) and tokens[0] % 1000 == 0 for tokens in lists)


@pytest.mark.parametrize("seed", [1, 2])
def test_shuffled_blocks_are_the_same_blocks(seed: int) -> None:
    rows = corpus([9] * 30)
    blocks = cut(rows["id"].combine_chunks(), rows["tokens"].combine_chunks(), 4).blocks
    mixed = shuffled(blocks, seed, 3)
    assert mixed.schema == blocks.schema
    assert mixed["tokens"].to_pylist() != blocks["tokens"].to_pylist()
    key = {tuple(row["tokens"]): row for row in blocks.to_pylist()}
    assert all(key.pop(tuple(row["tokens"])) == row for row in mixed.to_pylist())
    assert not key
