"""Local copies of files that lie on S3, for readers that need a path. Of one user, held to their digest at each use, bounded in size.

    <cache folder>/fetched/<digest>/file<suffix>       the folder's own time says when the copy was last used
    <cache folder>/fetched/folders/<key>/…             links to copies, under the names that a folder of an artifact has

The cache folder is that of contract/own_folders.py. BESSEMER_FETCHED_GB is the most that copies take; by default it is half of what they
have and the disk has free.
"""

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.errors import InputError
from contract.own_folders import cache_folder, private
from store.digests import digest_of_file, read_digest

log = logging.getLogger("bessemer")

IN_USE_S = 3600
"""A copy used within this time stays: its path may be with a child that has not opened it yet."""


@dataclass(frozen=True)
class Copy:
    folder: Path
    size: int
    used: float


def fetched_folder() -> Path:
    return private(cache_folder() / "fetched")


def copy_of(digest: str, suffix: str, fetch: Callable[[Path], None]) -> Path | None:
    """A local file with these bytes, from `fetch` unless an intact copy is there; None if what `fetch` brings has another digest."""
    path = fetched_folder() / digest / f"file{suffix}"
    if path.exists():
        if digest_of_file(path) == digest:  # remembered while size, times and inode stay
            os.utime(path.parent)
            return path
        log.warning(f"{path} is not what was fetched: it is fetched again")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{secrets.token_hex(6)}")
    try:
        fetch(partial)
        if read_digest(partial) != digest:
            return None
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    make_room()
    return path


def make_room(keep_bytes: int | None = None) -> tuple[int, int]:
    """Remove the least recently used copies until the rest fit into `keep_bytes` (the limit); returns how many and their bytes."""
    copies = sorted(_copies(), key=lambda copy: copy.used)
    total = sum(copy.size for copy in copies)
    limit = most_bytes(total) if keep_bytes is None else keep_bytes
    removed = freed = 0
    for copy in copies:
        if total - freed <= limit or copy.used > time.time() - IN_USE_S:
            break
        shutil.rmtree(copy.folder, ignore_errors=True)
        removed, freed = removed + 1, freed + copy.size
    return removed, freed


def most_bytes(total: int) -> int:
    given = os.environ.get("BESSEMER_FETCHED_GB")
    if not given:
        return (total + shutil.disk_usage(fetched_folder()).free) // 2
    try:
        return int(float(given) * 10**9)
    except (ValueError, OverflowError):
        raise InputError(f"BESSEMER_FETCHED_GB is {given!r}, a number of gigabytes is expected") from None


def held() -> tuple[Path, int, int]:
    """The folder, how many copies it has, and their bytes."""
    copies = list(_copies())
    return fetched_folder(), len(copies), sum(copy.size for copy in copies)


def _copies() -> Iterator[Copy]:
    for folder in fetched_folder().iterdir():
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            if folder.name != "folders":
                size = sum(file.stat().st_size for file in folder.iterdir())
                yield Copy(folder, size, folder.stat().st_mtime)
