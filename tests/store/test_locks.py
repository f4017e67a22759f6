"""A lock that saves double work: waited for while its holder lives, and not a moment longer than is known of a dead one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from store.locks import hold
from store.storage import Storage

HOLDER = """
import sys
from store.locks import hold
from store.storage import open_root
with hold(open_root(sys.argv[1]), "toy", print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_of_a_killed_process_of_this_machine_is_free_and_a_live_ones_is_not(local: Storage):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, local.uri],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    said: list[str] = []

    def waiting(line: str) -> None:
        said.append(line)
        process.kill()
        process.wait()

    with hold(local, "toy", waiting, poll_s=0.01):
        (entry,) = local.list("locks/toy/")
        assert json.loads(local.read(entry.path))["expires"] > local.now()
    assert len(said) == 1 and f"pid {process.pid}, which makes the same artifact" in said[0]


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
