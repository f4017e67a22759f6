"""The one loop of pretraining, SFT, reward modelling and DPO. Imports with torch and NumPy alone.

Everything that decides what is computed next is in `Progress` and the engine, and both are in a checkpoint: after kill -9 the
resumed run gives the same losses and weights to the bit. Clock, storage and signals are passed in.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.checkpoint_folder import Saver, Snapshot, set_rng_state
from training.engine_plain import Engine, Stepped
from training.guard import Guard
from training.loader import Rows, global_batch, rank_share
from training.metrics import Report
from training.objectives import Objective
from training.options import Schedule, Skipping
from training.schedules import share_of_peak


class Stopped(Exception):
    """Asked to stop: a checkpoint is saved, the same call goes on from there."""


class Diverged(Exception):
    """Bad steps again and again, also on other data."""


@dataclass(frozen=True)
class Plan:
    """What to do, in numbers."""

    seed: int
    batch_size: int
    micro_size: int
    peak: float
    schedule: Schedule
    skipping: Skipping
    validation_every: int
    checkpoint_every: int
    identity: dict[str, Any]
    """Config digest and execution class, kept in each checkpoint and compared when one is loaded."""


@dataclass
class Progress:
    """Where a run is, beside weights, optimizer state and RNG."""

    step: int = 0
    data_offset: int = 0
    """How far the data is ahead of the steps: what rollbacks passed over."""
    tokens: int = 0
    bad_in_a_row: int = 0
    rollbacks: list[dict[str, int]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Loop:
    engine: Engine
    objective: Objective
    plan: Plan
    saver: Saver
    report: Report
    fresh: Callable[[], dict[str, Tensor]]
    """The weights that the run starts from, for a rollback before the first checkpoint."""
    should_stop: Callable[[], bool] = lambda: False

    def run(self) -> Progress:
        """Train to the end, from the latest checkpoint when there is one. Raises Stopped, Diverged."""
        self._guard = Guard(self.plan.skipping.sigmas, self.engine.device)
        self._progress = Progress()
        self._waiting: list[tuple[int, float, int, Stepped]] = []
        if self._restore():
            self.report.resumed(self._progress.step)
        else:
            self._validate()
        while self._progress.step < self.plan.schedule.max_steps:
            self._step()
            # On a GPU a loss is read one step late, so that the device is never waited for.
            gone_bad = self._settle(keep=0 if self.engine.device.type == "cpu" else 1)
            if gone_bad is None and self._is_boundary():
                gone_bad = self._settle(keep=0)
            if gone_bad is not None:
                self._go_back(gone_bad)
            else:
                self._boundary()
        self.saver.join()
        return self._progress

    def _step(self) -> None:
        plan, at = self.plan, self._progress
        places = global_batch(plan.seed, at.step + at.data_offset, len(self.objective.rows), plan.batch_size)
        rows = self.objective.rows[places]
        weight = self.objective.weight(rows)
        share = rank_share(rows, self.engine.rank, self.engine.ranks)
        batches = [self.objective.batch(part, weight) for part in cut(share, plan.micro_size)]
        rate = share_of_peak(plan.schedule, at.step)
        stepped = self.engine.step(batches, self.objective.loss, rate, self._guard)
        at.tokens += self.objective.tokens(rows)
        self._waiting.append((at.step, rate, at.tokens, stepped))
        at.step += 1

    def _settle(self, keep: int) -> int | None:
        """Read the results of all but the last `keep` steps into the history; the step at which too many were bad, or None."""
        at, gone_bad = self._progress, None
        while len(self._waiting) > keep:
            step, rate, tokens, stepped = self._waiting.pop(0)
            loss, is_good = float(stepped.loss), bool(stepped.is_good)
            record = {"step": step, "loss": finite(loss), "lr": rate * self.plan.peak, "tokens": tokens}
            at.history.append({**record, "grad_norm": finite(float(stepped.grad_norm)), "skipped": not is_good})
            self.report.step(step + 1, tokens, loss=record["loss"], lr=record["lr"], skipped=not is_good)
            at.bad_in_a_row = 0 if is_good else at.bad_in_a_row + 1
            if at.bad_in_a_row >= self.plan.skipping.limit and gone_bad is None:
                gone_bad = step
        return gone_bad

    def _is_boundary(self) -> bool:
        step = self._progress.step
        return step == self.plan.schedule.max_steps or not step % self.plan.validation_every or not step % self.plan.checkpoint_every

    def _boundary(self) -> None:
        """After a step: validation, checkpoint, and the wish to stop, in this order, so that a checkpoint holds its validation."""
        step, is_last = self._progress.step, self._progress.step == self.plan.schedule.max_steps
        if is_last or not step % self.plan.validation_every:
            self._validate()
        is_due = not step % self.plan.checkpoint_every and not is_last
        wants_stop = self.engine.any(self.should_stop()) and not is_last
        if is_due or wants_stop:
            gone_bad = self._settle(keep=0)
            if gone_bad is not None:
                self._go_back(gone_bad)
                return
            self._save()
        if wants_stop:
            self.saver.join()
            raise Stopped(f"checkpoint of step {step:,} saved")

    def _validate(self) -> None:
        figures = validate(self.engine, self.objective, self.plan.micro_size)
        if figures:
            self._progress.validation.append({"step": self._progress.step, **figures})

    def _save(self) -> None:
        state = {**asdict(self._progress), "guard": self._guard.state(), **self.plan.identity}
        self.saver.save(self._progress.step, Snapshot(self.engine.weights(), self.engine.optimizer_state(), state))

    def _restore(self) -> bool:
        """Take up the latest checkpoint; False when there is none."""
        found = self.saver.latest()
        if found is None:
            return False
        state = found.state
        check_identity(state, self.plan.identity, self.report)
        self._progress = Progress(**{name: state[name] for name in Progress.__dataclass_fields__})
        self._guard.load(state["guard"])
        self.engine.load(found.weights, found.optimizer)
        set_rng_state(state["rng"])
        return True

    def _go_back(self, bad_step: int) -> None:
        """To the last checkpoint (or the start), and past the data that did it. The data goes on after `bad_step`."""
        at = self._progress
        rollbacks, passed = at.rollbacks, bad_step + 1 + at.data_offset
        if len(rollbacks) >= self.plan.skipping.most_rollbacks:
            raise Diverged(
                f"{at.bad_in_a_row} bad steps in a row at step {bad_step:,} after going back {len(rollbacks)} times; "
                "lower the learning rate, or look at the data of these steps"
            )
        self.saver.join()
        self.engine.any(False)  # all ranks wait until rank 0 has published
        self._waiting.clear()
        if not self._restore():
            self._progress, self._guard = Progress(), Guard(self.plan.skipping.sigmas, self.engine.device)
            self.engine.load(self.fresh(), {})
        at = self._progress
        at.bad_in_a_row, at.data_offset = 0, passed - at.step
        at.rollbacks = [*rollbacks, {"from": bad_step, "to": at.step, "data_offset": at.data_offset}]
        self.report.warn(
            f"{self.plan.skipping.limit} bad steps in a row up to step {bad_step:,}: going on from step {at.step:,}, past that data"
        )


def check_identity(state: dict[str, Any], identity: dict[str, Any], report: Report) -> None:
    if state["config_digest"] != identity["config_digest"]:
        raise ValueError(
            f"the checkpoint is of configuration {state['config_digest'][:12]}, this run's is {identity['config_digest'][:12]}"
        )
    if state["execution"] != identity["execution"]:
        changed = sorted(key for key in identity["execution"] if state["execution"].get(key) != identity["execution"][key])
        report.warn(f"the checkpoint was made under another execution class ({', '.join(changed)}): the last bits may differ from now on")


def cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def validate(engine: Engine, objective: Objective, micro_size: int) -> dict[str, float]:
    """Means over the validation rows, all ranks together; empty when there are none."""
    rows = objective.validation
    if not len(rows):
        return {}
    sums = torch.zeros(len(objective.names), dtype=torch.float64)
    own = cut(rows[engine.rank :: engine.ranks], micro_size)
    passes = math.ceil(math.ceil(len(rows) / engine.ranks) / micro_size)  # as many on each rank: ZeRO 3 gathers weights in each
    with engine.no_grad():
        for i in range(passes):
            measured = objective.measure(engine.model, objective.batch(own[i] if i < len(own) else rows[:1], 1.0))
            if i < len(own):
                sums += measured.double().cpu()
    sums = engine.total(sums.to(engine.device)).cpu()
    return {name: float(value / sums[-1]) for name, value in zip(objective.names[:-1], sums[:-1], strict=True)}


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
