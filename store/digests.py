"""SHA-256 of files, remembered: a file whose size, times and inode did not move is not read again, nor an object whose ETag did not.

The memo lies in the user's cache folder (contract/own_folders.py) and only saves time.
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from contract.own_folders import cache_folder


def digest_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_digest(path: Path) -> str:
    """The file's SHA-256, from its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_file(path: Path) -> str:
    """The file's SHA-256, from the memo where (path, size, mtime_ns, ctime_ns, inode) is unchanged."""
    return digests_of_files([path])[str(path)]


def digests_of_files(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by path of many files, the memo asked and written once."""
    wanted = {str(path): _key(path) for path in paths}
    known = _remembered(wanted)
    missing = {path: key for path, key in wanted.items() if path not in known}
    fresh = {path: read_digest(Path(path)) for path in missing}
    _remember([(path, missing[path], digest) for path, digest in fresh.items() if _key(Path(path)) == missing[path]])
    return known | fresh


def digest_of_object(uri: str, token: str, read: Callable[[], str]) -> str:
    """SHA-256 of an object in a store, by `read`, or from the memo where the server's token for it is the one it was read under."""
    known = _remembered({uri: token})
    if uri not in known:
        known = {uri: read()}
        _remember([(uri, token, known[uri])])
    return known[uri]


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"


@lru_cache(maxsize=4)
def _memo(file: str, _pid: int) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=30, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")  # a lost memo costs one read
    connection.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, key TEXT, digest TEXT) WITHOUT ROWID")
    return connection


def _connection() -> sqlite3.Connection:
    return _memo(str(cache_folder() / "digests.sqlite"), os.getpid())


def _remembered(wanted: dict[str, str]) -> dict[str, str]:
    found = {}
    with contextlib.suppress(sqlite3.Error, OSError):
        connection = _connection()
        for path, key in wanted.items():
            row = connection.execute("SELECT digest FROM digests WHERE path = ? AND key = ?", (path, key)).fetchone()
            if row:
                found[path] = row[0]
    return found


def _remember(rows: list[tuple[str, str, str]]) -> None:
    if not rows:
        return
    with contextlib.suppress(sqlite3.Error, OSError):
        connection = _connection()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
