"""What a reader yields, one row a record seen, and the Arrow tables that rows become."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
import pyarrow as pa

from contract.schemas import DOCUMENTS, QUARANTINE, document_id
from sources.config import Source

HEAD_BYTES = 200
EXTRA_BYTES = 8192
"""A record's other fields are kept up to this size; beyond, only their size is."""


class Document(NamedTuple):
    locator: str
    text: str
    group: str | None = None
    license: str | None = None
    extra: dict[str, object] | None = None


class Unreadable(NamedTuple):
    """A record, or the rest of a file, that cannot be read; `offset` in the decompressed stream (Parquet: the row; a reader
    of the user's own: the number of the record)."""

    locator: str
    offset: int
    reason: str
    head: bytes


class Blank(NamedTuple):
    """A whole file without any text: no fault, and no document."""

    locator: str


Row = Document | Unreadable | Blank


@dataclass
class Batch:
    """Rows of one part on their way to tables."""

    columns: dict[str, list] = field(default_factory=lambda: {name: [] for name in DOCUMENTS.names})
    text_bytes: int = 0

    def add(self, source: Source, document: Document) -> int:
        """Append a document; returns the bytes of its text."""
        values = {
            "id": document_id(source.name, document.locator),
            "text": document.text,
            "domain": source.domain,
            "source": source.name,
            "locator": document.locator,
            "group": document.group,
            "license": document.license or source.license,
            "language": source.language,
            "extra": _extra(document.extra),
        }
        for name, value in values.items():
            self.columns[name].append(value)
        size = len(document.text.encode())
        self.text_bytes += size
        return size

    def table(self) -> pa.Table:
        return pa.table(self.columns, schema=DOCUMENTS)


def _extra(extra: dict[str, object] | None) -> str | None:
    if not extra:
        return None
    data = orjson.dumps(extra, option=orjson.OPT_SORT_KEYS, default=str)
    return data.decode() if len(data) <= EXTRA_BYTES else orjson.dumps({"omitted_bytes": len(data)}).decode()


def quarantine_table(rows: Iterable[tuple[str, Unreadable]]) -> pa.Table:
    """Rows of (source name, what was unreadable). A uri here is `source:locator`: the same wherever the source lies."""
    return pa.Table.from_pylist(
        [{"uri": f"{name}:{row.locator}", "offset": row.offset, "reason": row.reason, "head": row.head[:HEAD_BYTES]} for name, row in rows],
        schema=QUARANTINE,
    )
