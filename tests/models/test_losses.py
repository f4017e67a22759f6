"""The head's cross entropy in slabs, against torch's over all logits at once."""

import pytest
import torch
import torch.nn.functional as F

from models import losses
from tests.rounding import rounding


@pytest.mark.parametrize("slab", [1, 7 * 11, 2**20])
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_and_gradients_are_torchs_own_however_it_is_cut(slab: int, ignored: bool, monkeypatch):
    monkeypatch.setattr(losses, "SLAB", slab)
    hidden, weight, targets, scale = example(ignored)
    ours = gradients(losses.linear_cross_entropy(hidden, weight, targets) * scale, hidden, weight)
    theirs = gradients(F.cross_entropy(hidden @ weight.T, targets, reduction="sum") * scale, hidden, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_no_target_that_counts_is_no_loss_and_no_gradient():
    hidden, weight, targets, _ = example(ignored=False)
    nats, d_hidden, d_weight = gradients(
        losses.linear_cross_entropy(hidden, weight, torch.full_like(targets, losses.IGNORED)), hidden, weight
    )
    assert nats == 0 and not d_hidden.any() and not d_weight.any()


def test_large_logits_overflow_nothing():
    hidden, weight, targets, _ = example(ignored=False)
    nats, d_hidden, _ = gradients(losses.linear_cross_entropy(hidden * 1e4, weight, targets), hidden, weight)
    assert torch.isfinite(nats) and torch.isfinite(d_hidden).all()


def test_in_bfloat16_the_sums_are_wide():
    hidden, weight, targets, _ = example(ignored=True)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    ours = gradients(losses.linear_cross_entropy(*low, targets), *low)
    wide = [x.detach().float().requires_grad_() for x in low]
    theirs = gradients(losses.linear_cross_entropy(*wide, targets), *wide)
    assert ours[0].dtype == torch.float32 and {ours[1].dtype, ours[2].dtype} == {torch.bfloat16}
    # Rounded logits move a probability by p (1 - p) of two roundings, so by half a one; it and the product then round themselves.
    bound = rounding(1, wide[0] @ wide[1].T / 2, torch.bfloat16) + rounding(2, 1, torch.bfloat16)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=bound, atol=bound)


def example(ignored: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(23, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 11, (23,), generator=generator)
    if ignored:
        targets[::3] = losses.IGNORED
    return hidden, weight, targets, torch.tensor(0.3, dtype=torch.float64)


def gradients(nats: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (nats.detach(), *torch.autograd.grad(nats, inputs))


def test_log_probs_equal_torchs_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(rows, 16, generator=generator, dtype=torch.float64) for rows in (700, 3001))
    targets = torch.randint(3001, (700,), generator=generator)
    targets[::2] = (hidden @ weight.T).argmax(1)[::2]
    log_probs, is_greedy = losses.token_log_probs(hidden, weight, targets)
    logits = hidden @ weight.T
    want = logits.log_softmax(1)
    torch.testing.assert_close(log_probs, want.gather(1, targets[:, None])[:, 0], rtol=0, atol=rounding(6, logits))
    assert is_greedy.tolist() == (want.argmax(1) == targets).tolist() and is_greedy[::2].all() and not is_greedy.all()
