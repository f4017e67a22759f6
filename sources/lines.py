"""Lines of a byte stream, with their offsets. A split of a file owns the lines that start in it, so any splits give all lines once.

A line ends at U+000A alone (the byte 0x0A; in UTF-16 and UTF-32 the code unit), since U+2028, U+0085 and CR stand in good texts.
"""

import codecs
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from sources.rows import HEAD_BYTES
from sources.streams import StreamFault, not_plain, stream

MARKS = (  # the longer first: the mark of UTF-32-LE begins as that of UTF-16-LE does
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Line(NamedTuple):
    """A line without its end. `fault` says why it cannot be had; then `data` holds its first bytes only."""

    offset: int
    data: bytes
    fault: str | None = None


def marked(head: bytes) -> tuple[str, int] | None:
    """The encoding that a byte order mark names, and the mark's length."""
    return next(((name, len(mark)) for mark, name in MARKS if head.startswith(mark)), None)


def unmarked(head: bytes) -> str | None:
    """The wide encoding that four first bytes of Latin letters or JSON look like, where no mark names it."""
    zeros = tuple(byte == 0 for byte in head)
    return WIDE.get(zeros) if marked(head) is None else None


WIDE: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
}


def splittable(head: bytes, declared: str | None) -> bool:
    """Whether a line file with these first four bytes can be cut at any byte: not where it is no text or one JSON array, of which only
    its first split would know, nor where a line's end is another byte than 0x0A (EBCDIC) or several."""
    if unmarked(head) is not None or head.lstrip().startswith(b"["):
        return False
    name = (marked(head) or (declared or "utf-8", 0))[0]
    return not_plain(head) is None and "\n".encode(_plain_name(name)) == b"\n"


def _plain_name(encoding: str) -> str:
    """utf-16 and utf-32 without a byte order: the machine's own would do for neither files nor tests, so little-endian."""
    return {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(encoding, encoding)


class LineFile(NamedTuple):
    """How to read lines: the encoding that a mark or the declaration gives, and the limits."""

    compression: str | None
    declared: str | None
    max_line_bytes: int
    max_expansion: int

    def lines(self, handle: BinaryIO, start: int, end: int | None) -> Iterator[tuple[str, Line]]:
        """(encoding, line) of every line that starts in [start, end); `end` None: to the end. Raises nothing of the content's."""
        if self.compression is None and start:
            head = handle.read(4)
            encoding = _plain_name((marked(head) or (self.declared or "utf-8", 0))[0])
            handle.seek(start - 1)
            every = lines(stream(handle, None, self.max_expansion), start - 1, b"\n", self.max_line_bytes)
            next(every, None)  # the rest of a line that starts before; it belongs to the split before
        else:
            chunks = _peeked(stream(handle, self.compression, self.max_expansion))
            head, fault = next(chunks)
            if self.declared is None and (looks := unmarked(head[:4])) is not None:
                why = f"it looks like {looks} without a byte order mark; if it is, set the source's encoding: {looks}"
                yield "utf-8", Line(0, head[:HEAD_BYTES], why)
                return
            name, skip = marked(head) or (self.declared or "utf-8", 0)
            encoding = _plain_name(name)
            every = _from_mark(lines(_rest(head[skip:], fault, chunks), skip, "\n".encode(encoding), self.max_line_bytes))
        for line in every:
            if end is not None and line.offset >= end:
                return
            yield encoding, line


def _from_mark(every: Iterator[Line]) -> Iterator[Line]:
    """The first line starts where the file does: a byte order mark is part of it, for whatever split begins behind."""
    for line in every:
        yield line._replace(offset=0)
        break
    yield from every


Peek = tuple[bytes, StreamFault | None]


def _peeked(chunks: Iterator[bytes]) -> Iterator[Peek]:
    """The chunks, a fault as a value after them; the first chunk has 4 bytes at least where the stream has."""
    head = b""
    try:
        for chunk in chunks:
            head += chunk
            if len(head) >= 4:
                yield head, None
                head = b""
        yield head, None
    except StreamFault as fault:
        yield head, fault


def _rest(head: bytes, fault: StreamFault | None, chunks: Iterator[Peek]) -> Iterator[bytes]:
    yield head
    if fault:
        raise fault
    for chunk, later in chunks:
        yield chunk
        if later:
            raise later


def lines(chunks: Iterator[bytes], at: int, newline: bytes, max_bytes: int) -> Iterator[Line]:
    """Lines of the chunks, the first of which begins at offset `at`. A line over `max_bytes` is passed over, not kept."""
    width = len(newline)
    pending, length = bytearray(), 0  # the line so far: its first max_bytes + 1 bytes, and how long it is
    try:
        for chunk in _aligned(chunks, width):
            begin = 0
            while (end := _find(chunk, newline, begin)) >= 0:
                if length:
                    pending += chunk[begin : min(end, begin + max_bytes + 1)]
                    length += end - begin
                    yield _line(at, bytes(pending), length, max_bytes)
                    pending.clear()
                else:
                    length = end - begin
                    yield _line(at, chunk[begin:end], length, max_bytes)
                at, begin, length = at + length + width, end + width, 0
            pending += chunk[begin : begin + max(0, max_bytes + 1 - len(pending))]
            length += len(chunk) - begin
    except StreamFault as fault:
        yield Line(at, bytes(pending[:HEAD_BYTES]), str(fault))
        return
    if length:
        yield _line(at, bytes(pending), length, max_bytes)


def _line(at: int, data: bytes, length: int, max_bytes: int) -> Line:
    if length > max_bytes:
        return Line(at, data[:HEAD_BYTES], f"a line of {length:,} bytes; at most {max_bytes:,} are read (ingest.max_record_bytes)")
    return Line(at, data)


def _aligned(chunks: Iterator[bytes], width: int) -> Iterator[bytes]:
    """The same bytes in chunks whose lengths are multiples of `width`, but for the last."""
    if width == 1:
        yield from chunks
        return
    rest = b""
    for chunk in chunks:
        whole = rest + chunk
        cut = len(whole) - len(whole) % width
        yield whole[:cut]
        rest = whole[cut:]
    yield rest


def _find(chunk: bytes, newline: bytes, begin: int) -> int:
    """Where the next line end stands at a code unit's boundary; -1 when there is none."""
    at = chunk.find(newline, begin)
    while at >= 0 and (at - begin) % len(newline):
        at = chunk.find(newline, at + 1)
    return at
