"""Cross entropy of a linear head that never holds all logits: the widest tensor of a small model's step, by far.

Loss and both gradients of a slab of positions are made while its logits are in the cache, so the exponentials are taken once and
backward only scales what is there (Hsu et al. 2024, Liger; Wijmans et al. 2024, "Cut your losses"). Needs torch alone.

Shape letters: N positions, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
SLAB = 2**20
"""Logits held at a time, 4 MB in fp32: of 2^17 to 2^21 about the fastest on a core with AVX2 (docs/experiments.md)."""
SLAB_GPU = 2**28
"""Fewer launches; not tried on a GPU."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum of nats over the targets that are not IGNORED, of logits hidden · weight^T; sums in fp32 at least."""
    nats: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N)
    return nats


@torch.inference_mode()
def token_log_probs(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(log p of each target in fp64 nats, whether no token is likelier) of logits hidden · weight^T, summed in fp64 slab by slab."""
    log_probs, is_greedy = [], []
    rows = _rows(hidden_ND, weight_VD)
    for hidden, target in zip(hidden_ND.split(rows), targets_N[:, None].split(rows), strict=True):
        z = (hidden @ weight_VD.T).float()
        top, of_target = z.amax(1, keepdim=True), z.gather(1, target)
        total = (z - top).exp_().sum(1, keepdim=True, dtype=torch.float64)
        log_probs.append(of_target.double() - top - total.log())
        is_greedy.append(of_target == top)
    return torch.cat(log_probs)[:, 0], torch.cat(is_greedy)[:, 0]


def _rows(hidden_ND: Tensor, weight_VD: Tensor) -> int:
    """Positions whose logits make a slab."""
    return max(1, (SLAB_GPU if hidden_ND.is_cuda else SLAB) // len(weight_VD))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        kind = torch.promote_types(hidden_ND.dtype, torch.float32)
        nats = torch.zeros((), dtype=kind, device=hidden_ND.device)
        wants_gradient = any(ctx.needs_input_grad)
        d_hidden = torch.empty_like(hidden_ND) if wants_gradient else None
        d_weight = torch.zeros_like(weight_VD, dtype=kind) if wants_gradient else None
        rows = _rows(hidden_ND, weight_VD)
        for start in range(0, len(hidden_ND), rows):
            hidden, target = hidden_ND[start : start + rows], targets_N[start : start + rows, None]
            counts = target != IGNORED
            target = target.where(counts, 0)
            z = (hidden @ weight_VD.T).to(kind)
            z -= z.amax(1, keepdim=True)
            of_target = z.gather(1, target)
            z.exp_()
            total = z.sum(1, keepdim=True)
            nats += (total.log() - of_target).where(counts, 0.0).sum()
            if d_hidden is not None and d_weight is not None:
                z *= counts / total  # now probabilities, and nothing where the target does not count
                z.scatter_add_(1, target, -counts.to(kind))
                d_z = z.to(hidden.dtype)
                d_hidden[start : start + rows] = d_z @ weight_VD
                d_weight += d_z.T @ hidden
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight_VD.dtype
        return nats

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (d_hidden * scale).to(d_hidden.dtype), (d_weight * scale).to(ctx.weight_dtype), None
