"""Background processes that outlive their starter: pid files, logs, and an end that is certain.

A pid file holds the pid and the process's start time, so that another process with the same pid is never signalled.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from contract import child_processes


def start(command: list[str], pid_file: Path, log: Path, environment: dict[str, str], cwd: Path) -> psutil.Process:
    """Start a command in a session of its own, so that a closing terminal and Ctrl-C do not reach it."""
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as lines:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=default_signals,
            env=environment,
            cwd=cwd,
        )
    child.returncode = 0  # it is meant to outlive us: no warning from Popen's destructor
    process = psutil.Process(child.pid)
    pid_file.write_text(f"{process.pid} {process.create_time()}\n")
    return process


def default_signals() -> None:
    """Undo what `cmd &` in a script does: it leaves SIGINT ignored, and Prefect's server and worker then ignore SIGTERM as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """For a child, between fork and exec."""
    default_signals()
    child_processes.die_with_parent(number=number)


def running(pid_file: Path) -> psutil.Process | None:
    try:
        pid, created = pid_file.read_text().split()
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(created)) < 1
    except (OSError, ValueError, psutil.Error):
        return None
    return process if same and is_alive(process) else None


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs. A zombie does not: where pid 1 does not reap, `kill -0` would find it for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stop(process: psutil.Process, grace_s: float) -> bool:
    """Send SIGTERM, and after `grace_s` SIGKILL to the process and all its descendants. True when SIGTERM was enough."""
    below = descendants(process)
    send(process, signal.SIGTERM)
    if wait_until(lambda: not is_alive(process), grace_s):
        return True
    for each in [process, *below, *descendants(process)]:
        send(each, signal.SIGKILL)
    wait_until(lambda: not is_alive(process), 10)
    return False


def flow_processes(worker: str) -> list[psutil.Process]:
    """The live flow processes that the worker of this name started, orphans included.

    They are found by their environment: a run's `infrastructure_pid` holds no host name, and its pid may be another process by now.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if "prefect.engine" not in " ".join(process.cmdline()) or not is_alive(process):
                continue
            variables = process.environ()
            if variables.get("PREFECT__WORKER_NAME") == worker and variables.get("PREFECT__FLOW_RUN_ID"):
                found.append(process)
    return found


def worker_processes(name: str) -> list[psutil.Process]:
    """Prefect's own worker processes of that name on this machine."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, IndexError, OSError):
            line = process.cmdline()
            if "worker" in line and "start" in line and "--name" in line and line[line.index("--name") + 1] == name and is_alive(process):
                found.append(process)
    return found


def settle(worker: str, grace_s: float) -> int:
    """Send SIGTERM to each flow of the worker, and SIGKILL to its group after `grace_s`; returns the number of flows signalled.

    A flow answers SIGTERM by a checkpoint and by setting its run to AwaitingRetry. One that starts meanwhile is signalled too.
    """
    signalled: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + grace_s
    while flows := flow_processes(worker):
        late = time.monotonic() > deadline
        for process in flows:
            if late:
                kill_group(process)
            elif process.pid not in signalled:
                signalled[process.pid] = process
                send(process, signal.SIGTERM)
        time.sleep(0.1)
    return len(signalled)


def kill_group(process: psutil.Process) -> None:
    """A flow process leads its own group; children in sessions of their own ask the kernel to die with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    send(process, signal.SIGKILL)


def send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def descendants(process: psutil.Process) -> Iterable[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def wait_until(claim: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def last_lines(log: Path, count: int = 10) -> str:
    try:
        return "\n".join("  " + line for line in log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return f"  (no log at {log})"


def prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]
