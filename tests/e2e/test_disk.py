"""The disk fills up, or turns read-only, once each stage of `smoke` has begun (`make faults-all`): a small tmpfs, filled for real."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bessemer.config import load
from contract.errors import PipelineError, StorageError
from engine.runner import PlainRunner, Stopped
from engine.stage import Engine
from flows.pretrain import body
from store.root import open_root
from store.storage import Storage
from tests.e2e.test_smoke import digests, plans
from tests.engine.toy import Silent

ROOM = "400m"

pytestmark = [pytest.mark.e2e, pytest.mark.on_demand]


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """A small file system."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # this very process has KenLM's model mapped until it ends


@pytest.fixture
def disk(tmp_path: Path, undisturbed: Storage) -> Iterator[Path]:
    """A small file system with a copy of the undisturbed root."""
    with mounted(tmp_path / "root") as root:
        shutil.copytree(undisturbed.local(""), root, dirs_exist_ok=True)  # type: ignore[arg-type]
        yield root


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
    ("cause", "repair", "sentence"),
    [
        (fill, empty, r"the disk under \S+ is full \([\d,]+ bytes free\)\. Nothing was published; make space and run again\."),
        (lock_up, unlock, r"cannot write \S+: the file system is read-only\. Give storage\.root a writable folder\."),
    ],
    ids=["full", "read-only"],
)
def test_every_stage_says_so_publishes_nothing_and_goes_on_when_it_is_repaired(
    disk: Path, undisturbed: Storage, cause: Callable[[Path], None], repair: Callable[[Path], None], sentence: str
):
    for stage in plans(undisturbed):
        shutil.rmtree(disk / "artifacts" / stage)
        with pytest.raises(PipelineError, match=sentence):
            run_to(disk, stage, Breaking(stage, lambda: cause(disk)))
        assert not list((disk / "artifacts" / stage).rglob("manifest-*")), stage
        repair(disk)
        run_to(disk, stage, Silent())
    assert digests(open_root(disk.as_uri())) == digests(undisturbed)


def test_whatever_writes_to_a_temporary_folder_that_fills_up_says_so_and_goes_on_when_there_is_space(
    undisturbed: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """lmplz, a training child, an evaluating child, and this process."""
    root = tmp_path / "root"
    shutil.copytree(undisturbed.local(""), root)  # type: ignore[arg-type]
    with mounted(tmp_path / "small") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        monkeypatch.setenv("TMPDIR", str(small))
        for stage in ("score_perplexity", "pretrain", "evaluate", "export"):
            shutil.rmtree(root / "artifacts" / stage)
            with pytest.raises(StorageError, match=rf"^{stage}: the temporary folder {small} is full \(.* bytes free\)\. .* set TMPDIR"):
                run_to(root, stage, Breaking(stage, lambda: fill(small)))
            assert not list((root / "artifacts" / stage).rglob("manifest-*")), stage
            empty(small)
            run_to(root, stage, Silent())
    assert digests(open_root(root.as_uri())) == digests(undisturbed)
