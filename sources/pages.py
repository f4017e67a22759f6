"""What lies where in a Parquet file, and how large its pages become: from its footer and from the pages' own headers.

pyarrow's own accessors of a row group's columns end the process at a damaged footer (26.0.1: an exception that its Cython does not
expect), and the sizes in a footer are its writer's word. Both are structs of Thrift's compact protocol (parquet.thrift: FileMetaData,
PageHeader), of which a few numbers are wanted here.
"""

import os
from typing import Any, BinaryIO, NamedTuple

MOST_FOOTER_BYTES = 8 * 2**20  # hundreds of row groups of a hundred columns; each of its values may take 80 times its bytes
HEADER_BYTES = 2**16
"""More than any page's header takes: statistics in it are cut at some kilobytes by those who write them."""
ROW_GROUPS, COLUMNS, ROWS, METADATA = 4, 1, 3, 3
PATH, VALUES, STORED, DATA_OFFSET, DICTIONARY_OFFSET = 3, 5, 7, 9, 11
PAGE_BYTES, PAGE_STORED, DATA, DATA_V2 = 2, 3, 5, 8
TRUE, FALSE, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12


class Chunk(NamedTuple):
    """A column of a row group."""

    name: str
    offset: int
    stored: int
    values: int


class RowGroup(NamedTuple):
    rows: int
    chunks: list[Chunk]


def row_groups(handle: BinaryIO) -> list[RowGroup]:
    """The file's row groups in order. Raises ValueError where the footer is none."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - 8))
    length = int.from_bytes(handle.read(4), "little")
    if length > min(MOST_FOOTER_BYTES, size):
        raise ValueError(f"a footer of {length:,} bytes; at most {MOST_FOOTER_BYTES:,} are read")
    handle.seek(max(0, size - 8 - length))
    try:
        groups = _Thrift(handle.read(length)).struct()[ROW_GROUPS]
        return [RowGroup(group[ROWS], [_chunk(column[METADATA]) for column in group[COLUMNS]]) for group in groups]
    except (KeyError, TypeError) as error:
        raise ValueError("a footer that lacks what every one has") from error


def _chunk(column: dict[int, Any]) -> Chunk:
    name = b".".join(column[PATH]).decode("utf-8", "replace")
    return Chunk(name, column.get(DICTIONARY_OFFSET) or column[DATA_OFFSET], column[STORED], column[VALUES])


def largest_page(handle: BinaryIO, chunk: Chunk) -> tuple[int, int]:
    """The bytes of the chunk's largest page, decompressed and as stored. Raises ValueError where the pages are no pages."""
    at, end, values, largest = chunk.offset, chunk.offset + chunk.stored, 0, (0, 0)
    while at < end and values < chunk.values:
        handle.seek(at)
        header = _Thrift(handle.read(HEADER_BYTES))
        page = header.struct()
        try:
            size, stored = page[PAGE_BYTES], page[PAGE_STORED]
            values += page.get(DATA, page.get(DATA_V2, {1: 0}))[1]
            if min(size, stored) < 0:
                raise ValueError(f"a page of negative length at byte {at:,}")
        except (KeyError, TypeError) as error:
            raise ValueError(f"no page header at byte {at:,}") from error
        largest, at = max(largest, (size, stored)), at + header.at + stored
    return largest


class _Thrift:
    """Reads values of the compact protocol from the beginning of `data`; `at` is then where the last one ends."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self) -> dict[int, Any]:
        """Its fields by number; booleans and numbers that are no integers are None."""
        fields, number = {}, 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = None if head & 15 in (TRUE, FALSE) else self._value(head & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind == STRUCT:
            return self.struct()
        if kind in INTEGERS:
            return self._integer()
        if kind in LISTS:
            return self._list()
        if kind == BINARY:
            length = self._varint()
            self.at += length
            return self.data[self.at - length : self.at]
        if kind not in (BYTE, DOUBLE):
            raise ValueError(f"a value of the unknown kind {kind}")
        self.at += 1 if kind == BYTE else 8
        return None

    def _list(self) -> list[Any]:
        head = self._byte()
        count, kind = head >> 4 if head >> 4 < 15 else self._varint(), head & 15
        return [self._value(BYTE if kind in (TRUE, FALSE) else kind) for _ in range(self._held(count))]

    def _held(self, count: int) -> int:
        """`count`, where so many values can follow: each takes a byte at least."""
        if count > len(self.data) - self.at:
            raise ValueError("a list that does not end")
        return count

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("a header or footer that does not end")
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value, shift = 0, 0
        while (byte := self._byte()) & 128:
            value, shift = value | (byte & 127) << shift, shift + 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
