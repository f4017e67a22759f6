"""From the bytes of a file, or of a split of one, to rows, by the file's form. Nothing that a file holds makes `read` raise."""

from collections.abc import Callable, Iterator
from email import message_from_string
from typing import BinaryIO

from sources.config import IngestConfig, Source
from sources.docstrings import docstrings, questions
from sources.files import PLUG_IN, SourceFile
from sources.lines import LineFile
from sources.plug_in_records import read_by_plug_in
from sources.records import begins_an_array, read_array, read_jsonl, read_parquet
from sources.roff import deroff
from sources.rows import HEAD_BYTES, Blank, Document, Row, Unreadable
from sources.streams import StreamFault
from sources.texts import decode, decode_python, html_text, read_whole


def read(file: SourceFile, source: Source, limits: IngestConfig, handle: BinaryIO, start: int = 0, end: int | None = None) -> Iterator[Row]:
    """The rows of a file, or of what starts in [start, end) of a file that was split."""
    if file.form in RECORD_FORMS:
        return RECORD_FORMS[file.form](file, source, limits, handle, start, end)
    return _whole(file, source, limits, handle)


def _jsonl(file: SourceFile, source: Source, limits: IngestConfig, handle: BinaryIO, start: int, end: int | None) -> Iterator[Row]:
    if start == 0 and begins_an_array(handle, file.compression, limits.max_expansion):
        return read_array(handle, file.locator, file.compression, source, limits)
    lines = LineFile(file.compression, source.encoding, limits.max_record_bytes, limits.max_expansion)
    return read_jsonl(handle, file.locator, source, lines, start, end)


def _parquet(file: SourceFile, source: Source, limits: IngestConfig, handle: BinaryIO, start: int, end: int | None) -> Iterator[Row]:
    return read_parquet(handle, file.locator, source, limits.max_record_bytes, limits.max_expansion, start, end)


def _plug_in(file: SourceFile, source: Source, limits: IngestConfig, handle: BinaryIO, start: int, end: int | None) -> Iterator[Row]:
    return read_by_plug_in(handle, file.locator, file.compression, source, limits)


def _whole(file: SourceFile, source: Source, limits: IngestConfig, handle: BinaryIO) -> Iterator[Row]:
    data = b""
    try:
        data = read_whole(handle, file.compression, limits.max_record_bytes, limits.max_expansion)
        if file.form in PARSED and len(data) > MOST_PARSED_BYTES:
            raise StreamFault(f"{len(data):,} bytes of {file.form}, of which at most {MOST_PARSED_BYTES:,} are parsed; split the file")
        for document in WHOLE_FORMS[file.form](file, source, data):
            document.text.encode()  # a lone surrogate can be written nowhere
            yield document if document.text.strip() else Blank(document.locator)
    except StreamFault as fault:
        handle.seek(0)
        yield Unreadable(file.locator, 0, str(fault), (data or handle.read(HEAD_BYTES))[:HEAD_BYTES])
    except UnicodeEncodeError:
        yield Unreadable(file.locator, 0, "a text with lone surrogates, which no encoding holds", data[:HEAD_BYTES])


def _text(file: SourceFile, source: Source, data: bytes) -> Iterator[Document]:
    decoded = decode(data, source.encoding)
    extra: dict[str, object] | None = None if decoded.encoding == "utf-8" else {"encoding": decoded.encoding, "encoding_is": decoded.how}
    yield Document(file.locator, decoded.text, file.group, extra=extra)


def _html(file: SourceFile, source: Source, data: bytes) -> Iterator[Document]:
    for document in _text(file, source, data):
        yield document._replace(text=html_text(document.text))


def _man(file: SourceFile, source: Source, data: bytes) -> Iterator[Document]:
    for document in _text(file, source, data):
        yield document._replace(text=deroff(document.text))


def _metadata(file: SourceFile, source: Source, data: bytes) -> Iterator[Document]:
    """The long description of a distribution: the body of its METADATA, or the Description header of older ones."""
    message = message_from_string(decode(data, source.encoding).text)
    body = message.get_payload()
    text = body if isinstance(body, str) and body.strip() else str(message.get("Description") or "")
    license = message.get("License-Expression")
    yield Document(file.locator, text, file.group, str(license) if license else None)


def _python(file: SourceFile, source: Source, data: bytes) -> Iterator[Document]:
    decoded = decode_python(data)
    extra: dict[str, object] | None = None if decoded.how == "utf-8" else {"encoding": decoded.encoding, "encoding_is": "declared"}
    yield Document(file.locator, decoded.text, file.group, extra=extra)


def _docstrings(file: SourceFile, source: Source, data: bytes) -> Iterator[Document]:
    yield Document(file.locator, _storable(docstrings(decode_python(data).text)), file.group)


def _questions(file: SourceFile, source: Source, data: bytes) -> Iterator[Document]:
    seen: dict[str, int] = {}
    for question in questions(decode_python(data).text):
        seen[question.name] = seen.get(question.name, 0) + 1
        again = f"~{seen[question.name]}" if seen[question.name] > 1 else ""
        prompt, response = _storable(question.prompt), _storable(question.response)
        extra: dict[str, object] = {"prompt": prompt, "response": response, "names": list(question.names)}
        yield Document(f"{file.locator}#{question.name}{again}", prompt + response, file.group, extra=extra)


def _storable(text: str) -> str:
    """A string literal may hold lone surrogates by escapes; they become question marks."""
    return text.encode("utf-8", "replace").decode()


RECORD_FORMS: dict[str, Callable[[SourceFile, Source, IngestConfig, BinaryIO, int, int | None], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    PLUG_IN: _plug_in,
}
"""Forms of many documents, which are read as a stream: sources.files.RECORDS."""
WHOLE_FORMS: dict[str, Callable[[SourceFile, Source, bytes], Iterator[Document]]] = {
    "txt": _text,
    "md": _text,
    "html": _html,
    "man": _man,
    "metadata": _metadata,
    "python": _python,
    "docstrings": _docstrings,
    "questions": _questions,
}
"""Forms that are in memory as a whole: at most ingest.max_record_bytes."""
PARSED = WHOLE_FORMS.keys() - {"txt", "md", "python"}
MOST_PARSED_BYTES = 12 * 2**20  # parsing takes up to 60 times as much
