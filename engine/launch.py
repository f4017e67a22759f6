"""Child processes of a stage: started, listened to, and never left behind.

A child is `python -m MODULE spec.json`. It writes JSON lines to stdout ({"progress": [done, total, unit], …}, {"warn": …},
{"error": …}), leaves its files in spec["out"], and ends with 0, or with 75 when it was asked to stop and can go on later.
Several ranks are several children (engine/ranks.py). With run.nodes above 1 the ranks of other machines are children of an actor
there (engine/ranks_on_ray.py), and all else is the same.
"""

import json
import queue
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any

from contract.errors import ComeAgain, ConfigError, InputError, PipelineError, StageFailed
from engine.ranks import Children, free_port, start_ranks
from engine.stage import Output
from engine.stage_lines import Note

COME_AGAIN = 75
MOST_STALLS = 3
"""So often a child that hangs is ended and started again without having come further; then the stage fails."""
GRACE_S = 10.0
"""How long a child may take to die of SIGTERM once another has failed."""
LAST_LINES = 30
"""Of the stderr of a child that ended without a sentence of its own."""
ERRORS: dict[str, type[PipelineError]] = {"ConfigError": ConfigError, "InputError": InputError}
"""Errors of a child that are the user's to repair, and stay what they are on this side."""
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
"""The latter is torch's, of a GPU."""
MAKE_ROOM = "out of memory? Make room, or lower run.micro_batch_size, and run it again"

_running: list[Children] = []


def ask_to_stop() -> bool:
    """SIGTERM to every running child: they finish their step, checkpoint and end with 75, and `run_child` raises ComeAgain.

    For a SIGTERM handler; safe to call from one. Returns whether there was a child to ask.
    """
    for children in list(_running):
        children.is_stopping = True
        children.signal(signal.SIGTERM)
    return bool(_running)


def end_all() -> None:
    """SIGKILL to every running child: for a run that is being cancelled."""
    for children in list(_running):
        children.signal(signal.SIGKILL)


def run_child(module: str, spec: dict[str, Any], out: Output, ranks: int = 1, threads: int = 1, can_resume: bool = False) -> None:
    """Run the module's ranks to their end, forwarding progress and warnings.

    can_resume: a child without a line for run.stall_minutes is ended and started again (it resumes from its checkpoint), at most
    MOST_STALLS times without coming further. Raises StageFailed with the child's last error line, ComeAgain when it ended with 75.
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
    """In the main thread and where nobody else handles it, SIGTERM to us is a wish to stop; the former handler, to put back."""
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
    """Forward lines until every rank has closed its stdout; the last step, when none came for too long."""
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
    """One line of a child to where it belongs; the step reached."""
    try:
        said = json.loads(line)
    except ValueError:
        said = {"warn": line.strip()}  # a child writes nothing else; what it does write must not be lost
    if "progress" in said:
        done, total, unit = said["progress"]
        out.progress(done, total, unit, Note.of(said))
        return float(done)
    if "warn" in said:
        out.warn(said["warn"])
    if "error" in said:
        children.errors.append((said.get("kind", ""), said["error"]))
    return reached


def _finish(children: Children, out: Output) -> None:
    statuses = [process.wait() for process in children.processes]
    if not children.is_stopping and all(status == 0 for status in statuses):
        return
    _note_killed(children)
    # Asked to stop before it could listen, a child dies of the signal: nothing was done yet, and nothing is lost. One that was asked
    # in its last moment ends with 0, and is stopped all the same: nobody asks a second time.
    may_come_again = (0, COME_AGAIN, -signal.SIGTERM) if children.is_stopping else (0, COME_AGAIN)
    if all(status in may_come_again for status in statuses):
        raise ComeAgain("checkpointed; the same command goes on from here")
    own = [] if children.killed else children.errors
    kind, sentence = own[-1] if own else ("", _last_words(children, statuses, out))
    if kind in OUT_OF_MEMORY:
        sentence = f"{MAKE_ROOM} ({sentence})"
    raise ERRORS.get(kind, StageFailed)(f"{out.attempt.stage}: {sentence}" if kind not in ERRORS else sentence)


def _last_words(children: Children, statuses: list[int], out: Output) -> str:
    """How the first failed rank ended, or the one that was killed. What it said on stderr goes into the run's log."""
    first = next(i for i, status in enumerate(statuses) if status not in (0, COME_AGAIN))
    rank = children.killed[0] if children.killed else first
    lines = children.stderr[rank].read_text(errors="replace").strip().splitlines()
    if lines:
        out.warn(f"rank {rank} said last:\n" + "\n".join(lines[-LAST_LINES:]))
    if statuses[rank] == -signal.SIGKILL:
        return f"rank {rank} was ended by SIGKILL: {MAKE_ROOM}"
    ended = f"was ended by {signal.Signals(-statuses[rank]).name}" if statuses[rank] < 0 else f"ended with {statuses[rank]}"
    why = f": {lines[-1]}. The log has all that it said last; run it again" if lines else " and said nothing; run it again"
    return f"rank {rank} {ended}{why}"
