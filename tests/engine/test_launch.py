"""Children are heard, ended and never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from contract.config import RunOptions
from contract.errors import ComeAgain, InputError, StageFailed
from engine import launch
from engine.stage import Output
from store.artifact import Artifact
from store.attempt import Attempt
from store.storage import Storage
from tests.e2e.installation import on_demand

pytestmark = pytest.mark.slow

MODULE = "tests.engine.children"
ROOT = Path(__file__).parents[2]


class Heard:
    """A journal that keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[tuple[float, float, str, str]] = []
        self.warnings: list[str] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None:
        self.notes.append((done, total, unit, note))

    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def out(local: Storage, heard: Heard) -> Output:
    return Output(Attempt.new(local, "toy", "f" * 64, ""), RunOptions(stall_minutes=1.5 / 60), heard, adopt=False)


def spec(out: Output, how: str, **more: Any) -> dict[str, Any]:
    return {"how": how, "out": str(out.scratch / "result"), **more}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_end(pids: list[int]) -> bool:
    """A killed process ends a moment after the signal, and later where the cores are busy."""
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def pids(out: Output) -> list[int]:
    return [int(path.read_text().split()[0]) for path in sorted((out.scratch / "result").glob("pid-*"))]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


def test_progress_and_warnings_are_forwarded_and_ranks_know_themselves(out: Output, heard: Heard):
    launch.run_child(MODULE, spec(out, "finish"), out, ranks=2)
    assert heard.notes[-1] == (2, 2, "steps", "loss 0.2500") and heard.warnings == ["mind this", "mind this"]
    result = out.scratch / "result"
    assert [(result / f"done-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    groups = {path.read_text().split()[1] for path in result.glob("pid-*")}
    assert len(groups) == 1 and groups != {str(os.getpgid(0))}, "one group of their own"


def test_a_failure_says_the_childs_sentence_and_ends_the_other_rank(out: Output):
    with pytest.raises(StageFailed, match="the cup is empty"):
        launch.run_child(MODULE, spec(out, "fail"), out, ranks=2)
    assert not any(map(alive, pids(out)))


def test_an_error_that_the_user_can_repair_stays_one(out: Output):
    with pytest.raises(InputError, match=r"^the cup is empty$"):
        launch.run_child(MODULE, spec(out, "fail", kind="InputError"), out)


def test_a_crash_names_signal_and_last_line_and_the_log_has_the_rest(out: Output, heard: Heard):
    with pytest.raises(StageFailed) as caught:
        launch.run_child(MODULE, spec(out, "crash", number=signal.SIGABRT), out)
    assert str(caught.value) == (
        "toy: rank 0 was ended by SIGABRT: RuntimeError: broken pipe dream. The log has its last lines; run it again"
    )
    assert heard.warnings == ["rank 0 said last:\nTraceback: one line\nRuntimeError: broken pipe dream"]


def test_of_a_killed_child_the_signal_counts_and_not_what_it_said_before(out: Output):
    with pytest.raises(StageFailed, match=r"^toy: rank 0 was ended by SIGKILL: out of memory\? Make room, or lower run.micro_batch_size"):
        launch.run_child(MODULE, spec(out, "crash", number=signal.SIGKILL), out)


def test_a_gpu_without_room_is_said_with_what_to_do(out: Output):
    with pytest.raises(StageFailed, match=r"^toy: out of memory\? .* lower run.micro_batch_size, and run it again \(the cup is empty\)$"):
        launch.run_child(MODULE, spec(out, "fail", kind="OutOfMemoryError"), out)


def test_a_child_that_hangs_is_ended_and_started_again(out: Output, heard: Heard):
    launch.run_child(MODULE, spec(out, "hang once"), out, can_resume=True)
    assert len(list((out.scratch / "result").glob("start-*"))) == 2
    assert "goes on from its last checkpoint" in heard.warnings[0] and "after 5 steps" in heard.warnings[0]


@on_demand
def test_ranks_that_hang_in_a_collective_are_ended_and_go_on_to_the_same_losses(local: Storage, heard: Heard, tmp_path: Path):
    """One rank is stopped in the middle, so that the other waits for it in its all-reduce. The limit holds for their start too."""
    from tests.training import small

    spec = small.spec(tmp_path, "pretrain", "plain", max_steps=60)
    small.train(spec, tmp_path / "undisturbed", ranks=2)
    out = Output(Attempt.new(local, "pretrain", "f" * 64, ""), RunOptions(stall_minutes=25 / 60), heard, adopt=False)
    spec |= {"place": {**spec["place"], "ranks": 2}, "checkpoints": out.checkpoints.to_json(), "out": str(tmp_path / "files")}
    ranks: list[int] = []

    def stop_one() -> None:
        while not out.checkpoints.is_there():
            time.sleep(0.005)
        ranks.extend(process.pid for process in launch._running[0].processes)  # type: ignore[attr-defined]
        os.kill(ranks[1], signal.SIGSTOP)

    thread = threading.Thread(target=stop_one, daemon=True)
    thread.start()
    launch.run_child("training.child", spec, out, ranks=2, can_resume=True)
    thread.join()
    assert [line for line in heard.warnings if "goes on from its last checkpoint" in line] and not any(map(alive, ranks))
    steps = [done for done, *_ in heard.notes]
    assert steps[-1] == 60 and steps == sorted(set(steps)), "training began again from its first step"
    assert (tmp_path / "files" / "losses.jsonl").read_text() == small.losses(tmp_path / "undisturbed")


def test_a_child_that_hangs_and_cannot_resume_fails(out: Output):
    with pytest.raises(StageFailed, match="no sign of life"):
        launch.run_child(MODULE, spec(out, "hang"), out)
    assert not any(map(alive, pids(out)))


@pytest.mark.parametrize("status", [75, 0], ids=["checkpointed", "in its last moment"])
def test_asked_to_stop_it_comes_again_and_no_grandchild_stays(out: Output, status: int):
    caught: list[BaseException] = []

    def run() -> None:
        try:
            launch.run_child(MODULE, spec(out, "obey", status=status), out)
        except ComeAgain as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    grandchild = int(wait_for(out.scratch / "result" / "grandchild"))
    assert launch.ask_to_stop()
    thread.join(30)
    assert len(caught) == 1 and all_end([grandchild, *pids(out)])
    assert not launch.ask_to_stop(), "nothing runs any more"


def test_a_killed_parent_takes_its_training_child_along(tmp_path: Path):
    """PR_SET_PDEATHSIG, by the main that every rank has: kill -9 of the parent, and the child is gone."""
    child = (
        "from contract.child_processes import die_with_parent; import os, time, sys; die_with_parent(); "
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pid")], env=environment)
    pid = int(wait_for(tmp_path / "pid"))
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)
