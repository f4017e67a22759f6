"""A lock that saves double work: waited for while its holder lives, and not a moment longer than is known of a dead one."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services import background
from store import locks
from store.locks import hold
from store.root import open_root
from store.storage import Storage

HOLDER = """
import socket, sys
from store import locks
from store.root import open_root
root, endpoint, host, expiry_s = sys.argv[1:]
socket.gethostname = lambda: host
locks.EXPIRY_S = float(expiry_s)
with locks.hold(open_root(root, endpoint or None), "toy", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(storage: Storage, host: str, expiry_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, storage.uri, getattr(storage, "endpoint_url", ""), host, str(expiry_s)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_lock_of_a_killed_process_of_this_machine_is_free_and_a_live_ones_is_not(local: Storage):
    said: list[str] = []

    def waiting(line: str) -> None:
        said.append(line)
        process.kill()
        process.wait()

    with holder(local, socket.gethostname(), 60) as process, hold(local, "toy", waiting, poll_s=0.01):
        (entry,) = local.list("locks/toy/")
        assert json.loads(local.read(entry.path))["expires"] > local.now()
    assert len(said) == 1 and f"pid {process.pid}, which makes the same artifact" in said[0]


def test_a_lock_that_this_process_could_not_let_go_is_free_and_one_that_it_holds_is_not(local: Storage, tmp_path: Path):
    """A disk that turns read-only keeps the lock's file: here a folder where it is to be written, which cannot be deleted as a file."""
    with hold(local, "toy", print):
        (entry,) = local.list("locks/toy/")
        text = local.read(entry.path)
        (tmp_path / "root" / entry.path).unlink()
        (tmp_path / "root" / entry.path).mkdir()
    (tmp_path / "root" / entry.path).rmdir()
    local.write(entry.path, text)
    said: list[str] = []
    with hold(local, "toy", said.append, poll_s=0.01):
        assert not said
        other = threading.Thread(target=lambda: _hold_once(local, said))
        other.start()
        assert background.wait_until(lambda: len(said) == 1, 10)
    other.join(10)
    assert "which makes the same artifact" in said[0] and said[1:] == ["held"]


def _hold_once(storage: Storage, said: list[str]) -> None:
    with hold(storage, "toy", said.append, poll_s=0.01):
        said.append("held")


def test_a_lock_that_a_killed_process_of_another_machine_held_is_free_at_its_expiry(s3: Storage):
    """Alive it renews, and nobody else gets it though its first expiry is long past; the expiry that its death left is waited for."""
    said, expiries = [], []

    def expires() -> float:
        return float(json.loads(s3.read("locks/toy/000000001.json"))["expires"])

    def waiting(line: str) -> None:
        said.append(line)
        expiries.append(expires())
        while s3.now() <= expiries[0] + 1:
            time.sleep(0.1)
        assert process.poll() is None and expires() > s3.now()
        process.kill()
        process.wait()
        expiries.append(expires())

    with holder(s3, "elsewhere", expiry_s=3) as process, hold(s3, "toy", waiting, poll_s=0.05):
        assert s3.now() > expiries[1] > expiries[0]
        assert [entry.path for entry in s3.list("locks/toy/")] == ["locks/toy/000000002.json"]
    assert len(said) == 1 and f"waiting for elsewhere pid {process.pid}, which" in said[0]


def test_a_lock_of_another_machine_is_free_at_its_expiry(storage: Storage):
    expires = storage.now() + 1.5
    storage.write("locks/toy/000000004.json", json.dumps({"owner": "elsewhere pid 1 of 1", "expires": expires, "nonce": "x"}).encode())
    said: list[str] = []
    with hold(storage, "toy", said.append, poll_s=0.1):
        assert storage.now() >= expires
        assert [entry.path for entry in storage.list("locks/toy/")] == ["locks/toy/000000005.json"]
    assert len(said) == 1 and "waiting for elsewhere pid 1, which" in said[0]


def test_what_is_no_owner_is_waited_for_like_another_machines(local: Storage):
    for owner in ("", "nobody", f"{os.uname().nodename} pid x of y"):
        local.write("locks/toy/000000001.json", json.dumps({"owner": owner, "expires": local.now() + 0.3, "nonce": "x"}).encode())
        said: list[str] = []
        with hold(local, "toy", said.append, poll_s=0.05):
            pass
        assert len(said) == 1
        for entry in local.list("locks/toy/"):
            local.delete(entry.path)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a pid namespace")
def test_a_holder_in_another_pid_namespace_with_our_host_name_is_not_taken_for_dead():
    here = locks._owner(os.getpid())
    program = "import os; from store import locks; print(locks._owner(os.getpid()), locks._is_gone(os.environ['OTHER']), sep=';')"
    command = ["unshare", "--pid", "--uts", "--fork", "--mount-proc", sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | {"OTHER": here}, capture_output=True, text=True, check=True)
    there, ours_is_gone = done.stdout.strip().split(";")
    assert there.startswith(f"{socket.gethostname()} pid 1 of ")
    assert ours_is_gone == "False" and not locks._is_gone(there)


@pytest.fixture(params=[3600, -3600], ids=["an hour ahead", "an hour behind"])
def wrong_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """This machine's clock, off by so many seconds beside that of the machine which holds the files."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + request.param)
    return float(request.param)


def test_a_machine_with_a_wrong_clock_tells_the_time_of_the_file_system(local: Storage, wrong_clock: float, tmp_path: Path):
    for entries in ([], ["artifacts/a"]):  # a new root, and one with artifacts
        Path(local.local("")).mkdir(exist_ok=True)
        for path in entries:
            local.write(path, b"x")
        now = local.now()
        (tmp_path / "probe").touch()
        assert abs((tmp_path / "probe").stat().st_mtime - now) < 30
        assert not list(tmp_path.rglob(".partial-*"))


def test_a_live_lock_of_another_machine_is_waited_for_and_a_dead_one_is_free_however_wrong_our_clock_is(local: Storage, wrong_clock: float):
    """Judged by our own clock, one an hour ahead takes the live lock, and one an hour behind waits an hour for the dead one."""
    said: list[str] = []
    with holder(local, "another-machine", 2.0) as process:

        def waiting(line: str) -> None:
            said.append(line)
            process.kill()  # it renews no more
            process.wait()

        begun = time.monotonic()
        with hold(local, "toy", waiting, poll_s=0.05):
            assert said and said[0].startswith("waiting for another-machine pid ")
            assert time.monotonic() - begun < 20


def test_on_a_root_that_cannot_be_written_the_machines_own_clock_is_told(tmp_path: Path):
    assert abs(open_root((tmp_path / "absent").as_uri()).now() - time.time()) < 30
    assert not (tmp_path / "absent").exists()
