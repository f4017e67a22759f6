"""Runs each stage as a Prefect task run. The artifact is looked up first, so that the task run's name can say `cached`.

Prefect keeps none of our results (NO_CACHE): the engine alone decides what is done. Only errors that can heal are retried. An error that
has a sentence is that sentence, once; only a fault of ours gets a traceback. Also here: what a flow run does on SIGTERM, and the journal
that writes to Prefect's log and artifacts.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

import prefect.flow_engine
import prefect.runtime
from prefect import get_client, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Completed, Failed

from contract.child_processes import kill_below
from contract.errors import ComeAgain, PipelineError, TransientError, has_a_sentence, said
from engine.launch import ask_to_stop, end_all
from engine.runner import TRIES, PlanRunner, Stages, refuse_missing, run_planned
from engine.stage import Engine, Stage
from engine.stage_lines import Note, row
from evaluation.charts import as_image, curve
from store.artifact import Artifact
from store.run_records import CHECKPOINTED, end_open

log = logging.getLogger("bessemer")

RETRY_DELAYS_S = [2.0, 8.0]
SILENT_S = 10
"""How often a stage logs its progress. A stage that takes less time logs only its one line."""
PICTURE_S = 15
"""The time between two drawings of a stage's curve."""
SETTLE_S = 8
"""How long this process tries to tell the server that its run stops. Then it ends, and the next worker corrects the run at its start."""
COME_BACK_S = 3
"""When the run may start again: later than its worker takes to stop."""


@dataclass(frozen=True)
class PrefectRunner:
    engine: Engine
    expected: str | None = None
    sender: Callable[[str], Callable[[], None] | None] = lambda flow: None
    """Gives, for a part that runs in another pool, a call that sends it there and waits for it; None for any other part."""

    def expecting(self, flow: str) -> "PrefectRunner":
        return replace(self, expected=flow)

    def part(self, flow: str, stages: Stages) -> dict[str, Any]:
        """Send a part away only if one of its stages must run: a machine would be started to say `cached`."""
        send = self.sender(flow)
        if send is not None:
            preview = PlanRunner(self.engine)
            stages(preview)
            if any(planned.reuse is None for planned in preview.plans):
                send()
                return stages(self.expecting(flow))
        return stages(self)

    def __call__(self, stage: Stage, **inputs: Artifact | None) -> Artifact:
        planned = self.engine.plan(stage, inputs)
        refuse_missing(planned, self.expected)
        name = f"{stage.name} {planned.fingerprint[:12]}" + (" cached" if planned.reuse else "")

        @task(
            name=stage.name,
            task_run_name=name,
            cache_policy=NO_CACHE,
            retries=TRIES - 1,
            retry_delay_seconds=RETRY_DELAYS_S,
            retry_jitter_factor=0.5,
            retry_condition_fn=_can_heal,
        )
        def run_stage() -> Any:
            try:
                artifact, state = run_planned(self.engine, planned)
            except ComeAgain:
                _leave()
            except (PipelineError, OSError) as error:
                if not has_a_sentence(error):
                    raise
                return _once.failed(error)  # raised, it would have Prefect's words before its own
            if state == "cached":
                return Completed(name="Cached", message=f"reused {artifact.where()}", data=artifact)
            create_markdown_artifact(summary(artifact), key=f"stage-{_key(stage.name)}", description=artifact.where())
            if state == "resumed":
                return Completed(name="Resumed", message="went on from what an earlier attempt had done", data=artifact)
            return artifact

        artifact: Artifact = run_stage(return_state=True).result()
        return artifact


def ending_in_a_sentence(body: Callable[[], None]) -> State | None:
    """Run a flow's body. On an error that has a sentence, log that and return Failed with it as the whole message.

    The state holds the error, so that the process ends as if it had been raised.
    """
    for name in PREFECT_LOGGERS:
        logging.getLogger(name).addFilter(_once)
    try:
        body()
    except (PipelineError, OSError) as error:
        if not has_a_sentence(error):
            raise
        log.error(said(error))
        return Failed(message=said(error), data=error)
    return None


class SaidOnce(logging.Filter):
    """For Prefect's own loggers: an error that has a sentence is logged by us alone, without its traceback and without its text again."""

    def __init__(self) -> None:
        super().__init__()
        self._sentences: set[str] = set()

    def failed(self, error: Exception) -> State:
        """The state of a task or flow run that ends by this error. Raise one that can heal: Prefect then tells of the next try."""
        self._sentences.add(said(error))
        if isinstance(error, TransientError):
            raise error
        return Failed(message=said(error), data=error)

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith(FINISHED) and any(repr(sentence)[1:-1] in record.msg for sentence in self._sentences):
            record.msg = FINISHED
        return record.exc_info is None or not has_a_sentence(record.exc_info[1])


FINISHED = "Finished in state Failed"
_once = SaidOnce()
PREFECT_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


def stop_on_sigterm(on_cancel: Callable[[], None] = lambda: None) -> None:
    """On SIGTERM (a spot notice, a worker that stops) checkpoint, so that any worker can resume the run. A cancelled run just ends.

    Call it in the flow's main thread. The process ends with 0, because the worker takes any other exit for a crash.
    """

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
        signal.alarm(SETTLE_S)
        state = _state()
        if _is_ending(state):
            end_all()
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                on_cancel()
            _exit("stopped", "cancelled")
        signal.alarm(0)
        if not ask_to_stop():  # with a child, its stage gets ComeAgain and leaves then
            _leave()

    signal.signal(signal.SIGTERM, stop)


def _state() -> State | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(prefect.runtime.flow_run.id).state


def _is_ending(state: State | None) -> bool:
    return state is None or state.is_final() or state.is_cancelling()


def _leave() -> NoReturn:
    """Hand the run back to its pool and end this process."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(SETTLE_S)
    end_all()
    _no_more_heartbeats()
    if _is_ending(_state()):
        _exit("stopped", "cancelled")
    when = datetime.now(UTC) + timedelta(seconds=COME_BACK_S)
    state: State = AwaitingRetry(scheduled_time=when, message="Stopped by SIGTERM; goes on from here")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(prefect.runtime.flow_run.id, state, force=True)
    _exit(*CHECKPOINTED)


def _no_more_heartbeats() -> None:
    """Stop the heartbeats. If one came after AwaitingRetry, the server would expect another, and end a run that only waits for a worker.

    Prefect's thread that sends them cannot be asked to stop (3.8.8), so the function that it calls is replaced.
    """
    prefect.flow_engine.emit_event = lambda **_: None  # type: ignore[attr-defined]


def _exit(state: str, message: str) -> NoReturn:
    """End the process. The server knows the state; the run's record in the store gets it too, unless that takes too long."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.alarm(SETTLE_S)
    kill_below()
    end_open(state, message)
    os._exit(0)


def _can_heal(_task: Any, _run: Any, state: Any) -> bool:
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False


def summary(artifact: Artifact) -> str:
    """An artifact's ledger and figures as Markdown."""
    lines = [
        f"**{artifact.stage}** `{artifact.fingerprint[:12]}`, {artifact.seconds:.1f} s, {artifact.size:,} bytes",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    for unit, count in artifact.manifest["ledger"].items():
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in count["dropped"].items() if n)
        lines.append(f"| {unit} | in {count['in']:,}, out {count['out']:,}" + (f", dropped: {dropped}" if dropped else "") + " |")
    lines += [f"| {key} | {value:,} |" for key, value in artifact.figures.items() if isinstance(value, int | float)]
    return "\n".join(lines)


class PrefectJournal:
    """Writes lines into the run's log. A long stage also gets one progress artifact and one picture, which are kept up to date."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._started = self._logged = self._drawn = time.monotonic()
        self._progress: UUID | None = None
        self._picture: UUID | None = None
        self._curve: tuple[str, list[float], list[float]] = ("", [], [])

    def started(self, stage: str, fingerprint: str, why: str) -> None:
        self._forget()

    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None:
        now = time.monotonic()
        self._note(done, note)
        if now - self._logged < SILENT_S and (done < total or self._progress is None):
            return
        self._logged = now
        percent = 100.0 * done / max(total, 1)
        text = f"{stage}: {done:,.0f} of {total:,.0f} {unit} {note}".strip()
        log.info(text)
        self._show(stage, percent, text)
        if now - self._drawn > PICTURE_S or (done >= total and self._picture is not None):
            self._drawn = now
            self._draw(stage, text)

    def warn(self, stage: str, text: str) -> None:
        log.warning("%s: %s", stage, text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None:
        line = row(artifact, seconds, state, why)
        log.info(line)
        if self._progress is not None:
            self._show(artifact.stage, 100.0, line)
        self._forget()

    def _note(self, done: float, note: str) -> None:
        """Add a point to the stage's curve: its reward if it has one, else its loss."""
        figures = note.figures if isinstance(note, Note) else {}
        name = next((name for name in ("reward", "loss") if name in figures), None)
        if name is not None:
            if name != self._curve[0]:
                self._curve = (name, [], [])
            self._curve[1].append(done)
            self._curve[2].append(figures[name])

    def _show(self, stage: str, percent: float, text: str) -> None:
        with _beside_the_run("progress"):
            if self._progress is None:
                self._progress = create_progress_artifact(percent, key=f"progress-{_key(stage)}", description=text)  # type: ignore[assignment]
            else:
                update_progress_artifact(self._progress, percent, description=text)

    def _draw(self, stage: str, text: str) -> None:
        name, steps, values = self._curve
        if len(steps) < 2:
            return
        markdown = f"{text}\n\n![{name} by step]({as_image(curve(name, steps, values))})"
        with _beside_the_run("picture"):
            if self._picture is None:
                created = create_markdown_artifact(markdown, key=f"{name}-{_key(stage)}", description=f"{name} of {stage} while it runs")
                self._picture = created  # type: ignore[assignment]
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._picture, ArtifactUpdate(data=markdown))


def _key(stage: str) -> str:
    return stage.replace("_", "-")


@contextmanager
def _beside_the_run(what: str) -> Iterator[None]:
    """A server that is away for a moment must not end a training that runs for hours."""
    try:
        yield
    except Exception as error:
        log.warning("the %s is not shown: %s: %s", what, type(error).__name__, error)
