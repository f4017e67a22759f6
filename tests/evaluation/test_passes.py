"""Passes side by side give what they give one after the other, in the same order, each on one core."""

import itertools
import threading
import time

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.alignment import respond, rewards
from evaluation.passes import batches, passes
from models.transformer import ScalarModel
from tests.evaluation.test_alignment import CONFIG, END, PAD, model, prompts


def test_calls_overlap_keep_their_order_and_have_one_core_each() -> None:
    together = threading.Barrier(2, timeout=30)

    def call(i: int) -> tuple[int, int]:
        together.wait()  # passes only where two are under way at once
        time.sleep(0.02 * (i % 2 == 0))
        return i, torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        with passes(2, "cpu") as (each, side_by_side):
            assert side_by_side == 2
            assert list(each(call, range(6))) == [(i, 1) for i in range(6)]
    finally:
        torch.set_num_threads(before)


def test_side_by_side_changes_no_figure() -> None:
    policy, reference, scalar = model(1), model(2), ScalarModel.from_transformer(model(1, 3.0), seed=4).eval()
    asked = prompts(70)  # more than one batch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with passes(2, "cpu") as (each, _):
            assert respond(policy, reference, asked, CONFIG, END, PAD, each=each) == respond(policy, reference, asked, CONFIG, END, PAD)
            assert np.array_equal(rewards(scalar, asked, PAD, 40, each=each), rewards(scalar, asked, PAD, 40))
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9))), st.integers(1, 40))
def test_batches_hold_every_item_once_and_no_more_tokens_than_allowed(items: list[tuple[int, int]], most: int) -> None:
    made = list(batches(items, lambda item: item, most))
    assert [item for batch in made for item in batch] == items
    sizes = [sum(rows for rows, _ in batch) * max(width for _, width in batch) for batch in made]
    assert all(size <= most or len(batch) == 1 for size, batch in zip(sizes, made, strict=True))
    for batch, after in itertools.pairwise(made):  # and none was closed early
        joined = [*batch, after[0]]
        assert sum(rows for rows, _ in joined) * max(width for _, width in joined) > most
