"""How large the pages of a Parquet column chunk become, from the pages' own headers: what its metadata says is the writer's word.

A header is a struct of Thrift's compact protocol (parquet.thrift, PageHeader). Only its lengths and counts are wanted here.
"""

from typing import Any, BinaryIO

import pyarrow.parquet as pq

HEADER_BYTES = 2**16
"""More than any header takes: statistics in it are cut at some kilobytes by those who write them."""
UNCOMPRESSED, COMPRESSED = 2, 3
DATA, DATA_V2 = 5, 8
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12


def largest_page_bytes(handle: BinaryIO, chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """The uncompressed and the stored size of the chunk's largest page. Raises ValueError where the pages are no pages."""
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    end, values, largest = at + chunk.total_compressed_size, 0, (0, 0)
    while at < end and values < chunk.num_values:
        handle.seek(at)
        header = _Header(handle.read(HEADER_BYTES))
        page = header.struct()
        try:
            size, stored = page[UNCOMPRESSED], page[COMPRESSED]
            values += page.get(DATA, page.get(DATA_V2, {1: 0}))[1]
        except (KeyError, TypeError) as error:
            raise ValueError(f"no page header at byte {at:,}") from error
        if size < 0 or stored < 0:
            raise ValueError(f"a page of negative length at byte {at:,}")
        largest, at = max(largest, (size, stored)), at + header.at + stored
    return largest


class _Header:
    """Reads one struct of the compact protocol from the beginning of `data`; `at` is then where it ends."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self) -> dict[int, Any]:
        """Its fields by number; what is no number or struct is None."""
        fields, number = {}, 0
        while (head := self._byte()) & 15 != STOP:
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = None if head & 15 in (TRUE, FALSE) else self._value(head & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind == STRUCT:
            return self.struct()
        if kind in (4, 5, 6):
            return self._integer()
        if kind in (LIST, SET):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._byte() if head & 15 in (TRUE, FALSE) else self._value(head & 15)
            return None
        if kind not in (BYTE, DOUBLE, BINARY):
            raise ValueError(f"no page header: a field of the kind {kind}")
        length = self._varint() if kind == BINARY else 1 if kind == BYTE else 8
        self.at += length
        return None

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("a page header that does not end")
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value, shift = 0, 0
        while (byte := self._byte()) & 128:
            value, shift = value | (byte & 127) << shift, shift + 7
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
