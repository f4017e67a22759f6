"""Records of a reader of the user's own. Whatever it yields is a row, and whatever it raises ends its file alone."""

import io
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import orjson

from contract.errors import ConfigError, is_of_the_machine
from sources.config import IngestConfig, Placed, Source
from sources.plug_in_reader import Reader, reader_of
from sources.records import document_of
from sources.rows import HEAD_BYTES, Blank, Document, Row, Unreadable
from sources.streams import CHUNK, StreamFault, stream

MOST_SAID = 500
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def read_by_plug_in(handle: BinaryIO, path: str, compression: str | None, source: Source, limits: IngestConfig) -> Iterator[Row]:
    """A row a value that the reader yields; one more where it, or the stream, ends before its time. Offsets count values from 0.

    Raises only what is of the machine: a disk that fails or is full, memory that does not suffice.
    """
    name, reader = _planned(source)
    opened = None if compression is None else Decompressed(stream(handle, compression, limits.max_expansion))
    file = handle if opened is None else io.BufferedReader(opened, CHUNK)
    at, raised = 0, None
    for value in _values(reader, file, path):
        if isinstance(value, _Raised):
            raised = value.error
        else:
            yield _row(value, path, at, source, limits.max_record_bytes)
            at += 1
    if opened is not None and opened.fault is not None:  # the cause, whatever the reader made of it
        yield Unreadable(path, at, str(opened.fault), b"")
    elif raised is not None:
        yield Unreadable(path, at, f"the reader {name} raised {_said(raised)}; from here on the file is not read", b"")
    elif at == 0:
        yield Blank(path)


def _planned(source: Source) -> tuple[str, Reader]:
    """The reader, of the version that is in the fingerprint: another machine may have another one."""
    assert source.reader is not None
    reader = reader_of(source.reader, source.name)
    if isinstance(source, Placed) and source.reader_version != reader.version:
        raise ConfigError(
            f"the reader of source {source.name}: {source.reader} has version {reader.version} here, and version {source.reader_version} "
            "where the run was planned. Install the same one on every machine."
        )
    return source.reader, reader


class _Raised:
    """What the reader raised, so that it is no value of the reader's."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _values(reader: Reader, file: BinaryIO, path: str) -> Iterator[object]:
    try:
        for value in reader.read(file, path):
            yield dict(value) if isinstance(value, Mapping) else value
    except (Exception, SystemExit) as error:  # it is the user's code
        if is_of_the_machine(error):
            raise
        yield _Raised(error)


def _row(value: object, path: str, at: int, source: Source, most_bytes: int) -> Row:
    if isinstance(value, Exception):
        return Unreadable(path, at, _said(value), b"")
    if not isinstance(value, dict):
        return Unreadable(path, at, f"not a mapping but a {type(value).__name__}", b"")
    text = value.get(source.text_field)
    head = text[:HEAD_BYTES].encode("utf-8", "replace") if isinstance(text, str) else b""
    fields = {key: item for key, item in value.items() if key != source.text_field}
    omitted = [key for key, item in fields.items() if not _is_json(key, item)]
    kept = {key: item for key, item in fields.items() if key not in omitted}
    size = len(orjson.dumps(kept))
    try:
        if isinstance(text, str):
            size += len(text) if len(text) > most_bytes else len(text.encode())
    except UnicodeEncodeError:
        return Unreadable(path, at, "a text with lone surrogates, which no encoding holds", head)
    if size > most_bytes:
        return Unreadable(path, at, f"a record of {size:,} bytes, over {most_bytes:,} (ingest.max_record_bytes)", head)
    row = document_of({**kept, **({source.text_field: text} if source.text_field in value else {})}, path, at, source, head)
    return row._replace(omitted=tuple(sorted(map(str, omitted)))) if isinstance(row, Document) else row


def _is_json(key: object, item: object) -> bool:
    """Whether JSON holds a field as it is, and not by a text that may name an address in memory."""
    try:
        orjson.dumps({key: item})
    except TypeError:  # orjson's own is one
        return False
    return True


def _said(error: BaseException) -> str:
    """Its kind and text on one line, without addresses in memory: equal bytes must give an equal quarantine."""
    try:
        text = str(error)
    except Exception:  # of the user's code, as the error is
        text = ""
    line = " ".join(ADDRESS.sub("0x…", text).split())
    return f"{type(error).__name__}: {line}"[:MOST_SAID].encode("utf-8", "replace").decode()


class Decompressed(io.RawIOBase):
    """A decompressed stream as a file. It keeps its fault: a reader that catches it would lose the rest without a word."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")
        self.fault: StreamFault | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.fault is not None:
            raise self.fault
        try:
            while not self._left and (chunk := next(self._chunks, None)) is not None:
                self._left = memoryview(chunk)
        except StreamFault as fault:
            self.fault = fault
            raise
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
