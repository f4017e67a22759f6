"""calibrate: how fast this machine trains, measured for some seconds before anything is trained.

The one stage that is not pure: the machine's kind stands in its fingerprint for what is measured. What follows is pure again: a
training stage whose steps are unset takes as many as its `seconds` hold by these figures, and no clock is looked at while it trains.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import psutil

from contract.config import Frozen, RunOptions
from contract.errors import ConfigError
from contract.ledger import Ledger
from engine.launch import run_child
from engine.stage import Output, stage
from models.config import ModelConfig
from store.artifact import Artifact
from store.storage import Storage
from training.config import EngineName, TrainConfig
from training.options import Place

SECONDS_A_TRIAL = 2.5
BYTES_A_RANK = 2**30
"""A rank of a small model with torch in it; 0.8 to 1.0 GB on two cores (2026-11-21)."""
BYTES_FOR_OTHERS = 3 * 2**30
NATIVE_BF16 = {"amx_bf16", "avx512_bf16"}
"""CPU flags without which bfloat16 is emulated, and slower than float32."""
LEAST_GAIN_BY_COMPILING = 0.15
"""Of a step's time: every rank compiles for a quarter of a minute before its first one."""
SHARE_FOR_STEPS = 0.9
"""Of a stage's seconds; the rest goes to validation and checkpoints."""


class Speed(Frozen):
    """What the time of a step depends on."""

    engine: EngineName
    zero_stage: int
    optimizer: Literal["adamw", "muon"]
    model: ModelConfig
    vocab_size: int
    global_batch_tokens: int


def _speed(config: Any) -> Speed:
    train: TrainConfig = config.train
    names = ("engine", "zero_stage", "optimizer", "global_batch_tokens")
    return Speed(**{name: getattr(train, name) for name in names}, model=config.model, vocab_size=config.tokenizer.vocab_size)


@dataclass(frozen=True)
class Machine:
    """What it computes with."""

    cores: int
    memory_bytes: int
    """The machine's, or the container's where that is less."""
    vector_units: frozenset[str]
    """Those of the CPU's flags that make one machine's arithmetic faster than another's."""
    has_compiler: bool
    """A C++ compiler: torch's compiled code on a CPU is C++."""

    @classmethod
    def here(cls) -> "Machine":
        limit = Path("/sys/fs/cgroup/memory.max")
        held = limit.read_text().strip() if limit.exists() else "max"
        memory = min(int(psutil.virtual_memory().total), int(held) if held.isdigit() else 2**63)
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
        units = frozenset(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sve", "asimd", "bf16")))
        has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
        return cls(len(os.sched_getaffinity(0)), memory, units, has_compiler)

    def kind(self) -> dict[str, str]:
        return {
            "cores": str(self.cores),
            "memory_gib": str(round(self.memory_bytes / 2**30)),
            "vector_units": " ".join(sorted(self.vector_units)),
            "compiler": str(self.has_compiler),
        }


def _kind(config: Speed, storage: Storage) -> dict[str, str]:
    return Machine.here().kind() | {"torch": version("torch")}


@stage(version=2, config=_speed, external=_kind, exclusive=True)
def calibrate(config: Speed, out: Output) -> Ledger:
    """calibration.json: the fastest place of those tried, and what a step costs there, fixed and by token.

    Settings of `run` that are given are not tried otherwise. A step is taken to cost a + b · tokens seconds: a is the optimizer and
    the ranks' exchange, seen at a batch of one row a rank. Compiling is tried where bfloat16 is native: in float32 the products
    are most of a step, and compiling gained nothing beyond the noise (AVX2, 2 cores; docs/experiments.md).
    """
    batch_size = max(1, config.global_batch_tokens // config.model.context)
    machine = Machine.here()
    trials = [_trial(where, config, batch_size, out) for where in places(out.run, batch_size, machine)]
    best = min(trials, key=lambda trial: trial.seconds)
    if out.run.compile is None and machine.has_compiler and best.place.dtype == "bfloat16":
        best = _compiled(best, config, batch_size, out, trials)
    chosen = {
        "place": {name: getattr(best.place, name) for name in ("dtype", "ranks", "threads", "compile")},
        "fixed_s": best.fixed,
        "token_s": (best.seconds - best.fixed) / (batch_size * config.model.context),
        "step_s": best.seconds,
    }
    out.json("calibration.json", chosen)
    out.figures |= chosen | {"tried": [{**asdict(trial.place), "step_s": round(trial.seconds, 4)} for trial in trials]}
    tokens_per_s = batch_size * config.model.context / best.seconds
    out.warn(f"{described(best.place)}: {tokens_per_s:,.0f} training tokens/s, the fastest of {len(trials)} ways tried")
    return Ledger()


@dataclass(frozen=True)
class Trial:
    place: Place
    seconds: float
    """A step of the whole batch."""
    fixed: float
    """The part of it that does not grow with the tokens."""


def _trial(where: Place, config: Speed, batch_size: int, out: Output) -> Trial:
    large, small = _measured(where, config, [batch_size, where.ranks], out)
    row_s = max(large - small, 0.0) / max(batch_size - where.ranks, 1)
    # At most half a step, as no row is free: on a busy machine the small batch has been seen to take as long as the large one.
    return Trial(where, large, min(max(small - where.ranks * row_s, 0.0), large / 2))


def _compiled(eager: Trial, config: Speed, batch_size: int, out: Output, trials: list[Trial]) -> Trial:
    """The same place compiled, when that gains enough; one size alone, as each is compiled anew."""
    where = replace(eager.place, compile=True)
    [seconds] = _measured(where, config, [batch_size], out)
    trials.append(Trial(where, seconds, min(eager.fixed, seconds / 2)))
    return trials[-1] if seconds < (1 - LEAST_GAIN_BY_COMPILING) * eager.seconds else eager


def _measured(where: Place, config: Speed, rows: list[int], out: Output) -> list[float]:
    """Seconds of a step of each number of rows over all ranks."""
    folder = out.scratch / f"trial-{len(list(out.scratch.iterdir()))}"
    train = TrainConfig.model_construct(**TrainConfig().model_dump() | config.model_dump(exclude={"model", "vocab_size"}))
    spec = {
        "place": asdict(where),
        "config": train.model_dump(mode="json"),
        "shape": asdict(config.model.shape(config.vocab_size)),
        "rows": rows,
        "seconds": SECONDS_A_TRIAL,
        "out": str(folder),
        "steps": 0,
        "unit": "steps",
    }
    run_child("training.measure", spec, out, ranks=where.ranks, threads=where.threads)
    seconds = json.loads((folder / "result.json").read_text())["seconds"]
    return [seconds[str(size)] for size in rows]


def places(run: RunOptions, batch_size: int, machine: Machine) -> list[Place]:
    """What is worth a trial: the cores as ranks of one, two or four threads or as one rank, in the dtypes that the machine has."""
    most = max(1, (machine.memory_bytes - BYTES_FOR_OTHERS) // BYTES_A_RANK)
    wanted = [run.ranks] if run.ranks else sorted({max(1, machine.cores // threads) for threads in (1, 2, 4, machine.cores)}, reverse=True)
    ranks = [count for count in wanted if batch_size % count == 0 and (run.ranks or count <= most)]
    if not ranks:
        raise ConfigError(f"run.ranks is {run.ranks} and a step has {batch_size} rows; make the rows a multiple of the ranks")
    native = ["float32", *(["bfloat16"] if run.device != "cpu" or NATIVE_BF16 & machine.vector_units else [])]
    dtypes = [run.dtype] if run.dtype else native
    return [
        Place(run.device, dtype, count, run.threads or max(1, machine.cores // count), run.micro_batch_size, bool(run.compile))
        for count in ranks
        for dtype in dtypes
    ]


def place(run: RunOptions, calibration: Artifact | None, is_long: bool = False) -> Place:
    """Where a stage runs: as told, else as calibrated, else one float32 thread. A short one does not compile unless it is told to."""
    found = dict(calibration.json("calibration.json")["place"]) if calibration else {}
    found["compile"] = found.get("compile", False) and is_long
    plain: dict[str, Any] = {"dtype": "float32", "ranks": 1, "threads": 1, "compile": False}
    told = {name: getattr(run, name) for name in plain if getattr(run, name) is not None}
    return Place(device=run.device, micro_batch_size=run.micro_batch_size, nodes=run.nodes, **plain | found | told)


def steps_in(seconds: float, tokens: float, updates: int, calibration: Artifact | None, setting: str) -> int:
    """Steps that fit, each of so many tokens (there and back) and so many updates of the weights. Raises ConfigError uncalibrated."""
    if calibration is None:
        raise ConfigError(f"{setting} is unset, and there is no calibration to fit it by; set it")
    found = calibration.json("calibration.json")
    return max(1, math.floor(SHARE_FOR_STEPS * seconds / (found["fixed_s"] * updates + found["token_s"] * tokens)))


def described(where: Place) -> str:
    many = "1 process" if where.ranks == 1 else f"{where.ranks} processes"
    return f"{many} of {where.threads} thread{'s' * (where.threads > 1)}, {where.dtype}{', compiled' * where.compile}"
