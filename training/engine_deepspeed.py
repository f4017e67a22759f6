"""DeepSpeed as an engine: ZeRO 0 to 3, fp32 or bf16, AdamW; Muon at ZeRO 0 in fp32. Written for 0.19.8, which is pinned.

Its own checkpoints are not used: ours are by parameter name, so they load under any ZeRO stage and any number of ranks. That
needs private names of DeepSpeed (`_to_working_weights`); tests/training/test_engines.py holds them.
A step reads one scalar back (is the loss finite and no spike?), as its optimizer cannot be masked on the device.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.engine_plain import Batch, Loss, Ranks, Stepped
from training.guard import Guard
from training.optimizers import adamw_groups, muon_groups
from training.options import Place, Recipe

MOMENTS = ("exp_avg", "exp_avg_sq")


def import_deepspeed(device: str) -> Any:
    """DeepSpeed, quiet, for this device, with nothing compiled at start.

    It looks for MPI unless it is told of its rank, and compiles a shared-memory op (24 to 52 s) even for gloo unless that is off.
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        handler.setLevel(logging.ERROR)
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    deepspeed.ops.__compatible_ops__ = dict.fromkeys(ALL_OPS, False)  # asked, it would run the compiler once for each
    return deepspeed


class DeepSpeedEngine(Ranks):
    """Needs an initialised process group, of one rank too (training/process_group.py)."""

    def __init__(
        self, module: nn.Module, recipe: Recipe, place: Place, zero_stage: int, num_micro_batches: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self._deepspeed = import_deepspeed(place.device)
        self.rank, self.ranks = rank, ranks
        self.device = torch.device(place.device)
        self._stage, self._bf16, self._recipe = zero_stage, place.dtype == "bfloat16", recipe
        if self._stage == 0 and self._bf16:
            self._stage = 1  # ZeRO 0 in bf16 hides its master weights; stage 1 costs the same on one rank and has all of it
        module = module.to(self.device)
        self._guarded = self._optimizer(module, recipe, place)
        self._deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        self._guarded.is_skipping = True  # its start may step with gradients of zero, and weight decay would show
        self._engine, _, _, _ = self._deepspeed.initialize(
            model=module, optimizer=self._guarded, config=self._config(num_micro_batches), dist_init_required=False
        )
        self._guarded.is_skipping = False
        self.module = self._engine.module
        if self._engine.zero_optimization():
            self._make_state()
        if place.compile:
            self._engine.compile()

    def _optimizer(self, module: nn.Module, recipe: Recipe, place: Place) -> Any:
        """torch's AdamW (its own would be compiled, 93 s) or DeepSpeed's Muon, with a step that can be skipped."""
        named = list(module.named_parameters())
        if recipe.optimizer == "muon":
            if not place.compile:
                torch.compiler.set_stance("force_eager")  # its update is compiled for each shape otherwise, 10 s and more at the first step
            from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

            groups = [{**group, **({"ns_method": "standard"} if group["use_muon"] else {})} for group in muon_groups(named, recipe)]
            return _skippable(MuonWithAuxAdam)(groups)
        betas = (recipe.beta1, recipe.beta2)
        return _skippable(torch.optim.AdamW)(adamw_groups(named, recipe), betas=betas, eps=recipe.epsilon)

    def _config(self, num_micro_batches: int) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,  # a count only: the batches are ours, and so is their weighting
            "gradient_accumulation_steps": num_micro_batches,
            "gradient_clipping": self._recipe.grad_clip,  # always given: unset it clips at 1.0
            "zero_optimization": {"stage": self._stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,  # it is torch's AdamW, under a name of ours
            "bf16": {"enabled": self._bf16, **({"check_grad_overflow": True} if self._bf16 else {})},
            "steps_per_print": 2**62,
            "wall_clock_breakdown": False,
        }

    @property
    def model(self) -> Callable[..., Any]:
        return self._engine

    @contextlib.contextmanager
    def no_grad(self) -> Any:
        """Without gradients and, for ZeRO 3, without the traces that its prefetching would take from them."""
        self._engine.eval()
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else contextlib.nullcontext()
        with torch.no_grad(), autocast:
            yield
        self._engine.train()

    def step(self, batches: Sequence[Batch], loss_of: Loss, rate: float, guard: Guard) -> Stepped:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        loss = norm = torch.zeros((), device=self.device)
        scale = self.ranks * len(batches)  # undoes its mean over ranks and micro batches: our parts sum to the loss
        is_good = torch.ones((), dtype=torch.bool, device=self.device)
        for i, batch in enumerate(batches):
            part = loss_of(self._engine, batch)
            loss = loss + part.detach()
            self._engine.backward(part.float() * scale)
            if i == len(batches) - 1:
                loss = self.total(loss)
                norm = self._norm_without_zero()
                is_good = torch.isfinite(loss) & torch.isfinite(norm) & (loss <= guard.limit())
                self._guarded.is_skipping = not bool(is_good)
            self._engine.step()
        if self._engine.zero_optimization():
            norm = torch.as_tensor(self._engine.get_global_grad_norm() or 0.0, device=self.device)
            if not self._engine.was_step_applied():  # it found the gradient not finite itself
                is_good = torch.zeros_like(is_good)
        guard.push(loss, is_good)
        return Stepped(loss, norm, is_good)

    def _norm_without_zero(self) -> Tensor:
        """The gradient's norm where no ZeRO optimizer looks at it; else 0, and ZeRO looks."""
        norms = [] if self._engine.zero_optimization() else [p.grad.norm() for _, p in self._named() if p.grad is not None]
        return torch.stack(norms).norm() if norms else torch.zeros((), device=self.device)

    def _named(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self._engine.module.named_parameters()

    def weights(self) -> dict[str, Tensor]:
        """Master weights in fp32; every rank must call."""
        if not self._engine.zero_optimization():
            return {name: p.detach().cpu().clone() for name, p in self._named()}
        return {name: _full(self._deepspeed.utils.safe_get_full_fp32_param(p)) for name, p in self._named()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """As the plain engine's; every rank must call."""
        if not self._engine.zero_optimization():
            return self._plain_state()
        steps = next(iter(self._guarded.state.values()))["step"].cpu()
        found: dict[str, Tensor] = {}
        for name, parameter in self._named():
            for key in MOMENTS:
                found[f"{name}/{key}"] = _full(self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key))
            found[f"{name}/step"] = steps.clone()
        return found

    def _plain_state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, parameter in self._named():
            for key, value in self._guarded.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = torch.as_tensor(value).detach().float().cpu().clone()
        return found

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """Weights, moments and step count by name; every rank must call."""
        if not self._engine.zero_optimization():
            self._load_plain(weights, optimizer_state)
            return
        utils = self._deepspeed.utils
        for name, parameter in self._named():
            utils.safe_set_full_fp32_param(parameter, weights[name].to(self.device))
            for key in MOMENTS:
                value = optimizer_state.get(f"{name}/{key}", torch.zeros_like(weights[name]))
                utils.safe_set_full_optimizer_state(parameter, value.to(self.device), key)
        steps = next((value for key, value in optimizer_state.items() if key.endswith("/step")), torch.zeros(()))
        for state in self._guarded.state.values():
            state["step"].fill_(float(steps))
        self._to_working_weights()

    def _load_plain(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        named = dict(self._named())
        for name, parameter in named.items():
            parameter.copy_(weights[name])
        self._guarded.state.clear()
        for key, value in optimizer_state.items():
            name, kind = key.rsplit("/", 1)
            kept: Any = value.clone().to(self.device)
            if kind == "step" and self._recipe.optimizer == "muon":
                kept = int(value)  # its Adam counts in a plain int
            self._guarded.state[named[name]][kind] = kept

    def _make_state(self) -> None:
        """Give the optimizer the state that its first step would make, and tie it to the parameters.

        Left to DeepSpeed, stages 1 and 2 tie only the first group's (the others have none yet), and before a first step there is
        nothing to load a checkpoint into (KeyError exp_avg).
        """
        zero = self._engine.optimizer
        flat = (
            zero.fp32_partitioned_groups_flat if self._stage == 3 else [p for group in self._guarded.param_groups for p in group["params"]]
        )
        for partition in flat:
            state = self._guarded.state[partition]
            state.clear()
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(partition), exp_avg_sq=torch.zeros_like(partition))
        if self._stage < 3:
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _to_working_weights(self) -> None:
        """Master weights into the low-precision or partitioned ones that the next forward pass reads."""
        optimizer = self._engine.optimizer
        if self._stage == 3:
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
            return
        optimizer.update_lp_params()

    def close(self) -> None:
        """What counts is written before this: teardown has been seen to abort (ZeRO 3, bf16, two ranks)."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def _skippable(kind: type[torch.optim.Optimizer]) -> Any:
    """The optimizer class with a switch that lets a step pass without a trace; all that DeepSpeed does around it stays in order."""

    class Skippable(kind):  # type: ignore[misc,valid-type]
        is_skipping = False

        def step(self, *args: Any, **kwargs: Any) -> Any:
            return None if self.is_skipping else super().step(*args, **kwargs)

    return Skippable


def _full(value: Tensor | None) -> Tensor:
    assert value is not None, "DeepSpeed gave no value for a parameter; its private names moved (0.19.8 is pinned)"
    return value.detach().float().cpu().clone()
