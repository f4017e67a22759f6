"""Compressed files as streams of chunks: gzip of many members, Zstandard of many frames. Never more than a chunk in memory.

A damaged or cut stream gives everything that stands before the damage, then StreamFault. The name says the compression, and the
content must agree: plain lines under .gz, or gzip under a plain name, are refused with the name to give.
"""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

CHUNK = 2**18
INPUT_CHUNK = 2**14  # what is left of it is copied at every member or frame, and a hostile file has one every 9 bytes
ZSTD_STEP = 2**8  # a Zstandard block of 4 bytes can hold 128 KiB: 256 bytes of input are at most 8 MiB of output
BOMB_FLOOR = 64 * 2**20
GROWS = "grows to more than {} times its size, so it is taken for a bomb (ingest.max_expansion)"
CUT_HEADER = "the gzip stream is cut in a header or checksum"
GZIP, ZSTD, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")


class StreamFault(Exception):
    """The rest of a stream cannot be read. Readers of this room turn it into one quarantine row; it never leaves the room."""


def compression_of(name: str) -> str | None:
    """gz, zst or None, by the suffix."""
    suffix = name.lower().rpartition(".")[2]
    return suffix if suffix in ("gz", "zst") else None


def stream(handle: BinaryIO, compression: str | None, max_expansion: int) -> Iterator[bytes]:
    """The decompressed chunks, from where `handle` stands. Raises StreamFault after the last good one."""
    if compression is None:
        return _plain(handle)
    return _bounded(handle, {"gz": _gunzip, "zst": _unzstd}[compression](handle), max_expansion)


def not_plain(head: bytes) -> str | None:
    """Why what begins with these bytes is no text, whatever its name says; None where it may be. Four bytes are enough."""
    if head.startswith((GZIP, ZSTD)):
        return f"compressed bytes under a plain name; rename it to end in .{'gz' if head.startswith(GZIP) else 'zst'}"
    return "a zip archive; unpack it and give the files in it" if head.startswith(ZIP) else None


def _plain(handle: BinaryIO) -> Iterator[bytes]:
    at_start = handle.tell() == 0
    while chunk := handle.read(CHUNK):
        if at_start and (why := not_plain(chunk)) is not None:
            raise StreamFault(why)
        at_start = False
        yield chunk


def _bounded(handle: BinaryIO, chunks: Iterator[bytes], max_expansion: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > BOMB_FLOOR + max_expansion * handle.tell():
            raise StreamFault(GROWS.format(max_expansion))
        yield chunk


class _Input:
    """A look-ahead buffer over a handle."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.buffer = handle, b""

    def fill(self, least: int = 1) -> bool:
        """Whether `least` bytes are in the buffer, after reading on where they were not."""
        while len(self.buffer) < least:
            chunk = self.handle.read(INPUT_CHUNK)
            if not chunk:
                return False
            self.buffer += chunk
        return True

    def take(self, count: int) -> bytes:
        if not self.fill(count):
            raise StreamFault(CUT_HEADER)
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def skip_past_nul(self) -> None:
        while (end := self.buffer.find(b"\0")) < 0:
            self.buffer = b""
            if not self.fill():
                raise StreamFault(CUT_HEADER)
        self.buffer = self.buffer[end + 1 :]


def _gunzip(handle: BinaryIO) -> Iterator[bytes]:
    source = _Input(handle)
    if not source.fill():
        raise StreamFault("an empty file under .gz, as an interrupted write leaves it")
    if source.fill(2) and source.buffer[:2] != GZIP:
        raise StreamFault("named .gz, but it does not begin as gzip; give it its true name")
    while source.fill():
        if source.buffer[:2] != GZIP:
            if source.buffer.strip(b"\0"):
                raise StreamFault("bytes after the last gzip member that are no member")
            source.buffer = b""  # padding
            continue
        _member_header(source)
        yield from _member(source)


def _member_header(source: _Input) -> None:
    head = source.take(10)
    flags = head[3]
    if head[2] != 8 or flags & 0xE0:
        raise StreamFault("a gzip member in no known form")
    if flags & 4:
        source.take(int.from_bytes(source.take(2), "little"))
    for flag in (8, 16):  # file name, comment: up to a NUL
        if flags & flag:
            source.skip_past_nul()
    if flags & 2:
        source.take(2)


def _member(source: _Input) -> Iterator[bytes]:
    """One member by raw inflate, so that a wrong checksum at its end cannot take its last chunk away."""
    inflate, crc, size = zlib.decompressobj(-15), 0, 0
    full = False
    while not inflate.eof:
        if not full and not source.fill():
            raise StreamFault("the gzip stream is cut before its end mark")
        before = inflate.copy()
        try:
            chunk = inflate.decompress(source.buffer, CHUNK)
        except zlib.error as error:
            yield from _salvage(before, source.buffer)
            raise StreamFault(f"damaged gzip stream ({str(error).partition(': ')[2] or error})") from error
        full = len(chunk) == CHUNK
        source.buffer = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        if chunk:
            yield chunk
    trailer = source.take(8)
    if (int.from_bytes(trailer[:4], "little"), int.from_bytes(trailer[4:], "little")) != (crc, size % 2**32):
        raise StreamFault("the gzip checksum does not fit what was read before it")


def _salvage(inflate: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    """What stands before the damage, a byte of input at a time."""
    for position in range(len(data)):
        try:
            chunk = inflate.decompress(data[position : position + 1])
        except zlib.error:
            return
        if chunk:
            yield chunk


def _unzstd(handle: BinaryIO) -> Iterator[bytes]:
    source = _Input(handle)
    if not source.fill():
        raise StreamFault("an empty file under .zst, as an interrupted write leaves it")
    frames, decompressor = 0, zstandard.ZstdDecompressor(max_window_size=2**27)
    while source.fill():
        frame = decompressor.decompressobj()
        try:
            while not frame.eof:
                if not source.fill():
                    raise StreamFault("the zstd stream is cut before the end of a frame")
                step, source.buffer = source.buffer[:ZSTD_STEP], source.buffer[ZSTD_STEP:]
                if chunk := frame.decompress(step):
                    yield chunk
        except zstandard.ZstdError as error:
            known = "damaged zstd stream" if frames else "named .zst, but it cannot be read as zstd"
            raise StreamFault(f"{known} ({error})") from error
        source.buffer = frame.unused_data + source.buffer
        frames += 1
