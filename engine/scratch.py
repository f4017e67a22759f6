"""A stage's own temporary folder, gone with its process: at the end by itself, after a kill by the next run on this machine.

Beside its files lies LOCK, held for as long as the process lives: the kernel lets go of it at any death, and a pid that was given
to somebody else cannot deceive. A folder whose lock is free belongs to nobody any more.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from contract.errors import ComeAgain, StorageError

FULL_BYTES = 2**20
PREFIX = "bessemer-"
LOCK = "LOCK"


class Scratch:
    """A new folder, held until `close`. Making one removes what killed runs of this user have left in the same place."""

    def __init__(self, purpose: str) -> None:
        try:
            remove_abandoned(Path(tempfile.gettempdir()))
            self._make(purpose)
        except OSError as error:
            raise StorageError(f"no temporary folder can be made ({error}): make space, or set TMPDIR to a folder of yours") from error

    def _make(self, purpose: str) -> None:
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR)
            if _take(self._lock) and _is_there(self._lock, self.path / LOCK):
                return
            os.close(self._lock)  # somebody who was removing saw it in the moment before it was locked

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def free_bytes() -> int:
    """What is free where temporary files are made."""
    return shutil.disk_usage(tempfile.gettempdir()).free


@contextlib.contextmanager
def full_is_said(name: str) -> Iterator[None]:
    """Whatever fails while the temporary folder is full fails because of it, in the words of this process, a child or a library.

    What no longer fitted may be gone again by now: an error that names no file is one of a library's there. That a root's disk is
    full is a StorageError already.
    """
    try:
        yield
    except (StorageError, ComeAgain):
        raise
    except Exception as error:
        free = free_bytes()
        did_not_fit = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None
        if free >= FULL_BYTES and not did_not_fit:
            raise
        raise StorageError(
            f"{name}: the temporary folder {tempfile.gettempdir()} is full ({free:,} bytes free). Nothing was published; make space "
            "there, or set TMPDIR to a folder on another disk, and run again."
        ) from error


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
