"""A lock with an expiry, judged by the store's clock. It saves double work only; correctness rests on publication.

locks/<name>/<n>.json holds owner and expiry. The highest n is the lock; a free or expired one is taken by creating n + 1,
which only one can do. Its holder alone rewrites its file: to renew it, and to let it go (expiry 0). A holder on this very machine
whose process is gone is not waited for, nor is what this process held and could not let go (the disk had turned read-only).
"""

import contextlib
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from contract.errors import PipelineError
from store.checked import dump_checked, load_checked
from store.storage import Storage

EXPIRY_S = 60.0

_held: set[tuple[str, str]] = set()
"""(root, path) of the locks that this process holds."""
_held_changes = threading.Lock()


@contextlib.contextmanager
def hold(storage: Storage, name: str, waiting: Callable[[str], None], poll_s: float = 2.0) -> Iterator[None]:
    """Hold the lock for the block, renewed from a thread; `waiting` is told once, with the holder, when it is taken.

    poll_s: between two looks at a lock that is taken, in the end; the first follow sooner, as many stages take a second.
    """
    path = _take(storage, name, waiting, poll_s)
    stop = threading.Event()

    def write(expires: float) -> None:
        storage.write(path, _body(expires))

    def renew() -> None:
        while not stop.wait(EXPIRY_S / 3):
            with contextlib.suppress(PipelineError, OSError):  # the next renewal may pass; past the expiry another may start
                write(storage.now() + EXPIRY_S)

    thread = threading.Thread(target=renew, name=f"lock {name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        try:
            write(0.0)
        except (PipelineError, OSError):  # on a full disk nothing can be written, but a file can go: nobody waits for the expiry
            with contextlib.suppress(PipelineError, OSError):
                storage.delete(path)
        with _held_changes:
            _held.discard((storage.uri, path))


def _body(expires: float) -> bytes:
    return dump_checked({"owner": _owner(os.getpid()), "expires": expires, "nonce": secrets.token_hex(8)})


def _pids() -> str:
    """Where pids mean the same: containers may share a host name and all have a pid 1, so the boot and the pid namespace are named."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:13]}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # no Linux
        return "this-machine"


def _owner(pid: int) -> str:
    """A process by name: with its start, as a pid is given to others later."""
    return f"{socket.gethostname()} pid {pid} of {psutil.Process(pid).create_time():.0f} in {_pids()}"


def _is_gone(owner: str) -> bool:
    """Whether the owner was a process of this machine that does not live any more; of other machines nothing is known."""
    known = re.fullmatch(r"(\S+) pid (\d+) of (\d+) in (\S+)", owner)
    if known is None or (known[1], known[4]) != (socket.gethostname(), _pids()):
        return False
    try:
        process = psutil.Process(int(known[2]))
        # Starts are told from the boot's time, which moves a little with the clock.
        return abs(process.create_time() - int(known[3])) > 5 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _is_left_by_us(owner: str, storage: Storage, path: str) -> bool:
    with _held_changes:
        return owner == _owner(os.getpid()) and (storage.uri, path) not in _held


def _take(storage: Storage, name: str, waiting: Callable[[str], None], poll_s: float) -> str:
    folder, said, pause = f"locks/{name}/", False, poll_s / 32
    while True:
        entries = storage.list(folder)
        number, holder, expires = 0, "", 0.0
        if entries:
            number = int(entries[-1].path[-14:-5])
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # gone, or changed: as good as free
                last = load_checked(storage.read(entries[-1].path))
                holder, expires = str(last["owner"]), float(last["expires"])
        now = storage.now()
        if expires < now or _is_gone(holder) or _is_left_by_us(holder, storage, entries[-1].path):
            path = f"{folder}{number + 1:09d}.json"
            with _held_changes:
                if is_taken := storage.create(path, _body(now + EXPIRY_S)):
                    _held.add((storage.uri, path))
            if is_taken:
                for entry in entries:
                    storage.delete(entry.path)
                return path
            continue
        if not said:
            who = holder.split(" of ")[0]
            waiting(f"waiting for {who}, which makes the same artifact; should it die, its lock is free within {EXPIRY_S:.0f} s")
            said = True
        time.sleep(pause)
        pause = min(poll_s, 2 * pause)
