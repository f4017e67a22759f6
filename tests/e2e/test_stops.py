"""Ctrl-C, and a terminal that closes, in the middle of data work by Ray and of training: nothing is left, and the next run goes on."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time

import psutil
import pytest

from store.storage import Storage
from tests.e2e.conftest import ROOT, command, run
from tests.e2e.installation import on_demand
from tests.e2e.test_smoke import MARK, digests, marked

pytestmark = [pytest.mark.e2e, on_demand]

AT_WORK = {"deduplicate": "ray::", "pretrain": "training.child"}
"""What runs while a stage is at work."""


@pytest.mark.parametrize("stage", AT_WORK)
@pytest.mark.parametrize("closes", [False, True], ids=["ctrl-c", "closed"])
def test_a_stopped_foreground_run_leaves_no_process_and_goes_on(undisturbed: Storage, stage: str, closes: bool):
    """In a terminal of its own, whose kernel side sends SIGINT for the key, and SIGHUP when it is closed, to all in the foreground."""
    before, mark = digests(undisturbed), f"{os.getpid()}-{time.time_ns()}"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command(undisturbed), "--force", stage],
        env=os.environ | {MARK: mark},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: take_terminal(theirs),
    )
    os.close(theirs)
    said: list[bytes] = []
    try:
        deadline = time.monotonic() + 120
        while not any(is_at_work(other, AT_WORK[stage]) for other in marked(mark)):
            assert process.poll() is None and time.monotonic() < deadline, b"".join(said)
            read(ours, said)
        if closes:
            os.close(ours)
        else:
            os.write(ours, b"\x03")
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05) if closes else read(ours, said)
    finally:
        process.kill()
    text = b"".join(said).decode(errors="replace")
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert closes or "stopped; the same command goes on from here" in text
    deadline = time.monotonic() + 20
    while (left := list(marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, [other.cmdline() for other in left]
    assert run(undisturbed).returncode == 0
    assert digests(undisturbed) == before


def take_terminal(terminal: int) -> None:
    """For the child: the terminal becomes the one of its session; a test run in the background inherits these signals ignored."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def read(terminal: int, said: list[bytes]) -> None:
    """What has been written there, so that the writer never waits for us; for at most 50 ms."""
    if select.select([terminal], [], [], 0.05)[0]:
        with contextlib.suppress(OSError):  # the other side is closed
            said.append(os.read(terminal, 1 << 16))


def is_at_work(process: psutil.Process, name: str) -> bool:
    return any(name in argument for argument in process.cmdline())
