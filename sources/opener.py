"""Opens the files of a plan and holds them to the digests that the plan has: every byte read is one that was planned."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from contract.errors import IntegrityError
from sources.files import SourceFile
from store.digests import digest_of_file
from store.root import open_root


@dataclass(frozen=True)
class Opener:
    """Opens files of a plan, and holds them to the digests that the plan has. Picklable."""

    endpoint_url: str | None = None
    scratch: str | None = None
    """Where files of a bucket are kept while they are read; the system's temporary folder when unset."""

    @contextmanager
    def open(self, file: SourceFile) -> Iterator[BinaryIO]:
        """The file's bytes, which are those of its digest. Raises IntegrityError when it changed since, or while it is read."""
        path = Path(file.path) if not file.root else self._fetched(file)
        with _unchanged(file, path), path.open("rb") as handle:
            yield handle

    def head(self, file: SourceFile) -> bytes:
        """Its first four bytes."""
        if not file.root:
            with Path(file.path).open("rb") as handle:
                return handle.read(4)
        return open_root(file.root, self.endpoint_url).open(file.path).read(4)

    def _fetched(self, file: SourceFile) -> Path:
        """A local copy of a bucket's file, made once a machine: splits of one file share it."""
        folder = Path(self.scratch or tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        local = folder / f"{file.digest.strip(chr(34))}-{file.size}-{file.locator.rpartition('/')[2]}"
        if not local.exists():
            storage = open_root(file.root, self.endpoint_url)
            partial = local.with_name(f".partial-{secrets.token_hex(6)}")
            try:
                storage.fetch(file.path, partial)
                entry = storage.stat(file.path)
            except FileNotFoundError as error:
                raise changed(file, "it is gone") from error
            if entry is None or entry.token != file.digest or partial.stat().st_size != file.size:
                partial.unlink(missing_ok=True)
                raise changed(file, "the bucket has another version of it")
            partial.replace(local)
        return local


def changed(file: SourceFile, what: str) -> IntegrityError:
    place = f"{file.root}/{file.path}" if file.root else file.path
    return IntegrityError(f"{file.locator} changed while read: {what}. {place}\nRun it again: the new content is read then.")


@contextmanager
def _unchanged(file: SourceFile, path: Path) -> Iterator[None]:
    """Hold a local file to its digest before reading, and to its size, times and inode after: together, every byte read was planned."""
    try:
        before = _state(path)
        if not file.root and digest_of_file(path) != file.digest:
            raise changed(file, "its digest is not the one it had when the run was planned")
    except OSError as error:
        raise changed(file, error.strerror or "it cannot be opened") from error
    try:
        yield
    finally:
        if not path.exists() or _state(path) != before:
            raise changed(file, "its size, time or inode moved")


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
