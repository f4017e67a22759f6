"""The base of all configuration, and the one way to turn a value into bytes that can be hashed."""

import json
import math
from collections.abc import Collection
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, ValidationInfo, field_validator, model_validator
from pydantic_core import core_schema

from contract.errors import ConfigError


class Frozen(BaseModel):
    """Typed, immutable settings. Unknown keys are refused; what a stage sees of them is its identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        """YAML's yes, on and true would count as 1."""
        if isinstance(value, bool) and not _may_be(bool, cls.model_fields[str(field.field_name)].annotation):
            raise ValueError(f"Input should be no {str(value).lower()}: write a number, a text or a list")
        return value


def _may_be(kind: type, annotation: Any) -> bool:
    return annotation is kind or any(_may_be(kind, each) for each in get_args(annotation))


Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share between 0 and 1, both included."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator of numbers takes, NumPy's, torch's and Python's."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""The share of a running mean that stays at a step: at 1 it would never learn."""


def one_of(names: Collection[str]) -> GetPydanticSchema:
    """Makes `Annotated[str, one_of(names)]` what Literal is for names that are written out."""
    return GetPydanticSchema(lambda source, handler: core_schema.literal_schema([*names]))


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8.

    Raises ConfigError for a value that has no stable form (a callable, a NaN, an object known by its repr alone),
    as a fingerprint of it would change from one process to the next.
    """
    return json.dumps(_stable(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _stable(value: object, where: str) -> object:
    if isinstance(value, Frozen):
        return _stable(value.model_dump(mode="json"), where)
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where} has a key that is not a string; write it as a string")
        return {key: _stable(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stable(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}: a fingerprint needs finite numbers")
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"{where} is a {type(value).__name__}, which has no stable form; give a number, string or list")


Pool = Annotated[str, Field(pattern=r"^[^/]+(/[^/]+)?$")]
"""A Prefect work pool, or one queue of it: `gpu`, `gpu/on-demand`."""


class RunOn(Frozen):
    """The pools that `pretrain/full` sends its parts to, so that no GPU is paid for while text is cleaned. A place, and no identity."""

    curate: Pool | None = None
    """Where raw text becomes training blocks; unset, where the flow itself runs."""
    train: Pool | None = None
    """Where the model is trained; unset, where the flow itself runs."""
    align: Pool | None = None
    """As train where unset."""
    evaluate: Pool | None = None
    """As train where unset."""
    export: Pool | None = None
    """As train where unset."""

    def pool(self, flow: str) -> str | None:
        named: str | None = getattr(self, flow)
        return named or (None if flow == "curate" else self.train)

    def pools(self) -> dict[str, str]:
        """Pool by part, of those that go somewhere."""
        return {flow: pool for flow in type(self).model_fields if (pool := self.pool(flow))}


class RunOptions(Frozen):
    """Speed and place only. Nothing here enters a fingerprint; what can move a numeric stage's last bits is its execution class."""

    workers: int | None = Field(default=None, ge=1, le=4096)
    """Processes that map over parts; the machine's cores when unset."""
    memory_bytes: int = Field(default=2**30, ge=2**27, le=2**50)
    """Ray's object store, at most."""
    ray_address: str | None = Field(default=None, pattern=r"^(auto|local|(ray://)?[^\s/:]+:[0-9]{1,5})$")
    """A running Ray cluster; unset, Ray is started on this machine when the first data stage needs it."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: a GPU a rank, NVIDIA's or, with torch's build for ROCm, AMD's."""
    dtype: str | None = Field(default=None, pattern="^(float32|bfloat16)$")
    """float32 or bfloat16. Unset, like the next three: what calibrate found to be fastest where it ran, else float32, 1, 1 and false."""
    ranks: int | None = Field(default=None, ge=1, le=65_536)
    """Data-parallel processes of a training stage, on all machines together."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """Threads a rank."""
    compile: bool | None = None
    """Whether torch compiles the model; its first step costs a quarter of a minute and more."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences a rank and forward pass; the rank's whole share of the batch when unset."""
    checkpoint_every_steps: int = Field(default=100, ge=1)
    stall_minutes: float = Field(default=30, gt=0, le=100_000)
    """A training stage with no step for this long is ended and resumed from its last checkpoint."""
    nodes: int = Field(default=1, ge=1, le=4096)
    """Machines that the ranks of a training stage are spread over, the flow's own first: of the Ray cluster at `ray_address`, or, under
    Prefect and without one, of the pool that the run is in."""

    @model_validator(mode="after")
    def _nodes_share_the_ranks(self) -> "RunOptions":
        if self.nodes > 1 and (self.ranks is None or self.ranks % self.nodes):
            raise ValueError(f"run.ranks is {self.ranks} and run.nodes {self.nodes}; set the ranks, to a multiple of the nodes")
        return self
