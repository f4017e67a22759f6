"""The plain engine: torch alone, one process a rank, whole weights and optimizer state on each.

The oracle that DeepSpeed is held to, and what runs where DeepSpeed is not. Nothing is read back from the device in a step:
a bad step is masked there (`found_inf`). Gradients of all ranks are summed in one flat buffer.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.guard import Guard
from training.optimizers import build
from training.options import Place, Recipe

Batch = dict[str, Tensor]
Loss = Callable[[Callable[..., Any], Batch], Tensor]
"""(model, micro batch) -> its part of the global batch's loss: the parts of all micro batches and ranks sum to it."""


@dataclass(frozen=True)
class Stepped:
    """Tensors on the device, equal on all ranks: the global loss before the step, the gradient's norm, whether it counted."""

    loss: Tensor
    grad_norm: Tensor
    is_good: Tensor


class Engine(Protocol):
    """A model with an optimizer, over all ranks."""

    module: nn.Module
    device: torch.device
    rank: int
    ranks: int

    @property
    def model(self) -> Callable[..., Any]: ...
    def step(self, batches: Sequence[Batch], loss_of: Loss, rate: float, guard: Guard) -> Stepped: ...
    def no_grad(self) -> contextlib.AbstractContextManager[None]: ...
    def total(self, value: Tensor) -> Tensor: ...
    def any(self, flag: bool) -> bool: ...
    def weights(self) -> dict[str, Tensor]: ...
    def optimizer_state(self) -> dict[str, Tensor]: ...
    def load(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None: ...
    def close(self) -> None: ...


class Ranks:
    """What both engines need of the process group; with one rank there is none and nothing is sent."""

    device: torch.device
    ranks: int

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.ranks > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; costs a read, and nothing on one rank."""
        return flag if self.ranks == 1 else bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)


class PlainEngine(Ranks):
    def __init__(self, module: nn.Module, recipe: Recipe, place: Place, rank: int = 0, ranks: int = 1) -> None:
        self.device = torch.device(place.device)
        self.rank, self.ranks = rank, ranks
        self.module = module.to(self.device)
        self._recipe = recipe
        self._bf16 = place.dtype == "bfloat16"
        self._named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        # A CPU without bf16 units takes ten times as long for a bf16 product (measured on AVX2).
        on_cpu_in_fp32 = self.device.type == "cpu" and not self._bf16
        self.optimizer = build(self._named, recipe, torch.float32 if on_cpu_in_fp32 else torch.bfloat16, rank, ranks)
        self._call: Callable[..., Any] = torch.compile(self.module, dynamic=False) if place.compile else self.module
        self._assign_flat_gradient()

    @property
    def model(self) -> Callable[..., Any]:
        return self._call

    def _assign_flat_gradient(self) -> None:
        """Every gradient is a view of one buffer: one all-reduce and one norm, whatever the number of parameters."""
        self._flat = torch.zeros(sum(p.numel() for _, p in self._named), device=self.device)
        start = 0
        for _, parameter in self._named:
            parameter.grad = self._flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else contextlib.nullcontext()

    @contextlib.contextmanager
    def no_grad(self) -> Any:
        with torch.no_grad(), self.autocast():
            yield

    def step(self, batches: Sequence[Batch], loss_of: Loss, rate: float, guard: Guard) -> Stepped:
        """One update from all micro batches; `rate` is the share of each group's peak learning rate."""
        self._flat.zero_()
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            with self.autocast():
                part = loss_of(self._call, batch)
            part.backward()
            loss += part.detach()
        if self.ranks > 1:
            dist.all_reduce(self._flat)
            dist.all_reduce(loss)
        # By parameter first: one fp32 sum over everything is off in the sixth digit.
        norm = torch.stack(torch._foreach_norm([p.grad for _, p in self._named if p.grad is not None])).norm()
        is_good = torch.isfinite(loss) & torch.isfinite(norm) & (loss <= guard.limit())
        if self._recipe.grad_clip:
            self._flat.mul_((self._recipe.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        # Zeros instead of NaN, as 0 · NaN would still reach what is masked by multiplication.
        self._flat.copy_(torch.where(is_good, self._flat, torch.zeros_like(self._flat)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.found_inf = (~is_good).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        guard.push(loss, is_good)
        return Stepped(loss, norm, is_good)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self.module.named_parameters()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """`<parameter>/<key>`: exp_avg, exp_avg_sq and step, or momentum_buffer."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._named:
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = torch.as_tensor(value).detach().float().cpu().clone()
        return found

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.copy_(weights[name])
        named = dict(self._named)
        self.optimizer.state.clear()
        for key, value in optimizer_state.items():
            name, kind = key.rsplit("/", 1)
            self.optimizer.state[named[name]][kind] = value.clone().to(self.device)

    def close(self) -> None:
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
