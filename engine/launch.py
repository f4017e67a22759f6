"""Runs the child processes of a stage: starts them, listens to them, and leaves none behind.

A child is `python -m MODULE spec.json`. It writes JSON lines to stdout ({"progress": [done, total, unit], …}, {"warn": …},
{"error": …}), leaves its files in spec["out"], and ends with 0, or with 75 when it was asked to stop and can go on later.
Several ranks are several children (engine/ranks.py). With run.nodes above 1 the ranks of other machines are children of an actor
there (engine/ranks_on_ray.py); the rest is the same.
"""

import json
import queue
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any

from contract.errors import ComeAgain, ConfigError, InputError, PipelineError, StageFailed, TransientError
from engine.ranks import Children, free_port, start_ranks
from engine.stage import Output
from engine.stage_lines import Note

COME_AGAIN = 75
MOST_STALLS = 3
"""How often a child that hangs is killed and started again without further progress, before the stage fails."""
GRACE_S = 10.0
"""How long a child has to end after SIGTERM when another child has failed."""
LAST_LINES = 30
"""How many lines of stderr are logged for a child that ended without an error message of its own."""
ERRORS: dict[str, type[PipelineError]] = {"ConfigError": ConfigError, "InputError": InputError}
"""A child's errors that the user can repair. They keep their type in this process."""
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
"""The second is torch's, for a GPU."""
MAKE_ROOM = "out of memory? Make room, or lower run.micro_batch_size, and run it again"

_running: list[Children] = []


def ask_to_stop() -> bool:
    """Send SIGTERM to every running child. They finish their step, checkpoint and end with 75; then `run_child` raises ComeAgain.

    A signal handler may call it. Returns whether any child was running.
    """
    for children in list(_running):
        children.is_stopping = True
        children.signal(signal.SIGTERM)
    return bool(_running)


def end_all() -> None:
    """Send SIGKILL to every running child: for a run that is being cancelled."""
    for children in list(_running):
        children.signal(signal.SIGKILL)


def run_child(module: str, spec: dict[str, Any], out: Output, ranks: int = 1, threads: int = 1, can_resume: bool = False) -> None:
    """Run the module's ranks to their end, forwarding progress and warnings.

    can_resume: a child that writes no line for run.stall_minutes is killed and started again from its checkpoint, at most
    MOST_STALLS times without further progress. Raises StageFailed with the child's last error, ComeAgain when it ended with 75.
    """
    Path(spec["out"]).mkdir(parents=True, exist_ok=True)
    best, stalls = -1.0, 0
    while True:
        reached = _run_once(module, spec, out, ranks, threads)
        if reached is None:
            return
        stalls = stalls + 1 if reached <= best else 1
        best = max(best, reached)
        where = f"{module} gave no sign of life for {out.run.stall_minutes:g} minutes after {reached:,.0f} steps"
        if not can_resume or stalls > MOST_STALLS:
            raise StageFailed(f"{where} and was ended. Run it again; if it hangs again, raise stall_minutes or lower ranks.")
        out.warn(f"{where}; it was ended and goes on from its last checkpoint")


def _run_once(module: str, spec: dict[str, Any], out: Output, ranks: int, threads: int) -> float | None:
    """None when the children finished, else the step after which they hung."""
    folder = out.scratch / f"launch-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    children = _start(module, spec, folder, ranks, threads, out)
    _running.append(children)
    former = _forward_sigterm()
    try:
        reached = _listen(children, out)
        if reached is not None:
            return reached
        _finish(children, out)
        return None
    finally:
        children.end()
        _running.remove(children)
        if former is not None:
            signal.signal(signal.SIGTERM, former)


def _forward_sigterm() -> Any:
    """Take SIGTERM to this process as a request to stop; returns the former handler, to put it back.

    Only in the main thread, and only where nobody else handles SIGTERM; otherwise returns None.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return None
    return signal.signal(signal.SIGTERM, lambda number, frame: ask_to_stop())


def _start(module: str, spec: dict[str, Any], folder: Path, ranks: int, threads: int, out: Output) -> Children:
    if spec.get("place", {}).get("nodes", 1) > 1:
        from engine.ranks_on_ray import start_on_cluster

        return start_on_cluster(module, spec, folder, ranks, threads, out)
    port = free_port("127.0.0.1") if ranks > 1 else 29500
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "BESSEMER_RENDEZVOUS": str(folder / "rendezvous")}
    return start_ranks(module, spec, folder, range(ranks), meeting | {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": str(threads)})


def _listen(children: Children, out: Output) -> float | None:
    """Forward lines until every rank has closed its stdout: None. Returns the last step if no line came for too long."""
    open_streams, reached, stall_s = len(children.processes), 0.0, out.run.stall_minutes * 60
    last = time.monotonic()
    while open_streams:
        try:
            line = children.lines.get(timeout=0.5)
        except queue.Empty:
            if any(process.poll() not in (None, 0, COME_AGAIN) for process in children.processes):
                _give_up(children)  # the others wait for the one that failed
            if time.monotonic() - last > stall_s:
                return reached
            continue
        if line is None:
            open_streams -= 1
            continue
        last = time.monotonic()
        reached = _forward(line, children, out, reached)
    return None


def _give_up(children: Children) -> None:
    children.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while any(process.poll() is None for process in children.processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    _note_killed(children)
    children.signal(signal.SIGKILL)


def _note_killed(children: Children) -> None:
    if children.killed is None:
        statuses = [process.poll() or 0 for process in children.processes]
        children.killed = [rank for rank, status in enumerate(statuses) if status < 0 and status != -signal.SIGTERM]


def _forward(line: str, children: Children, out: Output, reached: float) -> float:
    """Pass one line of a child on to the output or the errors; returns the step reached."""
    try:
        message = json.loads(line)
    except ValueError:
        message = {"warn": line.strip()}  # a child should write only JSON; any other line must not be lost
    if "progress" in message:
        done, total, unit = message["progress"]
        out.progress(done, total, unit, Note.of(message))
        return float(done)
    if "warn" in message:
        out.warn(message["warn"])
    if "error" in message:
        children.errors.append((message.get("kind", ""), message["error"]))
    return reached


def _finish(children: Children, out: Output) -> None:
    statuses = [process.wait() for process in children.processes]
    if not children.is_stopping and all(status == 0 for status in statuses):
        return
    _note_killed(children)
    # A child that is asked to stop before it handles SIGTERM dies of the signal. It has done nothing yet, so nothing is lost.
    # A child that is asked in its last moment ends with 0. It counts as stopped too: nobody asks a second time.
    may_come_again = (0, COME_AGAIN, -signal.SIGTERM) if children.is_stopping else (0, COME_AGAIN)
    if all(status in may_come_again for status in statuses):
        raise ComeAgain("checkpointed; the same command goes on from here")
    if lost := [machine.lost for machine in children.machines if machine.lost]:
        raise TransientError(f"{out.attempt.stage}: {lost[0]}; it goes on from the last checkpoint with another machine")
    own = [] if children.killed else children.errors
    kind, sentence = own[-1] if own else ("", _last_words(children, statuses, out))
    if kind in OUT_OF_MEMORY:
        sentence = f"{MAKE_ROOM} ({sentence})"
    raise ERRORS.get(kind, StageFailed)(f"{out.attempt.stage}: {sentence}" if kind not in ERRORS else sentence)


def _last_words(children: Children, statuses: list[int], out: Output) -> str:
    """How the killed rank ended, or else the first that failed. The end of its stderr goes into the run's log."""
    first = next(i for i, status in enumerate(statuses) if status not in (0, COME_AGAIN))
    rank = children.killed[0] if children.killed else first
    lines = children.stderr[rank].read_text(errors="replace").strip().splitlines()
    if lines:
        out.warn(f"rank {rank} said last:\n" + "\n".join(lines[-LAST_LINES:]))
    if statuses[rank] == -signal.SIGKILL:
        return f"rank {rank} was ended by SIGKILL: {MAKE_ROOM}"
    ended = f"was ended by {signal.Signals(-statuses[rank]).name}" if statuses[rank] < 0 else f"ended with {statuses[rank]}"
    why = f": {lines[-1]}. The log has its last lines; run it again" if lines else " and said nothing; run it again"
    return f"rank {rank} {ended}{why}"
