"""Whole files as one document each: their encoding, and the text in HTML. UTF-8 strictly first, then declared, then detected."""

import html
import io
import re
import tokenize
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from charset_normalizer import CharsetMatch, from_bytes

from sources.lines import marked
from sources.streams import StreamFault, stream

SAMPLE_BYTES = 2**16


class Decoded(NamedTuple):
    text: str
    encoding: str
    how: str
    """utf-8, marked, declared or detected."""


def read_whole(handle: BinaryIO, compression: str | None, max_bytes: int, max_expansion: int) -> bytes:
    """All decompressed bytes. Raises StreamFault when the stream is broken or longer than `max_bytes`."""
    size, chunks = 0, []
    for chunk in stream(handle, compression, max_expansion):
        size += len(chunk)
        if size > max_bytes:
            raise StreamFault(f"a file of more than {max_bytes:,} bytes as one document (ingest.max_record_bytes)")
        chunks.append(chunk)
    return b"".join(chunks)


def decode(data: bytes, declared: str | None) -> Decoded:
    """The text of a whole file. Raises StreamFault when no encoding fits, or when it is no text."""
    if mark := marked(data[:4]):
        name, length = mark
        try:
            return Decoded(data[length:].decode(name), name, "utf-8" if name == "utf-8" else "marked")
        except UnicodeDecodeError as error:
            raise StreamFault(f"its byte order mark says {name}, which it is not ({error.reason} at byte {error.start:,})") from error
    for name, how in (("utf-8", "utf-8"), *([(declared, "declared")] if declared else [])):
        try:
            text = data.decode(name)
        except UnicodeError:
            continue
        if "\0" not in text:
            return Decoded(text, name, how)
    return _detected(data)


def _detected(data: bytes) -> Decoded:
    for name in _wide(data[:SAMPLE_BYTES]) if b"\0" in data else _narrow(data):
        try:
            text = data.decode(name)
        except (UnicodeError, LookupError):
            continue
        if "\0" not in text:
            return Decoded(text, name, "detected")
    raise StreamFault("not UTF-8, and no other encoding fits; is it text? Declare its `encoding` if it is")


def _narrow(data: bytes) -> Iterator[str]:
    """The best guess; where several tie, as short Western texts do, Windows-1252, which most such files are in."""
    matches = from_bytes(data)
    best = matches.best()
    if best is not None:
        tied = {name for match in matches if (match.chaos, match.coherence) == (best.chaos, best.coherence) for name in _same(match)}
        yield from [name for name in ("cp1252", "latin_1") if name in tied]
        yield best.encoding


def _same(match: CharsetMatch) -> list[str]:
    return [match.encoding, *match.could_be_from_charset]


def _wide(sample: bytes) -> Iterator[str]:
    """UTF-16 without a mark: most texts have NULs in every other byte and in no others."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > 4 * even and odd > len(sample) // 5:
        yield "utf-16-le"
    elif even > 4 * odd and even > len(sample) // 5:
        yield "utf-16-be"


def decode_python(data: bytes) -> Decoded:
    """Python source by its own rules (PEP 263). Raises StreamFault where those do not decode it."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return Decoded(data.decode(encoding).removeprefix("\ufeff"), encoding, "utf-8" if encoding.startswith("utf-8") else "declared")
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise StreamFault(f"Python source that its declared encoding does not decode ({error})") from error


HIDDEN = re.compile(r"<(script|style|head)\b", re.IGNORECASE)
BLOCK = re.compile(r"<(?:br|/?(?:p|div|h[1-6]|li|ul|ol|tr|table|pre|dl|dt|dd|blockquote|section|hr))\b[^>]*>", re.IGNORECASE)
TAG = re.compile(r"<[!/a-zA-Z?][^>]*>")
COMMENT_OR_TAG = re.compile(rf"<!--.*?-->|{TAG.pattern}", re.DOTALL)
ENDLESS_NUMERAL = re.compile(r"&#[0-9]{4000,};?")  # more digits than Python makes a number of


def html_text(page: str) -> str:
    """The visible text of a plain HTML page (manuals, documentation): tags dropped, blocks on lines of their own.

    Time grows with the page's length, also where nothing that opens is closed.
    """
    text = _without_tags(_replaced(BLOCK, "\n", _visible(page)))
    lines = (line.strip() for line in html.unescape(ENDLESS_NUMERAL.sub("\ufffd", text)).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _visible(page: str) -> str:
    """The page without its scripts, styles and head. An end that was once looked for in vain is not looked for again."""
    kept, at, endless = [], 0, set()
    for start in HIDDEN.finditer(page):
        name = start[1].lower()
        if start.start() < at or name in endless:
            continue
        end = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(page, start.end())
        if end is None:
            endless.add(name)
        else:
            kept.append(page[at : start.start()])
            at = end.end()
    return "".join(kept) + page[at:]


def _without_tags(text: str) -> str:
    """Comments are looked for up to the end of the last one, other tags everywhere."""
    cut = text.rfind("-->") + len("-->") if "-->" in text else 0
    return COMMENT_OR_TAG.sub("", text[:cut]) + _replaced(TAG, "", text[cut:])


def _replaced(pattern: re.Pattern[str], by: str, text: str) -> str:
    """`pattern.sub` for what ends in `>`: only up to the last one, or every opening without an end would be sought to the text's end."""
    cut = text.rfind(">") + 1
    return pattern.sub(by, text[:cut]) + text[cut:]
