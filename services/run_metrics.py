"""/metrics of the report server: what the runs of this clone do, in Prometheus' text format.

Each run keeps a small file up to date (bessemer/live_figures.py), in the foreground and under Prefect. A scrape reads them all. Labels are
flows, presets, stages, states and GPUs, so their number is bounded: of several runs of one flow and preset, the newest is shown.
"""

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from pydantic import Field, ValidationError

from contract.config import Frozen
from contract.own_folders import in_clone

CONTENT_TYPE = CONTENT_TYPE_LATEST
ENDED_S = 24 * 3600.0
"""How long a run that ended is shown."""
STATES = ("running", "completed", "failed", "stopped", "checkpointed", "vanished")
STAGE_STATES = ("running", "ran", "resumed", "cached", "failed", "stopped", "checkpointed", "vanished")
FIGURES = {
    "loss": ("bessemer_training_loss", "Loss of the last step."),
    "reward": ("bessemer_training_reward", "Mean reward of the last PPO iteration."),
    "kl": ("bessemer_training_kl_nats", "KL a token from the reference, last PPO iteration."),
    "lr": ("bessemer_training_learning_rate", "Learning rate of the last step."),
    "tokens_per_s": ("bessemer_training_tokens_per_second", "Training tokens a second, over the last step."),
}
OUTCOMES = ("in", "out", "dropped", "quarantined")
LABEL = re.compile(r"[^A-Za-z0-9_.:/-]")
MOST_LABEL_CHARS = 100
GPU_QUERY = ["--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
GPU_WAIT_S = 5.0


class StageNow(Frozen):
    """A stage of a run, as its file tells it."""

    state: str = Field(pattern=f"^({'|'.join(STAGE_STATES)})$")
    started: float | None = None
    progress: float = 0.0
    seconds: float | None = None
    figures: dict[str, float] = Field(default_factory=dict)
    documents: dict[str, int] = Field(default_factory=dict)


class RunNow(Frozen):
    """The file of a run."""

    flow: str
    preset: str
    pid: int
    process_created: float
    started: float
    updated: float
    state: str = Field(pattern=f"^({'|'.join(STATES)})$")
    stages: dict[str, StageNow]


def folder() -> Path:
    home = Path(os.environ.get("BESSEMER_HOME") or Path(__file__).parents[1])
    return in_clone(home.resolve(), ".cache/services") / "metrics"


def page() -> bytes:
    """What a scrape gets now."""
    registry = CollectorRegistry()
    registry.register(_Runs())
    return generate_latest(registry)


class _Runs:
    """A collector: families are always named, with samples or without, so that a dashboard's queries are valid before the first run."""

    def collect(self) -> Iterator[Metric]:
        runs = list(_newest(_runs(folder())))
        yield from _of_runs(runs)
        yield from _of_stages(runs)
        yield from _of_gpus()

    def describe(self) -> list[Metric]:
        return []


def _runs(where: Path) -> Iterator[RunNow]:
    """Every run that is alive or ended lately; a file that is none, or goes away meanwhile, is left out."""
    for file in sorted(where.glob("*.json")):
        try:
            run = RunNow.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            continue
        if run.state == "running" and not _lives(run):
            stages = {name: stage.model_copy(update=_vanished(stage.state)) for name, stage in run.stages.items()}
            run = run.model_copy(update={"state": "vanished", "stages": stages})
        if run.state == "running" or time.time() - run.updated <= ENDED_S:
            yield run


def _vanished(state: str) -> dict[str, str]:
    return {"state": "vanished"} if state == "running" else {}


def _lives(run: RunNow) -> bool:
    try:
        process = psutil.Process(run.pid)
        return abs(process.create_time() - run.process_created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):
        return False


def _newest(runs: Iterable[RunNow]) -> Iterable[RunNow]:
    found: dict[tuple[str, str], RunNow] = {}
    for run in sorted(runs, key=lambda run: run.started):
        found[_label(run.flow), _label(run.preset)] = run
    return found.values()


def _label(value: object) -> str:
    return LABEL.sub("_", str(value))[:MOST_LABEL_CHARS]


def _of_runs(runs: list[RunNow]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "bessemer_run_state", "1 for the state that the newest run of a flow is in.", labels=["flow", "preset", "state"]
    )
    begun = GaugeMetricFamily("bessemer_run_started_timestamp_seconds", "When it started.", labels=["flow", "preset"])
    heard = GaugeMetricFamily("bessemer_run_updated_timestamp_seconds", "When it last said anything.", labels=["flow", "preset"])
    for run in runs:
        names = [_label(run.flow), _label(run.preset)]
        for each in STATES:
            state.add_metric([*names, each], float(run.state == each))
        begun.add_metric(names, float(run.started))
        heard.add_metric(names, float(run.updated))
    yield from (state, begun, heard)


def _of_stages(runs: list[RunNow]) -> Iterator[Metric]:
    keys = ["flow", "preset", "stage"]
    state = GaugeMetricFamily("bessemer_stage_state", "1 for the state that a stage of the run is in.", labels=[*keys, "state"])
    progress = GaugeMetricFamily("bessemer_stage_progress_ratio", "How much of a stage is done.", labels=keys)
    seconds = GaugeMetricFamily("bessemer_stage_seconds", "Time of a stage in this run.", labels=keys)
    documents = GaugeMetricFamily(
        "bessemer_stage_documents", "Documents of a stage's ledger, by what became of them.", labels=[*keys, "outcome"]
    )
    figures = {key: GaugeMetricFamily(name, text, labels=keys) for key, (name, text) in FIGURES.items()}
    for run in runs:
        for stage, now in run.stages.items():
            names = [_label(run.flow), _label(run.preset), _label(stage)]
            state.add_metric([*names, now.state], 1.0)
            progress.add_metric(names, now.progress)
            if now.seconds is not None or (now.state == "running" and now.started is not None):
                seconds.add_metric(names, now.seconds if now.seconds is not None else time.time() - (now.started or 0.0))
            for outcome in set(OUTCOMES) & now.documents.keys():
                documents.add_metric([*names, outcome], now.documents[outcome])
            for key in figures.keys() & now.figures.keys():
                figures[key].add_metric(names, now.figures[key])
    yield from (state, progress, seconds, documents, *figures.values())


def _of_gpus() -> Iterator[Metric]:
    families = [
        GaugeMetricFamily("bessemer_gpu_utilization_ratio", "Share of the time in which a kernel ran (nvidia-smi).", labels=["gpu"]),
        GaugeMetricFamily("bessemer_gpu_memory_used_bytes", "Memory in use.", labels=["gpu"]),
        GaugeMetricFamily("bessemer_gpu_memory_bytes", "Memory there is.", labels=["gpu"]),
    ]
    for index, *values in _GPUS.rows():
        for family, value, unit in zip(families, values, (0.01, 2.0**20, 2.0**20), strict=False):
            try:
                family.add_metric([_label(index)], float(value) * unit)
            except ValueError:  # "[N/A]", as with MIG
                continue
    yield from families


class _Gpus:
    """nvidia-smi's answer, asked at most every few seconds: many scrapes must not start many processes."""

    def __init__(self) -> None:
        self._lock, self._asked, self._rows = threading.Lock(), -GPU_WAIT_S, list[list[str]]()

    def rows(self) -> list[list[str]]:
        with self._lock:
            if time.monotonic() - self._asked >= GPU_WAIT_S:
                self._rows = self._ask()
                self._asked = time.monotonic()
            return self._rows

    def _ask(self) -> list[list[str]]:
        program = shutil.which("nvidia-smi")
        if program is None:
            return []
        try:
            done = subprocess.run([program, *GPU_QUERY], capture_output=True, text=True, timeout=GPU_WAIT_S, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            return []
        return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()] if done.returncode == 0 else []


_GPUS = _Gpus()
