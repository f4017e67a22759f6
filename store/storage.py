"""Bytes by path under a root: what every kind of storage can do, and how a stored file is compared with its record.

A path is relative, with forward slashes. Writes are whole or absent. `create` is the one conditional operation: everything
that must happen once (a manifest, a lock) rests on it. Objects are picklable, and open their connections where they are used.
The kinds: `store/local_disk.py` and `store/s3.py`. `store/root.py` chooses one by the address.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from store.digests import digest_of_file, digest_of_object


@dataclass(frozen=True)
class Entry:
    """One stored file. `token` is what the server said of its bytes (S3's ETag); None on disk, where the digest is read."""

    path: str
    size: int
    token: str | None
    modified: float = field(default=0.0, compare=False)
    """When it was written, by the store's clock; known of listed files."""


class Storage(Protocol):
    @property
    def uri(self) -> str: ...
    def read(self, path: str) -> bytes: ...
    def digest(self, path: str) -> str: ...
    def open(self, path: str) -> BinaryIO: ...
    def write(self, path: str, data: bytes) -> Entry: ...
    def put(self, path: str, local: Path) -> Entry: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def fetch(self, path: str, to: Path) -> None: ...
    def halves(self, prefix: str, before: float, delete: bool = False) -> list[Entry]: ...
    def list(self, prefix: str) -> list[Entry]: ...
    def stat(self, path: str) -> Entry | None: ...
    def delete(self, path: str) -> None: ...
    def drop_empty_folder(self, path: str) -> None: ...
    def now(self) -> float: ...
    def local(self, path: str) -> Path | None: ...
    def probe(self) -> None: ...
    def free_bytes(self) -> int | None: ...


def stays_inside(path: str) -> bool:
    """Whether `path`, joined to a folder, stays below it. A path from a manifest or a person may be absolute, or climb with `..`."""
    return not path.startswith("/") and ".." not in path.split("/")


def matches(storage: Storage, entry: Entry | None, size: int, digest: str, token: str | None) -> bool:
    """Whether a stored file is still what was recorded: by its (memoised) digest on disk, by the server's token on S3.

    Another token need not mean other content: a copied root has its own tokens. Then the bytes are read, once for each token.
    """
    if entry is None or entry.size != size:
        return False
    local = storage.local(entry.path)
    if local is not None:
        return digest_of_file(local) == digest
    if entry.token == token:
        return True
    with contextlib.suppress(FileNotFoundError):  # gone since it was listed
        return digest_of_object(f"{storage.uri}/{entry.path}", str(entry.token), lambda: storage.digest(entry.path)) == digest
    return False
