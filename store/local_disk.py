"""A root on a local disk. The only module that writes files there on behalf of artifacts."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from contract.errors import InputError, PipelineError, StorageError
from store.digests import read_digest
from store.storage import Entry, stays_inside


@dataclass(frozen=True)
class LocalStorage:
    root: str

    @property
    def uri(self) -> str:
        return Path(self.root).as_uri()

    def local(self, path: str) -> Path:
        if not stays_inside(path):
            raise InputError(f"{path!r} leads out of storage.root {self.uri}, so it is not read or written; find out what names it")
        return Path(self.root, path)

    def read(self, path: str) -> bytes:
        with _errors_as_sentences(self.local(path), "read"):
            return self.local(path).read_bytes()

    def digest(self, path: str) -> str:
        """SHA-256 of the stored bytes, every one of them read."""
        with _errors_as_sentences(self.local(path), "read"):
            return read_digest(self.local(path))

    def open(self, path: str) -> BinaryIO:
        with _errors_as_sentences(self.local(path), "read"):
            return self.local(path).open("rb")

    def write(self, path: str, data: bytes) -> Entry:
        with self._whole(path) as temporary:
            temporary.write_bytes(data)
        return Entry(path, len(data), None)

    def put(self, path: str, local: Path) -> Entry:
        with self._whole(path) as temporary:
            temporary.touch()  # a new file has the rights that the umask gives; safetensors and tempfile make theirs 0600
            rights = stat.S_IMODE(temporary.stat().st_mode)
            temporary.unlink()
            try:
                os.link(local, temporary)
                temporary.chmod(rights)
            except OSError:  # another file system, one without hard links, or a file of another user
                temporary.unlink(missing_ok=True)
                shutil.copyfile(local, temporary)
        return Entry(path, self.local(path).stat().st_size, None)

    def create(self, path: str, data: bytes) -> bool:
        final = self.local(path)
        with _errors_as_sentences(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = _beside(final)
            try:
                temporary.write_bytes(data)
                _fsync(temporary)
                os.link(temporary, final)
                _fsync(final.parent)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def _whole(self, path: str) -> Iterator[Path]:
        """Yield a temporary path beside `path`. If the block succeeds, the file gets its name durably."""
        final = self.local(path)
        with _errors_as_sentences(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = _beside(final)
            try:
                yield temporary
                _fsync(temporary)
                temporary.replace(final)
                _fsync(final.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def fetch(self, path: str, to: Path) -> None:
        shutil.copyfile(self.local(path), to)

    def halves(self, prefix: str, before: float, delete: bool = False) -> list[Entry]:
        """Files that a killed process left half-written, older than `before`; deleted when asked to."""
        found = []
        for folder, _, names in os.walk(self.local(prefix)):
            for file in (Path(folder, name) for name in names if name.startswith(".partial-")):
                with contextlib.suppress(FileNotFoundError):  # it got its name meanwhile
                    entry = _entry(file.relative_to(self.root).as_posix(), file)
                    found += [entry] if entry.modified < before else []
        if delete:
            for entry in found:
                self.delete(entry.path)
        return sorted(found, key=lambda entry: entry.path)

    def list(self, prefix: str) -> list[Entry]:
        """Every file whose path starts with `prefix`, sorted by path; half-written ones are left out."""
        base = self.local(prefix)
        folder = base if prefix.endswith("/") or not prefix else base.parent
        found = []
        for parent, _, names in os.walk(folder):
            for name in names:
                file = Path(parent, name)
                path = file.relative_to(self.root).as_posix()
                if path.startswith(prefix) and not name.startswith(".partial-"):
                    with contextlib.suppress(FileNotFoundError):
                        found.append(_entry(path, file))
        return sorted(found, key=lambda entry: entry.path)

    def stat(self, path: str) -> Entry | None:
        try:
            return _entry(path, self.local(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self, path: str) -> None:
        with _errors_as_sentences(self.local(path)):
            self.local(path).unlink(missing_ok=True)

    def drop_empty_folder(self, path: str) -> None:
        """Remove a folder and its subfolders where no file is left. Only for folders that nobody else writes to any more."""
        for parent, _, _ in os.walk(self.local(path), topdown=False):
            with contextlib.suppress(OSError):  # not empty
                Path(parent).rmdir()

    def now(self) -> float:
        """The file system's clock, by a file made now: machines that share a root by NFS judge locks by one clock, its server's.

        Where no file can be made (read-only, full, or not there yet), this machine's clock.
        """
        for folder in (Path(self.root, "artifacts"), Path(self.root)):
            probe = _beside(folder / "clock")
            with contextlib.suppress(OSError):
                try:
                    probe.touch(exist_ok=False)
                    return probe.stat().st_ctime
                finally:
                    probe.unlink(missing_ok=True)
        return time.time()

    def probe(self) -> None:
        """Refuse a root that cannot be written, before any work is done for it."""
        folder = Path(self.root)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = _beside(folder / "probe")
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise InputError(f"cannot write under storage.root {self.uri}: {error.strerror}. Give a folder that you own.") from error

    def free_bytes(self) -> int:
        return _free_bytes(Path(self.root))


def _entry(path: str, file: Path) -> Entry:
    """A hard link keeps its file's mtime; the ctime is when the link was made."""
    found = file.stat()
    return Entry(path, found.st_size, None, max(found.st_mtime, found.st_ctime))


def _beside(final: Path) -> Path:
    return final.with_name(f".partial-{secrets.token_hex(6)}")


def _free_bytes(folder: Path) -> int:
    """Free bytes where `folder` is or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _errors_as_sentences(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn errors of the disk into sentences; a missing file stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _sentence(error, path, verb) from error


def _sentence(error: OSError, path: Path, verb: str) -> PipelineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free_bytes(path.parent)
        return StorageError(f"the disk under {path.parent} is full ({free:,} bytes free). Nothing was published; make space and run again.")
    if error.errno == errno.EROFS:
        return InputError(f"cannot {verb} {path}: the file system is read-only. Give storage.root a writable folder.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"cannot {verb} {path}: permission denied. Give storage.root a folder that you own.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        in_the_way = next((parent for parent in path.parents if parent.is_file()), path)
        return InputError(f"a file stands where a folder must be: {in_the_way}. Move it away and run again.")
    if error.errno == errno.EISDIR:
        return InputError(f"a folder stands where a file must be: {path}. Move it away and run again.")
    return StorageError(f"cannot {verb} {path}: {error.strerror or error}. Check the disk or mount that holds it, then run again.")
