"""Ctrl-C, a closed terminal and SIGTERM in the middle of data work by Ray and of training: nothing is left, and the next run goes on."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from services import background
from store.run_records import records
from store.storage import Storage
from tests.e2e.conftest import ROOT, command, run
from tests.e2e.installation import at_work, on_demand
from tests.e2e.test_smoke import MARK, digests, marked

pytestmark = [pytest.mark.e2e, on_demand]

AT_WORK = [("deduplicate", "gcs_server"), ("deduplicate", "ray::"), ("score_perplexity", "lmplz"), ("pretrain", "training.child")]
"""A stage, and what runs while it is at work: Ray on its way up, Ray's tasks, KenLM, a rank."""


@pytest.mark.parametrize(("stage", "program"), AT_WORK, ids=[program.strip(":") for _, program in AT_WORK])
@pytest.mark.parametrize(
    ("how", "status", "state"), [("ctrl-c", 130, "stopped"), ("closed", 130, "stopped"), ("sigterm", 75, "checkpointed")]
)
def test_a_stopped_foreground_run_leaves_no_process_and_goes_on(
    undisturbed: Storage, stage: str, program: str, how: str, status: int, state: str
):
    before = digests(undisturbed)
    with Terminal([*command(undisturbed), "--force", stage]) as terminal:
        terminal.wait_for(program)
        terminal.stop(how)
        assert terminal.ended(30) == status, terminal.text()
    assert "Traceback" not in terminal.text()
    assert how == "closed" or "the same command goes on from here" in terminal.text()
    terminal.nothing_is_left()
    assert [record["state"] for _, record in records(undisturbed)][-1] == state
    assert run(undisturbed).returncode == 0
    assert digests(undisturbed) == before


def test_under_nohup_a_run_outlives_its_terminal(undisturbed: Storage, tmp_path: Path):
    before, log = digests(undisturbed), tmp_path / "run.log"
    line = [*command(undisturbed), "--force", "pretrain"]
    with Terminal(["sh", "-c", 'exec nohup "$@" > "$0" 2>&1', str(log), *line]) as terminal:
        terminal.wait_for("training.child")
        terminal.close()
        assert terminal.ended(300) == 0, log.read_text()
    terminal.nothing_is_left()
    assert digests(undisturbed) == before


class Terminal:
    """A program in a terminal of its own, whose kernel side sends SIGINT for the key and SIGHUP when it is closed."""

    def __init__(self, line: list[str]) -> None:
        self._mark, self._said = f"{os.getpid()}-{time.time_ns()}", list[bytes]()
        self._ours, theirs = pty.openpty()
        self._is_open = True
        self._process = subprocess.Popen(
            line,
            env=os.environ | {MARK: self._mark},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: take_terminal(theirs),
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        if self._is_open:
            self.close()

    def stop(self, how: str) -> None:
        if how == "closed":
            self.close()
        elif how == "ctrl-c":
            os.write(self._ours, b"\x03")
        else:
            self._process.terminate()

    def close(self) -> None:
        self._is_open = False
        os.close(self._ours)

    def wait_for(self, program: str) -> None:
        deadline = time.monotonic() + 120
        while at_work(program, MARK, self._mark) is None:
            assert self._process.poll() is None and time.monotonic() < deadline, self.text()
            self._read(0.002)

    def ended(self, seconds: float) -> int | None:
        """The exit status, or None if it still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        return self._process.returncode

    def _read(self, seconds: float) -> None:
        """What has been written there, so that the writer never waits for us."""
        if not self._is_open:
            time.sleep(seconds)
        elif select.select([self._ours], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # the other side is closed
                self._said.append(os.read(self._ours, 1 << 16))

    def text(self) -> str:
        return b"".join(self._said).decode(errors="replace")

    def nothing_is_left(self) -> None:
        assert background.wait_until(lambda: not list(marked(self._mark)), 20), [other.cmdline() for other in marked(self._mark)]


def take_terminal(terminal: int) -> None:
    """For the child: the terminal becomes the one of its session; a test run in the background inherits these signals ignored."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
