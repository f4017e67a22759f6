"""From a file, or a split of one, to rows. Reading never raises for what a file holds; it raises when the file is not the one planned."""

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from typing import BinaryIO

from contract.errors import IntegrityError
from sources.config import IngestConfig, Source
from sources.docstrings import docstrings, questions
from sources.files import SourceFile
from sources.lines import LineFile
from sources.records import read_jsonl, read_parquet
from sources.roff import deroff
from sources.rows import HEAD_BYTES, Blank, Document, Row, Unreadable
from sources.streams import StreamFault
from sources.texts import decode, decode_python, html_text, read_whole
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


def read(file: SourceFile, source: Source, limits: IngestConfig, handle: BinaryIO, start: int = 0, end: int | None = None) -> Iterator[Row]:
    """The rows of a file, or of what starts in [start, end) of a record file. Nothing that the content does raises."""
    if file.form == "jsonl":
        lines = LineFile(file.compression, source.encoding, limits.max_record_bytes, limits.max_expansion)
        return read_jsonl(handle, file.locator, source, lines, start, end)
    if file.form == "parquet":
        return read_parquet(handle, file.locator, source, limits.max_record_bytes, limits.max_expansion, start, end)
    return _whole(file, source, limits, handle)


def _whole(file: SourceFile, source: Source, limits: IngestConfig, handle: BinaryIO) -> Iterator[Row]:
    data = b""
    try:
        data = read_whole(handle, file.compression, limits.max_record_bytes, limits.max_expansion)
        if file.form in PARSED and len(data) > MOST_PARSED_BYTES:
            raise StreamFault(f"{len(data):,} bytes of {file.form}, of which at most {MOST_PARSED_BYTES:,} are parsed; split the file")
        for document in FORMS[file.form](file, source, data):
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


FORMS: dict[str, Callable[[SourceFile, Source, bytes], Iterator[Document]]] = {
    "txt": _text,
    "md": _text,
    "html": _html,
    "man": _man,
    "metadata": _metadata,
    "python": _python,
    "docstrings": _docstrings,
    "questions": _questions,
}
PARSED = FORMS.keys() - {"txt", "md", "python"}
MOST_PARSED_BYTES = 12 * 2**20  # parsing takes up to 60 times as much
