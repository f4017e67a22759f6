"""Ctrl-C, and a terminal that closes, in the middle of data work by Ray and of training: nothing is left, and the next run goes on."""

import os
import signal
import subprocess
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "closed"])
def test_a_stopped_foreground_run_leaves_no_process_and_goes_on(undisturbed: Storage, stage: str, number: signal.Signals):
    """A terminal sends its signal to every process of its group; ours are in a group of their own here."""
    before, mark = digests(undisturbed), f"{os.getpid()}-{time.time_ns()}"
    line = [*command(undisturbed), "--force", stage]
    process = subprocess.Popen(
        line,
        env=os.environ | {MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a test run in the background inherits it ignored
    )
    try:
        deadline = time.monotonic() + 120
        while not any(is_at_work(other, AT_WORK[stage]) for other in marked(mark)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else -number), said
    assert "Traceback" not in said
    deadline = time.monotonic() + 20
    while (left := list(marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, [other.cmdline() for other in left]
    assert run(undisturbed).returncode == 0
    assert digests(undisturbed) == before


def is_at_work(process: psutil.Process, name: str) -> bool:
    return any(name in argument for argument in process.cmdline())
