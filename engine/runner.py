"""Runs the stages of a flow's body one after the other (PlainRunner), or only looks them up (PlanRunner).

A body is a plain function of (runner, config) and calls `run(stage, role=artifact, …)`. The third runner, in
`engine/prefect_runner.py`, makes a Prefect task run of each stage.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from contract.errors import InputError, TransientError
from engine.parts import stop_ray
from engine.stage import Engine, Planned, Promise, Stage
from store.artifact import Artifact

TRIES = 3
"""How often a stage is tried if its error can heal (TransientError). Any other error is final."""


Stages = Callable[["Runner"], dict[str, Any]]


class Runner(Protocol):
    def __call__(self, stage: Stage, **inputs: Any) -> Any: ...
    def expecting(self, flow: str) -> "Runner": ...
    def part(self, flow: str, stages: Stages) -> dict[str, Any]:
        """Run the stages of one flow as a part of another: here, or where `run_on` sends them."""


class Stopped(Exception):
    """The stage that --until names is done."""


@dataclass(frozen=True)
class PlainRunner:
    engine: Engine
    until: str | None = None
    expected: str | None = None
    """The flow whose artifacts must be there already; its stages are then never run."""

    def expecting(self, flow: str) -> "PlainRunner":
        return replace(self, expected=flow)

    def part(self, flow: str, stages: Stages) -> dict[str, Any]:
        return stages(self)

    def __call__(self, stage: Stage, **inputs: Artifact | None) -> Artifact:
        planned = self.engine.plan(stage, inputs)
        refuse_missing(planned, self.expected)
        artifact = with_tries(lambda: run_planned(self.engine, planned)[0])
        if stage.name == self.until:
            raise Stopped
        return artifact


def run_planned(engine: Engine, planned: Planned) -> tuple[Artifact, str]:
    """Reuse or make what was planned. Ray is stopped first if the stage needs the whole machine."""
    if planned.stage.exclusive and planned.reuse is None:
        stop_ray()
    return engine.settle(planned)


def with_tries(call: Callable[[], Artifact]) -> Artifact:
    for again in range(1, TRIES):
        try:
            return call()
        except TransientError:
            time.sleep(random.uniform(1, 3) * 2**again)
    return call()


def refuse_missing(planned: Planned, expected: str | None) -> None:
    """Raise InputError if an earlier flow should have made this artifact and has not."""
    if expected is not None and planned.reuse is None:
        raise InputError(
            f"there is no artifact of {planned.stage.name} for this configuration ({planned.why}): "
            f"run {expected}/full first, with the same preset and overrides."
        )


@dataclass
class PlanRunner:
    """Collects what each stage of a body would do. A stage that must run gives a Promise to those after it."""

    engine: Engine
    plans: list[Planned] = field(default_factory=list)

    def expecting(self, flow: str) -> "PlanRunner":
        return self

    def part(self, flow: str, stages: Stages) -> dict[str, Any]:
        return stages(self)

    def __call__(self, stage: Stage, **inputs: Artifact | Promise | None) -> Artifact | Promise:
        planned = self.engine.plan(stage, inputs)
        self.plans.append(planned)
        return planned.reuse or Promise(stage.name, planned.fingerprint)


def plan(engine: Engine, body: Callable[[Any, Any], dict[str, Any]]) -> list[Planned]:
    """Every stage of a flow's body in order, looked up and not run."""
    runner = PlanRunner(engine)
    body(runner, engine.config)
    return runner.plans
