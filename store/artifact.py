"""Artifacts: files that a manifest names. What no manifest names does not exist.

artifacts/<stage>/<fingerprint>/<attempt>/<file>           written first, in any number of attempts
artifacts/<stage>/<fingerprint>/manifest-<n>.json          written last and only if absent; the highest valid n counts
"""

import hashlib
import io
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.config import canonical_json
from contract.errors import IntegrityError, StorageError
from contract.ledger import Ledger
from store.checked import dump_checked, load_checked
from store.digests import digest_of_bytes
from store.fetched import copy_of, fetched_folder
from store.storage import Storage, matches, stays_inside

SCHEMA = 1
"""Raised when the manifest's form changes; a newer one than ours is refused with a sentence."""
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: `name` as readers ask for it, `path` in the store (it names the attempt that wrote it)."""

    name: str
    path: str
    size: int
    digest: str
    token: str | None = None
    rows: int | None = None
    content: bool = True

    def __post_init__(self) -> None:
        """Manifests, seals and checkpoints are made into these when they are read: what they name becomes paths of this machine."""
        if not (stays_inside(self.name) and stays_inside(self.path) and DIGEST.fullmatch(self.digest)):
            raise ValueError(f"{self.name!r} at {self.path!r} is no record of a file")


def folder_of(stage: str, fingerprint: str) -> str:
    return f"artifacts/{stage}/{fingerprint}/"


def content_digest(files: Sequence[FileRecord]) -> str:
    """SHA-256 over (name, file digest) of the content files, sorted: attempts, times and attachments do not enter."""
    return hashlib.sha256(canonical_json(sorted([f.name, f.digest] for f in files if f.content))).hexdigest()


class Files:
    """Read access to recorded files by name; on S3 they are fetched once into a cache (store/fetched.py)."""

    storage: Storage
    files: dict[str, FileRecord]

    def names(self, prefix: str = "part-") -> list[str]:
        return sorted(name for name in self.files if name.startswith(prefix))

    def record(self, name: str) -> FileRecord:
        if name not in self.files:
            raise IntegrityError(f"{self.where()} has no file {name}; it has {', '.join(sorted(self.files)[:8])}")
        return self.files[name]

    def where(self) -> str:
        return self.storage.uri

    def rows(self, name: str) -> int:
        return self.record(name).rows or 0

    def read(self, name: str) -> bytes:
        record = self.record(name)
        data = self.storage.read(record.path)
        if len(data) != record.size or (self.storage.local(record.path) is None and digest_of_bytes(data) != record.digest):
            raise IntegrityError(
                f"{self.where()}: {name} has {len(data):,} bytes that are not the {record.size:,} recorded.\n"
                f"{self.storage.uri}/{record.path}\nRun it again: only this stage is rebuilt."
            )
        return data

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        local = self.storage.local(self.record(name).path)
        source = str(local) if local is not None else io.BytesIO(self.read(name))
        return pq.read_table(source, columns=columns, memory_map=local is not None, partitioning=None)

    def path(self, name: str) -> Path:
        """A local file with the content of `name`."""
        record = self.record(name)
        local = self.storage.local(record.path)
        if local is not None:
            return local
        copy = copy_of(record.digest, Path(name).suffix, lambda to: self.storage.fetch(record.path, to))
        if copy is None:
            raise IntegrityError(f"{self.where()}: {name} is not what was recorded. Run it again: only this stage is rebuilt.")
        return copy

    def folder(self, prefix: str) -> Path:
        """A local folder that holds every file under `prefix`/, by its own name."""
        names = self.names(prefix + "/")
        if not names:
            raise IntegrityError(f"{self.where()} has no folder {prefix}")
        parents = {self.path(name).parent for name in names}
        if len(parents) == 1 and self.storage.local("") is not None:
            return parents.pop()
        key = digest_of_bytes(canonical_json([[name, self.files[name].digest] for name in names]))
        folder = fetched_folder() / "folders" / key
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            link = folder / name[len(prefix) + 1 :]
            link.parent.mkdir(parents=True, exist_ok=True)
            partial = link.with_name(f".partial-{secrets.token_hex(6)}")
            partial.symlink_to(self.path(name))
            partial.replace(link)
        return folder


class Artifact(Files):
    """A published stage output. Picklable: it goes to other processes as (storage, manifest)."""

    def __init__(self, storage: Storage, manifest: dict[str, Any]) -> None:
        self.storage, self.manifest = storage, manifest
        self.files = {record["name"]: FileRecord(**record) for record in manifest["files"]}

    stage = property(lambda self: str(self.manifest["stage"]))
    fingerprint = property(lambda self: str(self.manifest["fingerprint"]))
    digest = property(lambda self: str(self.manifest["digest"]))
    figures = property(lambda self: dict(self.manifest["figures"]))
    seconds = property(lambda self: float(self.manifest["seconds"]))

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger.from_json(self.manifest["ledger"])

    @property
    def size(self) -> int:
        return sum(record.size for record in self.files.values())

    def where(self) -> str:
        return f"{self.stage}@{self.fingerprint[:12]}"

    def damaged(self) -> str | None:
        """The first file that is missing or changed, or None: sizes and checksums of all are compared."""
        for folder in sorted({record.path.rsplit("/", record.name.count("/") + 1)[0] for record in self.files.values()}):
            found = {entry.path: entry for entry in self.storage.list(folder + "/")}
            for record in self.files.values():
                if record.path.startswith(folder + "/") and not matches(
                    self.storage, found.get(record.path), record.size, record.digest, record.token
                ):
                    return record.name
        return None


def find(storage: Storage, stage: str, fingerprint: str) -> Artifact | None:
    """The artifact of the highest valid manifest, or None."""
    for entry in reversed(storage.list(folder_of(stage, fingerprint) + "manifest-")):
        artifact = read_manifest(storage, entry.path)
        if artifact is not None and artifact.fingerprint == fingerprint:
            return artifact
    return None


def read_manifest(storage: Storage, path: str) -> Artifact | None:
    """The artifact that one manifest names; None for what is not as we write it: it does not count. Refuses a newer schema."""
    try:
        manifest = load_checked(storage.read(path))
    except (ValueError, FileNotFoundError):
        return None
    if manifest.get("schema", 0) > SCHEMA:
        raise StorageError(
            f"{path} has manifest schema {manifest['schema']}, this version reads up to {SCHEMA}. Upgrade Bessemer, or use another root."
        )
    try:
        return Artifact(storage, manifest) if manifest.get("fingerprint") and manifest.get("nonce") else None
    except ValueError:  # it names a file outside
        return None


def unreadable(storage: Storage, stage: str, fingerprint: str) -> list[str]:
    """Manifests of a fingerprint that are no manifests (any more), by name."""
    entries = storage.list(folder_of(stage, fingerprint) + "manifest-")
    return [entry.path.rpartition("/")[2] for entry in entries if read_manifest(storage, entry.path) is None]


def publish(storage: Storage, manifest: dict[str, Any], files: Sequence[FileRecord], after: int) -> Artifact:
    """Write manifest number `after` + 1 if it is absent. Returns the artifact that counts: ours, or that of a faster run.

    A number whose manifest cannot be read any more is passed over.
    """
    number = after + 1
    while True:
        whole = manifest | {
            "schema": SCHEMA,
            "number": number,
            "nonce": secrets.token_hex(16),
            "digest": content_digest(files),
            "files": [asdict(record) for record in sorted(files, key=lambda record: record.name)],
        }
        path = f"{folder_of(manifest['stage'], manifest['fingerprint'])}manifest-{number:06d}.json"
        if storage.create(path, dump_checked(whole, indent=1)):
            return Artifact(storage, whole)
        other = find(storage, manifest["stage"], manifest["fingerprint"])
        if other is not None and other.manifest["number"] >= number:
            return other
        number += 1
