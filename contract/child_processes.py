"""Child processes that end with us, by whatever we end: kill -9, SIGTERM, `os._exit`. The kernel sees to it (Linux), or `kill_below`."""

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
LIBC = ctypes.CDLL(None)  # loaded here: a child between fork and exec must not load anything


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """For a child: the signal reaches it when the thread that started it ends. One whose `parent` died before this ends here."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def run_tool(command: Sequence[object], input: bytes | None = None) -> None:
    """Run a program to its end. The thread that calls is the one that waits, so the program cannot lose its parent too early.

    Raises StageFailed with the last line that it said.
    """
    us, words = os.getpid(), [str(word) for word in command]
    done = subprocess.run(words, input=input, capture_output=True, preexec_fn=lambda: die_with_parent(us))
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        error = StageFailed(f"{Path(words[0]).name} ended with {done.returncode} and said: {said}")
        error.add_note(" ".join(words))  # for the traceback in the log: the message is what a person reads in the UI
        raise error


def kill_below() -> None:
    """SIGKILL to all below this process, for one that leaves by `os._exit`: by itself Ray takes up to a minute to see that it is alone."""
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            each.kill()
