"""Plain values that the loop and the engines are given. Standard library alone, so that they run where pydantic is not."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a gradient becomes an update."""

    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    embedding_learning_rate: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its peak (training/schedules.py)."""

    max_steps: int
    warmup_steps: int = 0
    decay: str = "cosine"
    decay_fraction: float = 1.0
    final_fraction: float = 0.1


@dataclass(frozen=True)
class Skipping:
    """When a step is bad, and what follows."""

    limit: int = 10
    sigmas: float = 8.0
    most_rollbacks: int = 3


@dataclass(frozen=True)
class Place:
    """Where and how fast; with torch's version this is the execution class of a numeric stage."""

    device: str = "cpu"
    dtype: str = "float32"
    ranks: int = 1
    threads: int = 1
    micro_batch_size: int | None = None
    compile: bool = False
    nodes: int = 1

    def execution_class(self, torch_version: str) -> dict[str, Any]:
        """`nodes` only where there are several: one machine's class stays what it was before there could be more."""
        return {name: value for name, value in asdict(self).items() if name != "nodes" or value > 1} | {"torch": torch_version}


def micro_size(share: int, wanted: int | None) -> int:
    """Rows a forward pass: the largest divisor of the rank's share that is at most `wanted`, so that all passes are alike."""
    most = min(share, wanted or share)
    return next(size for size in range(most, 0, -1) if share % size == 0)
