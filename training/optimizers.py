"""AdamW and Muon with groups that carry their peak rate, so that a step sets `lr` as a share of it.

Both skip a bad step on the device: `found_inf` (the convention of torch's fused optimizers) is 1 where the step must not
count, and nothing is read back. Parameters have names, as checkpoints are by name.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.options import Recipe

Groups = list[dict[str, Any]]


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """What Muon orthogonalises: matrices between hidden states, not tables by token and not heads."""
    return parameter.ndim == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "score.weight", "value_head.weight"))


def adamw_groups(named: Iterable[tuple[str, nn.Parameter]], recipe: Recipe) -> Groups:
    """Matrices decay, vectors do not (GPT-3)."""
    parameters = list(named)
    matrices = [p for _, p in parameters if p.ndim >= 2]
    vectors = [p for _, p in parameters if p.ndim < 2]
    groups: Groups = [
        {"params": matrices, "peak": recipe.learning_rate, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        {"params": vectors, "peak": recipe.learning_rate, "lr": recipe.learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def muon_groups(named: Iterable[tuple[str, nn.Parameter]], recipe: Recipe) -> Groups:
    """Hidden matrices for Muon (`use_muon`), the rest for its AdamW."""
    parameters = list(named)
    hidden = [p for name, p in parameters if is_hidden_matrix(name, p)]
    tables = [p for name, p in parameters if p.ndim >= 2 and not is_hidden_matrix(name, p)]
    vectors = [p for _, p in parameters if p.ndim < 2]
    adam = {"use_muon": False, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.epsilon}
    rate = recipe.embedding_learning_rate
    groups: Groups = [
        {
            "params": hidden,
            "use_muon": True,
            "peak": recipe.learning_rate,
            "lr": recipe.learning_rate,
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
        },
        {"params": tables, "peak": rate, "lr": rate, "weight_decay": recipe.weight_decay, **adam},
        {"params": vectors, "peak": rate, "lr": rate, "weight_decay": 0.0, **adam},
    ]
    return [group for group in groups if group["params"]]


def build(
    named: Iterable[tuple[str, nn.Parameter]], recipe: Recipe, dtype: torch.dtype, rank: int, ranks: int
) -> "torch.optim.Optimizer | MuonWithAdamW":
    """The plain engine's optimizer; `dtype` is what Muon iterates in."""
    if recipe.optimizer == "muon":
        return MuonWithAdamW(muon_groups(named, recipe), dtype, rank, ranks)
    return fused_adamw(adamw_groups(named, recipe), recipe)


def fused_adamw(groups: Groups, recipe: Recipe) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, fused=True)


class MuonWithAdamW(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices (Jordan 2024), AdamW for the rest.

    The arithmetic is DeepSpeed 0.19.8's with ns_method "standard", so that both engines make one step alike: Nesterov momentum
    as an average, five quintic steps, scaled by sqrt(rows / columns) where rows are more. DeepSpeed iterates in bf16 everywhere.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Groups, dtype: torch.dtype = torch.bfloat16, rank: int = 0, ranks: int = 1) -> None:
        """The ranks share the matrices out among them: each orthogonalises its own and gets the others' updates by one sum."""
        super().__init__(groups, {})
        self.dtype, self.rank, self.ranks = dtype, rank, ranks
        adam = [group for group in self.param_groups if not group["use_muon"]]
        self._adamw = torch.optim.AdamW(adam, fused=True) if adam else None
        if self._adamw is not None:  # its groups are these very dictionaries; the state is made one too
            self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        hidden = [(p, group) for group in self.param_groups if group["use_muon"] for p in group["params"] if p.grad is not None]
        if hidden:
            flat = torch.zeros(sum(p.numel() for p, _ in hidden), device=hidden[0][0].device)
            updates = [part.view_as(p) for part, (p, _) in zip(flat.split([p.numel() for p, _ in hidden]), hidden, strict=True)]
            moved = [self._moved(p, group) for p, group in hidden]
            for i in range(self.rank, len(hidden), self.ranks):
                parameter, group = hidden[i]
                assert parameter.grad is not None
                nesterov = parameter.grad.lerp(moved[i], group["momentum"])
                updates[i].copy_(orthogonal(nesterov, self.dtype) * shape_scale(parameter))
            if self.ranks > 1:
                dist.all_reduce(flat)  # the others' places hold zeros, so the sum is each update to the bit
            for (parameter, group), new_momentum, update in zip(hidden, moved, updates, strict=True):
                self._apply(parameter, group, new_momentum, update)
        if self._adamw is not None:
            self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
            self._adamw.step()

    def _moved(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """The momentum after this step."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        return state["momentum_buffer"].lerp(parameter.grad, 1 - group["momentum"])

    def _apply(self, parameter: nn.Parameter, group: dict[str, Any], moved: Tensor, update: Tensor) -> None:
        momentum = self.state[parameter]["momentum_buffer"]
        new = (parameter * (1 - group["lr"] * group["weight_decay"])).add_(update, alpha=-group["lr"])
        if self.found_inf is None:
            momentum.copy_(moved)
            parameter.copy_(new)
        else:
            bad = self.found_inf.bool()
            momentum.copy_(torch.where(bad, momentum, moved))
            parameter.copy_(torch.where(bad, parameter, new))


def shape_scale(matrix: Tensor) -> float:
    rows, columns = matrix.shape
    return math.sqrt(rows / columns) if rows > columns else 1.0


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> Tensor:
    """Roughly U V^T of the matrix's U S V^T: singular values land near 1 (0.5 to 1.5), which is all that training needs.

    A quintic Newton-Schulz iteration with coefficients of steepest slope at 0 (Jordan 2024), who iterates in bf16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
