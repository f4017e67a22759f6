"""A stage's own temporary folder, gone with its process: at the end by itself, after a kill by the next run on this machine.

Beside its files lies LOCK, held for as long as the process lives: the kernel lets go of it at any death, and a pid that was given
to somebody else cannot deceive. A folder whose lock is free belongs to nobody any more.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "bessemer-"
LOCK = "LOCK"


class Scratch:
    """A new folder, held until `close`. Making one removes what killed runs of this user have left in the same place."""

    def __init__(self, purpose: str) -> None:
        remove_abandoned(Path(tempfile.gettempdir()))
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR)
            if _take(self._lock) and _is_there(self._lock, self.path / LOCK):
                return
            os.close(self._lock)  # somebody who was removing saw it in the moment before it was locked

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(place: Path) -> int:
    """Remove the folders of ours in `place` that no process holds; how many. What has no LOCK is not ours to judge."""
    removed = 0
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _take(lock):
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
            finally:
                os.close(lock)
    return removed


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_there(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except OSError:
        return False
