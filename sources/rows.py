"""What a reader yields, one row a record seen, and the Arrow tables that rows become."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
import pyarrow as pa

from contract.schemas import DOCUMENTS, QUARANTINE, document_id
from sources.config import Source

HEAD_BYTES = 200
EXTRA_BYTES = 8192
"""A record's other fields are kept up to this size, what says where a text comes from first, then the shortest."""
PROVENANCE = ("url", "uri", "source_url", "id", "license", "licence", "doi", "source", "title", "author", "date", "timestamp")


class Document(NamedTuple):
    locator: str
    text: str
    group: str | None = None
    license: str | None = None
    extra: dict[str, object] | None = None
    omitted: tuple[str, ...] = ()
    """Other fields whose value could not be read. A text is never lost for them."""


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
    omitted: Counter[str] = field(default_factory=Counter)
    """How often a field of a source (`source: field`) had a value that could not be kept."""

    def add(self, source: Source, document: Document) -> int:
        """Append a document; returns the bytes of its text."""
        extra, too_much = as_json(document.extra or {})
        self.omitted.update(f"{source.name}: {name}" for name in (*document.omitted, *too_much))
        values = {
            "id": document_id(source.name, document.locator),
            "text": document.text,
            "domain": source.domain,
            "source": source.name,
            "locator": document.locator,
            "group": document.group,
            "license": document.license or source.license,
            "language": source.language,
            "extra": extra,
        }
        for name, value in values.items():
            self.columns[name].append(value)
        size = len(document.text.encode())
        self.text_bytes += size
        return size

    def table(self) -> pa.Table:
        return pa.table(self.columns, schema=DOCUMENTS)


def as_json(fields: dict[str, object]) -> tuple[str | None, list[str]]:
    """The fields as one JSON object of at most EXTRA_BYTES, None for none, and the names of those that it cannot hold."""
    whole = _dumped(fields)
    if whole is not None and len(whole) <= EXTRA_BYTES:
        return whole.decode() if fields else None, []
    written = {name: _dumped({name: value}) for name, value in fields.items()}
    kept, size, omitted = {}, len("{}"), []
    for name in sorted(fields, key=lambda name: (name.lower() not in PROVENANCE, len(written[name] or b""), name)):
        data = written[name]
        if data is None or size + len(data) > EXTRA_BYTES:
            omitted.append(name)
            continue
        kept[name] = fields[name]
        size += len(data) - 1  # of its braces, one stands for the comma
    return orjson.dumps(kept, option=OPTIONS, default=str).decode() if kept else None, sorted(omitted)


OPTIONS = orjson.OPT_SORT_KEYS


def _dumped(fields: dict[str, object]) -> bytes | None:
    """None where JSON, or its writer, cannot hold a value: nesting beyond 254, a time zone that nobody knows."""
    try:
        return orjson.dumps(fields, option=OPTIONS, default=str)
    except (TypeError, ValueError, OverflowError, RecursionError, LookupError):
        return None


def quarantine_table(rows: Iterable[tuple[str, Unreadable]]) -> pa.Table:
    """Rows of (source name, what was unreadable). A uri here is `source:locator`: the same wherever the source lies."""
    return pa.Table.from_pylist(
        [{"uri": f"{name}:{row.locator}", "offset": row.offset, "reason": row.reason, "head": row.head[:HEAD_BYTES]} for name, row in rows],
        schema=QUARANTINE,
    )
