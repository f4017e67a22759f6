"""Child processes that end with this one, however it ends: kill -9, SIGTERM, `os._exit`. The kernel ends them (Linux), or `kill_below`."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from contract.errors import StageFailed

PR_SET_PDEATHSIG = 1
TOOL_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "BESSEMER_HOME")
"""All that an outside program is told of our environment, which holds passwords and keys. The last names the clone that it works for."""
LIBC = ctypes.CDLL(None)  # loaded here: a child between fork and exec must not load anything


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """For a child: it gets the signal when the thread that started it ends. If its `parent` died before this call, it ends here."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def run_tool(command: Sequence[object], input: bytes | None = None) -> None:
    """Run an outside program to its end. The calling thread waits for it, so the program cannot lose its parent too early.

    It gets a few variables of our environment and no secret. Raises StageFailed with the program's last line.
    """
    own_pid, words = os.getpid(), [str(word) for word in command]
    variables = {name: os.environ[name] for name in TOOL_VARIABLES if name in os.environ}
    done = subprocess.run(words, input=input, capture_output=True, env=variables, preexec_fn=lambda: die_with_parent(own_pid))
    if done.returncode:
        last_line = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        error = StageFailed(f"{Path(words[0]).name} ended with {done.returncode} and said: {last_line}")
        error.add_note(" ".join(words))  # for the traceback in the log: the message is what a person reads in the UI
        raise error


def kill_below() -> None:
    """Send SIGKILL to all descendants of this process, before it leaves by `os._exit`: Ray would take up to a minute to notice."""
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            each.kill()
