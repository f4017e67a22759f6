"""A stage's temporary folder: gone at the end, gone after a kill, and never taken from a process that lives."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.errors import StorageError
from contract.ledger import Ledger
from engine.scratch import Scratch, remove_abandoned
from engine.stage import Output, stage
from store.artifact import Artifact
from store.storage import Storage

sys.path.insert(0, str(Path(__file__).parent))
import toy

HOLDER = """
import sys, time
from engine.scratch import Scratch
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


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR on a disk of its own of 80 MB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # the client of S3 keeps a failed file open for a while


def fill(place: Path) -> None:
    with (place / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


@stage(version=1, config=lambda c: toy.Amount(count=c.count))
def fetches(numbers: Artifact, config: toy.Amount, out: Output) -> Ledger:
    """Fills the disk of its scratch, then reads an input as a file: from S3 it is fetched to the same disk."""
    fill(out.scratch)
    out.bytes("copy", numbers.path(numbers.names()[0]).read_bytes())
    (out.scratch / "file").write_bytes(bytes(1 << 16))
    return Ledger()


def test_a_full_temporary_folder_is_said_publishes_nothing_and_the_next_run_goes_on(storage: Storage, small: Path) -> None:
    engine = toy.engine(storage)
    numbers = toy.pipeline(engine)[0]
    planned = engine.plan(fetches, {"numbers": numbers})
    with pytest.raises(StorageError, match=rf"^fetches: the temporary folder {small} is full \(\d+ bytes free\)\. .* set TMPDIR"):
        engine.run(planned)
    assert not [entry for entry in storage.list("artifacts/fetches/") if "manifest-" in entry.path]
    fill(small)
    with pytest.raises(StorageError, match=rf"^fetches was not started: 0 bytes are free under TMPDIR, {small}, at least"):
        engine.run(planned)
    (small / "ballast").unlink()
    enough = replace(planned, stage=replace(fetches, work=lambda numbers, config, out: Ledger()))
    assert engine.run(enough).fingerprint == planned.fingerprint


@stage(version=1, config=lambda c: toy.Amount(count=c.count))
def fetches_much(numbers: Artifact, config: toy.Amount, out: Output) -> Ledger:
    """Fetches more than fits: the client of S3 has removed its half before anybody looks."""
    out.attempt.storage.write("much", bytes(6 << 20))
    fill(out.scratch)
    os.truncate(out.scratch / "ballast", (out.scratch / "ballast").stat().st_size - (4 << 20))
    out.attempt.storage.fetch("much", out.scratch / "much")
    return Ledger()


def test_a_fetched_file_that_does_not_fit_into_the_temporary_folder_is_said(s3: Storage, small: Path) -> None:
    engine = toy.engine(s3)
    planned = engine.plan(fetches_much, {"numbers": toy.pipeline(engine)[0]})
    with pytest.raises(StorageError, match=rf"^fetches_much: the temporary folder {small} is full \([\d,]+ bytes free\)\. .* set TMPDIR"):
        engine.run(planned)


def test_a_temporary_folder_that_cannot_be_made_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "absent"))
    with pytest.raises(StorageError, match=r"^no temporary folder can be made \(.*absent.*\): make space, or set TMPDIR"):
        Scratch("toy")
