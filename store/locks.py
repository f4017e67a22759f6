"""A lock with an expiry, judged by the store's clock. It saves double work only; correctness rests on publication.

locks/<name>/<n>.json holds owner and expiry. The highest n is the lock; a free or expired one is taken by creating n + 1,
which only one can do. Its holder alone rewrites its file: to renew it, and to let it go (expiry 0).
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

from contract.errors import PipelineError
from store.storage import Storage

EXPIRY_S = 60.0


@contextlib.contextmanager
def hold(storage: Storage, name: str, waiting: Callable[[str], None], poll_s: float = 2.0) -> Iterator[None]:
    """Hold the lock for the block, renewed from a thread; `waiting` is told once, with the holder, when it is taken."""
    owner = f"{socket.gethostname()} pid {os.getpid()}"
    path = _take(storage, name, owner, waiting, poll_s)
    stop = threading.Event()
    nonce = secrets.token_hex(8)

    def write(expires: float) -> None:
        storage.write(path, json.dumps({"owner": owner, "expires": expires, "nonce": nonce}).encode())

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
        with contextlib.suppress(PipelineError, OSError):
            write(0.0)


def _take(storage: Storage, name: str, owner: str, waiting: Callable[[str], None], poll_s: float) -> str:
    folder, said = f"locks/{name}/", False
    while True:
        entries = storage.list(folder)
        number, holder, expires = 0, "", 0.0
        if entries:
            number = int(entries[-1].path[-14:-5])
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # gone, or changed: as good as free
                last = json.loads(storage.read(entries[-1].path))
                holder, expires = str(last["owner"]), float(last["expires"])
        now = storage.now()
        if expires < now:
            path = f"{folder}{number + 1:09d}.json"
            body = {"owner": owner, "expires": now + EXPIRY_S, "nonce": secrets.token_hex(8)}
            if storage.create(path, json.dumps(body).encode()):
                for entry in entries:
                    storage.delete(entry.path)
                return path
            continue
        if not said:
            waiting(f"waiting for {holder}, which makes the same artifact; its lock ends {expires - now:.0f} s after its last sign of life")
            said = True
        time.sleep(poll_s)
