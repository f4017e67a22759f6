"""One attempt at a stage: its files, and the seals that let a later attempt adopt finished parts.

A seal `<attempt>/<part>.seal` is written after the part's files and names them with their digests, beside what the work
returned. It holds the basis (the digests of the inputs), so a part made from other inputs is never adopted.
"""

import io
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.errors import IntegrityError
from store.artifact import FileRecord, Files, folder_of
from store.checked import dump_checked, load_checked
from store.digests import digest_of_bytes, read_digest
from store.storage import Storage, matches


@dataclass(frozen=True)
class Attempt:
    """Where this attempt writes. Picklable: parts are written by other processes."""

    storage: Storage
    stage: str
    fingerprint: str
    basis: str
    id: str

    @classmethod
    def new(cls, storage: Storage, stage: str, fingerprint: str, basis: str) -> "Attempt":
        return cls(storage, stage, fingerprint, basis, secrets.token_hex(8))

    @property
    def folder(self) -> str:
        return f"{folder_of(self.stage, self.fingerprint)}{self.id}/"

    def bytes(self, name: str, data: bytes, content: bool = True, rows: int | None = None) -> FileRecord:
        entry = self.storage.write(self.folder + name, data)
        return FileRecord(name, entry.path, entry.size, digest_of_bytes(data), entry.token, rows, content)

    def file(self, name: str, local: Path, content: bool = True) -> FileRecord:
        entry = self.storage.put(self.folder + name, local)
        rows = pq.read_metadata(local).num_rows if name.endswith(".parquet") else None
        return FileRecord(name, entry.path, entry.size, read_digest(local), entry.token, rows, content)

    def table(self, name: str, table: pa.Table, content: bool = True) -> FileRecord:
        return self.bytes(name, parquet_bytes(table), content, table.num_rows)

    def seal(self, part: str, files: Iterable[FileRecord], result: dict[str, Any]) -> None:
        value = {"basis": self.basis, "files": [asdict(record) for record in files], "result": result}
        self.storage.write(f"{self.folder}{part}.seal", dump_checked(value))

    def sealed(self) -> dict[str, tuple[list[FileRecord], dict[str, Any]]]:
        """Parts that any attempt of this fingerprint finished from the same inputs and whose files are still whole."""
        folder = folder_of(self.stage, self.fingerprint)
        if any(entry.path.endswith(".seal") for entry in self.storage.list(folder)):
            self.storage.write(f"{self.folder}ADOPTING", b"")  # from here on a clean-up leaves all attempts of this fingerprint alone
        entries = {entry.path: entry for entry in self.storage.list(folder)}
        found: dict[str, tuple[list[FileRecord], dict[str, Any]]] = {}
        for path in entries:
            if not path.endswith(".seal"):
                continue
            try:
                value = load_checked(self.storage.read(path))
                files = [FileRecord(**record) for record in value["files"]]
            except (ValueError, FileNotFoundError):
                continue  # changed, or tidied away meanwhile: the part is worked on again
            whole = all(matches(self.storage, entries.get(f.path), f.size, f.digest, f.token) for f in files)
            if value["basis"] == self.basis and whole:
                found[path.split("/", 4)[-1].removesuffix(".seal")] = (files, value["result"])
        return found

    def lost(self, files: Iterable[FileRecord]) -> str | None:
        """The first adopted file that is gone from the store (a clean-up took it), or None."""
        folder = folder_of(self.stage, self.fingerprint)
        adopted = [record for record in files if not record.path.startswith(self.folder)]
        there = {entry.path for entry in self.storage.list(folder)} if adopted else set()
        return next((record.name for record in adopted if record.path not in there), None)

    def tidy(self, named: set[str]) -> None:
        """Delete this attempt's own files but those named; other attempts' are not ours to delete."""
        for entry in self.storage.list(self.folder):
            if entry.path not in named:
                self.storage.delete(entry.path)


class Reader(Files):
    """Files of a stage that is still at work, for its later steps."""

    def __init__(self, storage: Storage, files: dict[str, FileRecord], stage: str) -> None:
        self.storage, self.files, self._stage = storage, files, stage

    def where(self) -> str:
        return f"{self._stage} (at work)"


def parquet_bytes(table: pa.Table) -> bytes:
    """The one way tables become bytes: zstd, statistics off for blobs of text, nothing that depends on the time."""
    if any(field.type == pa.null() for field in table.schema):
        raise IntegrityError("a table with a column of type null has no stable schema; give the column its type")
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=1, row_group_size=1 << 16, store_schema=True)
    return sink.getvalue()
