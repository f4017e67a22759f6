"""A stage's temporary folder. The stage removes it at its end; after a kill, the next run on this machine removes it.

The folder holds a file LOCK, which is locked as long as the process lives. The kernel releases the lock however the process dies, and
unlike a pid it is never given to another process. A folder whose lock is free is abandoned.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from contract.errors import ComeAgain, StorageError, TransientError

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
            os.close(self._lock)  # another run found it before it was locked, and removes it

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def free_bytes() -> int:
    """Free bytes where temporary files are made."""
    return shutil.disk_usage(tempfile.gettempdir()).free


@contextlib.contextmanager
def explain_full_folder(name: str) -> Iterator[None]:
    """Raise StorageError for any error while the temporary folder is full: it is the cause, whatever the process, child or library says.

    The file that did not fit may be gone again by now, so "no space left" without a file's name counts too: it comes from a library
    that writes there. A full disk under the root is a StorageError already.
    """
    try:
        yield
    except (StorageError, TransientError, ComeAgain):
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
    """Remove our folders in `place` that no process holds; returns how many. A folder without LOCK stays: it may not be ours."""
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
