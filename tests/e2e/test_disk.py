"""The disk fills up, or turns read-only, once each stage of `smoke` has begun (`make faults-all`): a small tmpfs, filled for real."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bessemer.config import load
from contract.errors import PipelineError
from flows.pretrain import body
from store.storage import Storage, open_root
from tasks.runner import PlainRunner, Stopped
from tasks.stage import Engine
from tests.e2e.test_smoke import digests, plans
from tests.tasks.toy import Silent

WANTED = os.environ.get("BESSEMER_FAULTS")
ROOM = "400m"

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not WANTED, reason="set BESSEMER_FAULTS, as make faults-all does")]


@pytest.fixture
def disk(tmp_path: Path, undisturbed: Storage) -> Iterator[Path]:
    """A small file system with a copy of the undisturbed root."""
    root = tmp_path / "root"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(root)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        shutil.copytree(undisturbed.local(""), root, dirs_exist_ok=True)  # type: ignore[arg-type]
        yield root
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)  # this very process has KenLM's model mapped until it ends


def fill(root: Path) -> None:
    with (root / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def empty(root: Path) -> None:
    (root / "ballast").unlink()


def lock_up(root: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)


def unlock(root: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)


class Breaking(Silent):
    """Breaks the disk when the stage has begun."""

    def __init__(self, stage: str, fault: Callable[[], None]) -> None:
        super().__init__()
        self.stage, self.fault = stage, fault

    def started(self, stage: str, fingerprint: str, why: str) -> None:
        if stage == self.stage:
            self.fault()


def run_to(root: Path, stage: str, journal: Silent) -> None:
    config = load("smoke", {"run.workers": 1})
    engine = Engine(open_root(root.as_uri()), config, config.run, journal, "smoke")
    with pytest.raises(Stopped):
        body(PlainRunner(engine, until=stage), config)


@pytest.mark.parametrize(
    ("cause", "repair", "words"),
    [(fill, empty, ("no space left", "is full", "No space left")), (lock_up, unlock, ("read-only", "Read-only"))],
    ids=["full", "read-only"],
)
def test_every_stage_says_so_publishes_nothing_and_goes_on_when_it_is_repaired(
    disk: Path, undisturbed: Storage, cause: Callable[[Path], None], repair: Callable[[Path], None], words: tuple[str, ...]
):
    for stage in plans(undisturbed):
        shutil.rmtree(disk / "artifacts" / stage)
        with pytest.raises(PipelineError) as caught:
            run_to(disk, stage, Breaking(stage, lambda: cause(disk)))
        assert any(word in str(caught.value) for word in words), f"{stage}: {caught.value}"
        assert not list((disk / "artifacts" / stage).rglob("manifest-*")), stage
        repair(disk)
        run_to(disk, stage, Silent())
    assert digests(open_root(disk.as_uri())) == digests(undisturbed)
