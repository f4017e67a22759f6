"""Every byte of every artifact against its manifest. No memo and no server's token is asked: what is read is what is judged."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from contract.errors import PipelineError
from store.artifact import Artifact, FileRecord, content_digest, read_manifest
from store.catalogue import Key, shelves
from store.storage import Storage

Progress = Callable[[int, int, str], None]
"""Told bytes read, bytes in all, and what is read now."""


@dataclass(frozen=True)
class Fault:
    """One file that is not what was recorded."""

    where: str
    """Stage and fingerprint, as screens show them."""
    name: str
    what: str
    path: str

    def __str__(self) -> str:
        return f"{self.where}  {self.name}  {self.what}  {self.path}"


@dataclass(frozen=True)
class Verdict:
    artifacts: int
    files: int
    size: int
    faults: tuple[Fault, ...]


def verify(storage: Storage, progress: Progress, only: Collection[Key] | None = None) -> Verdict:
    """Read every file that a counting manifest names, or those of the fingerprints `only`.

    A manifest that is none any more is a fault. Files of superseded manifests are not judged: one of them may be why it was
    superseded.
    """
    faults: list[Fault] = []
    whole: list[Artifact] = []
    for shelf in shelves(storage):
        if only is not None and shelf.key not in only:
            continue
        for entry in shelf.manifests:
            if read_manifest(storage, entry.path) is None:
                name = entry.path.rpartition("/")[2]
                faults.append(Fault(f"{shelf.stage}@{shelf.fingerprint[:12]}", name, "is no manifest any more", entry.path))
        if (artifact := shelf.artifact(storage)) is not None:
            whole.append(artifact)
    size, done, files = sum(artifact.size for artifact in whole), 0, 0
    for artifact in whole:
        if content_digest(list(artifact.files.values())) != artifact.digest:
            faults.append(Fault(artifact.where(), "manifest", "does not add up to its own digest", storage.uri))
        for record in artifact.files.values():
            progress(done, size, f"{artifact.where()} {record.name}")
            if what := _fault(storage, record):
                faults.append(Fault(artifact.where(), record.name, what, record.path))
            done, files = done + record.size, files + 1
    progress(size, size, "")
    return Verdict(len(whole), files, size, tuple(faults))


def _fault(storage: Storage, record: FileRecord) -> str:
    """What is wrong with a file; empty when it is as recorded."""
    entry = storage.stat(record.path)
    if entry is None:
        return "is missing"
    if entry.size != record.size:
        return f"has {entry.size:,} bytes, {record.size:,} were recorded"
    try:
        digest = storage.digest(record.path)
    except FileNotFoundError:
        return "is missing"
    except (PipelineError, OSError) as error:
        return f"cannot be read: {str(error).splitlines()[0]}"
    return "" if digest == record.digest else "is changed: its bytes are not those recorded"
