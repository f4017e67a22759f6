"""A stage's temporary folder: gone at the end, gone after a kill, and never taken from a process that lives."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.scratch import Scratch, remove_abandoned

HOLDER = """
import sys, time
from tasks.scratch import Scratch
scratch = Scratch("toy")
(scratch.path / "fetched").mkdir()
(scratch.path / "fetched" / "file").write_bytes(b"x")
print(scratch.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=os.environ | {"TMPDIR": str(place), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_folder_goes_with_the_next_and_a_live_ones_stays(place: Path, holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    left = Path(holder.stdout.readline().strip())
    assert remove_abandoned(place) == 0 and (left / "fetched" / "file").exists()
    holder.kill()
    holder.wait()
    assert left.exists()
    mine = Scratch("toy")
    assert [mine.path] == list(place.iterdir())
    mine.close()
    assert not list(place.iterdir())


def test_what_has_no_lock_and_what_a_link_points_to_is_left_alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "LOCK").touch()
    (place / "bessemer-link").symlink_to(elsewhere)
    (place / "bessemer-foreign").mkdir()
    assert remove_abandoned(place) == 0
    assert (elsewhere / "LOCK").exists() and (place / "bessemer-foreign").exists()


def test_many_at_once_each_keep_their_own(place: Path) -> None:
    """Makers remove what is abandoned while others are between making their folder and locking it."""
    made: list[Scratch] = []
    threads = [threading.Thread(target=lambda: made.extend(Scratch("toy") for _ in range(15))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({scratch.path for scratch in made}) == 120
    assert all((scratch.path / "LOCK").exists() for scratch in made)
    for scratch in made:
        scratch.close()
