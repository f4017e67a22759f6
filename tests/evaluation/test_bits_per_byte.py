import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.bits_per_byte import Nats, Score, document_nats, score_by_domain, windows
from models.losses import IGNORED

END, VOCABULARY = 0, 23


class History(torch.nn.Module):
    """A causal model whose logits depend on every token before, with weights that fade: wrong context shows in the figure."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        rows_BTV = self.table[tokens_BT]
        states, state = [], torch.zeros_like(rows_BTV[:, 0])
        for t in range(tokens_BT.shape[1]):
            state = 0.8 * state + rows_BTV[:, t]
            states.append(state)
        return torch.stack(states, 1)


def nats_by(logits: Callable[[torch.Tensor], torch.Tensor]) -> Nats:
    def nats(tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        counts = targets_BT != IGNORED
        return torch.nn.functional.cross_entropy(logits(tokens_BT)[counts], targets_BT[counts], reduction="none")

    return nats


def token_by_token(model: History, ids: Sequence[int], context: int, stride: int) -> float:
    """The definition, one token and one forward pass at a time: `history` is what the window that first holds the token shows of it."""
    total = 0.0
    for i, token in enumerate(ids):
        if i < context:
            start = 0
        else:
            steps = math.ceil((i + 1 - context) / stride)
            start = min(context + steps * stride, len(ids)) - context
        history = [END, *ids][start : i + 1]
        total -= float(torch.log_softmax(model(torch.tensor([history]))[0, -1], -1)[token])
    return total


def corpus(seed: int = 0, lengths: Sequence[int] = (1, 5, 8, 9, 17, 40, 2, 33)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(1, VOCABULARY, n - 1), END).astype(np.uint32) for n in lengths]


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_nats_equal_the_definition_token_by_token(overlap: float) -> None:
    model, documents, context = History(), corpus(), 8
    want = [token_by_token(model, ids.tolist(), context, max(1, context - int(context * overlap))) for ids in documents]
    got = document_nats(nats_by(model), documents, END, context, overlap, batch_tokens=30)
    assert got == pytest.approx(want, rel=1e-12)


def test_batches_do_not_change_the_sum() -> None:
    model, documents = History(), corpus()
    one = document_nats(nats_by(model), documents, END, 8, batch_tokens=1)
    assert document_nats(nats_by(model), documents, END, 8, batch_tokens=10_000) == pytest.approx(one, rel=1e-12)


def test_whole_context_is_never_worse_understood_than_it_is() -> None:
    model, documents = History(), corpus()
    whole = document_nats(nats_by(model), documents, END, 64)
    exact = [token_by_token(model, ids.tolist(), 64, 32) for ids in documents]
    assert whole == pytest.approx(exact, rel=1e-12)


@given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 0.99))
def test_every_token_is_scored_once_and_windows_fit(length: int, context: int, overlap: float) -> None:
    scored = np.zeros(length, int)
    for w in windows(0, length, context, overlap):
        assert 0 <= w.start <= w.scored < w.end <= length and w.end - w.start <= context
        scored[w.scored : w.end] += 1
    assert (scored == 1).all()


def test_a_uniform_model_costs_log2_of_the_vocabulary_a_token() -> None:
    documents = corpus()
    nats = document_nats(nats_by(lambda tokens: torch.zeros(*tokens.shape, VOCABULARY)), documents, END, 8)
    sizes = [3 * len(ids) for ids in documents]
    scores = score_by_domain(nats, documents, sizes, ["web", "code"] * 4)
    assert list(scores) == ["code", "web", "all"]
    for score in scores.values():
        assert score.loss == pytest.approx(math.log(VOCABULARY))
        assert score.bits_per_byte == pytest.approx(math.log2(VOCABULARY) / 3)
    assert scores["all"].tokens == sum(len(ids) for ids in documents) and scores["all"].documents == 8


def test_end_tokens_are_counted_in_nats_but_bring_no_bytes() -> None:
    score = Score(nats=10 * math.log(2), tokens=3, text_bytes=5, documents=1)
    assert score.bits_per_byte == pytest.approx(2.0)


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    document_nats(nats_by(History()), corpus(), END, 8, batch_tokens=30, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and [d for d, _ in seen] == sorted(d for d, _ in seen)
