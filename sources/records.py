"""Records: JSON lines and Parquet rows. A record that cannot be read costs itself only; nothing of the content's raises.

JSON is strict (orjson): NaN, lone surrogates, raw control characters and nesting beyond 1,024 are no JSON here, in every file alike.
"""

import json
import os
import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sources.config import IngestConfig, Source
from sources.lines import Line, LineFile
from sources.pages import RowGroup, largest_page, row_groups
from sources.rows import HEAD_BYTES, Document, Row, Unreadable
from sources.streams import BOMB_FLOOR, GROWS, StreamFault, stream
from sources.texts import read_whole

MOST_VALUES = 2**20
"""A line of JSON has no more values: each may take 290 bytes of memory for 3 bytes of text, as in [],[]."""
LONG_NUMBER = re.compile(rb"[0-9]{19}")
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
TOO_LONG = "a row of {:,} bytes, over {:,} (ingest.max_record_bytes)"
BATCH_ROWS, BATCH_BYTES = 256, 128 * 2**20
LEAST_BOMB_PAGE_BYTES, MOST_PAGE_EXPANSION = 128 * 2**20, 20  # text compresses by 2 to 20
MOST_HELD_BYTES, ROW_BYTES = 850 * 2**20, 380 * 2**20
"""A page is held whole, as stored and decompressed, beside what is made of it: its only text, or a row of 64 MiB with the string of it,
six times that. Arrow's own writer makes a page of 1,024 books, 300 MB and more, which is read where it compresses by 2."""
PLAIN = (str, int, float, bool, Decimal, date)
UNREADABLE = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, RecursionError)
"""What Arrow, and the conversion of a value to Python, raise for what a file holds."""


def read_jsonl(handle: BinaryIO, path: str, source: Source, file: LineFile, start: int, end: int | None) -> Iterator[Row]:
    """A row a line that starts in [start, end); blank lines are none. Locators are path:offset, or #id with `id_field`."""
    for encoding, line in file.lines(handle, start, end):
        if line.fault is None and (not line.data or line.data.isspace()):
            continue
        value = _object(encoding, line)
        if isinstance(value, str):
            yield Unreadable(path, line.offset, value, line.data[:HEAD_BYTES])
        else:
            yield document_of(value, path, line.offset, source, line.data)


ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|$)")


def begins_an_array(handle: BinaryIO, compression: str | None, max_expansion: int) -> bool:
    """Whether what the file holds begins as a JSON array of objects; the handle is then at its beginning again."""
    try:
        head = next(stream(handle, compression, max_expansion), b"")
    except StreamFault:
        head = b""
    handle.seek(0)
    return ARRAY.match(head[:HEAD_BYTES].rstrip()) is not None


def read_array(handle: BinaryIO, path: str, compression: str | None, source: Source, limits: IngestConfig) -> Iterator[Row]:
    """The records of a file that is one JSON array, in memory as a whole. Offsets and locators count them."""
    lines = f"as JSON lines any size is read, one object a line, as by jq -c '.[]' (its {path} is one array)"
    try:
        data = read_whole(handle, compression, limits.max_record_bytes, limits.max_expansion)
    except StreamFault as fault:
        yield Unreadable(path, 0, f"one JSON array, of which {fault}; {lines}", b"")
        return
    try:
        text = data.decode(source.encoding or "utf-8-sig").encode()
        if _has_too_many_values(text):
            yield Unreadable(path, 0, f"one JSON array of more than {MOST_VALUES:,} values; {lines}", data[:HEAD_BYTES])
            return
        values = _with_long_numbers(text, orjson.loads(text))
    except (orjson.JSONDecodeError, UnicodeError) as error:
        yield Unreadable(path, 0, f"one JSON array that is not whole: {error}; {lines}", data[:HEAD_BYTES])
        return
    for number, value in enumerate(values):
        if isinstance(value, dict):
            yield document_of(value, path, number, source, str(value.get(source.text_field))[:HEAD_BYTES].encode("utf-8", "replace"))
        else:
            yield Unreadable(path, number, f"not a JSON object but {_kind(value)}", b"")


def _object(encoding: str, line: Line) -> dict[str, Any] | str:
    """The object of a line, or why there is none."""
    if line.fault is not None:
        return line.fault
    try:
        data = line.data if encoding == "utf-8" else line.data.decode(encoding).encode()
        if _has_too_many_values(data):
            return f"a line of more than {MOST_VALUES:,} JSON values; a document has fewer, so leave its other fields out"
        value = _with_long_numbers(data, orjson.loads(data))
    except UnicodeDecodeError as error:
        return f"not {encoding}: {error.reason} at its byte {error.start:,}"
    except (orjson.JSONDecodeError, UnicodeError) as error:
        return _why_not_json(line.data, encoding, error)
    return value if isinstance(value, dict) else f"not a JSON object but {_kind(value)}"


def _with_long_numbers(data: bytes, value: Any) -> Any:
    """The value with integers of more than 64 bits as they are written: orjson makes floats of them, and two ids are equal then."""
    if LONG_NUMBER.search(data) is None:
        return value
    try:
        return json.loads(data, parse_int=_integer)
    except (ValueError, RecursionError):
        return value


def _integer(text: str) -> int | str:
    number = int(text) if len(text) <= len(str(-(2**63))) else 2**64
    return number if -(2**63) <= number < 2**64 else text


def _has_too_many_values(data: bytes) -> bool:
    """Whether brackets and commas outside strings, and strings, are too many to be made objects of. Long texts are one string."""
    if sum(data.count(mark) for mark in (b"[", b"{", b",", b'"')) <= MOST_VALUES:
        return False
    values, at = 0, 0
    for string in STRING.finditer(data):
        values += 1 + sum(data.count(mark, at, string.start()) for mark in (b"[", b"{", b","))
        at = string.end()
        if values > MOST_VALUES:
            return True
    return values + sum(data.count(mark, at) for mark in (b"[", b"{", b",")) > MOST_VALUES


def _why_not_json(data: bytes, encoding: str, error: Exception) -> str:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as fault:
        return f"not {encoding}: {fault.reason} at its byte {fault.start:,}"
    return f"not JSON: {error}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value)) or f"a {type(value).__name__}"


def document_of(record: dict[str, Any], path: str, at: int, source: Source, head: bytes) -> Row:
    """The document in a record, by the fields that the source names; `head` shows what it was where there is none."""
    text = record.get(source.text_field)
    if source.text_field not in record:
        names = ", ".join(sorted(record)[:6])
        return Unreadable(path, at, f"no field {source.text_field!r}; it has {names or 'none'} (text_field)", head[:HEAD_BYTES])
    if not isinstance(text, str):
        return Unreadable(path, at, f"its {source.text_field} is {_kind(text)}, not a string", head[:HEAD_BYTES])
    if not text or text.isspace():
        return Unreadable(path, at, f"its {source.text_field} is blank", head[:HEAD_BYTES])
    used = {source.text_field, source.id_field, source.group_field, source.license_field}
    extra = {key: value for key, value in record.items() if key not in used}
    own = _label(record, source.id_field)
    if own is not None:
        extra |= {"file": path, "offset": at}
    return Document(
        locator=f"{path}:{at}" if own is None else f"#{own}",
        text=text,
        group=_label(record, source.group_field),
        license=_label(record, source.license_field),
        extra=extra,
    )


def _label(record: dict[str, Any], field: str | None) -> str | None:
    """A field's value as a string; None where it is absent, null, empty or no plain value."""
    value = record.get(field) if field else None
    if isinstance(value, bytes):
        return value.hex() or None
    return (str(value) or None) if isinstance(value, PLAIN) else None


def read_parquet(
    handle: BinaryIO, path: str, source: Source, max_bytes: int, max_expansion: int, start: int, end: int | None
) -> Iterator[Row]:
    """A row a table row, of the row groups that start in [start, end). Offsets and locators count rows from the file's first.

    Memory: at most 850 MiB and what the process takes by itself, at the default `max_record_bytes`.
    """
    first, grown, most = 0, 0, BOMB_FLOOR + max_expansion * handle.seek(0, os.SEEK_END)
    try:
        file = pq.ParquetFile(handle, buffer_size=2**20)  # without it a column of a row group is fetched whole
        fields = {field.name: field.type for field in file.schema_arrow}
        if (fault := _no_text(fields, source.text_field)) is not None:
            if start == 0:  # said once, by the first split
                yield Unreadable(path, 0, fault, b"")
            return
        labels = (source.text_field, source.id_field, source.group_field, source.license_field)
        needed = [name for name in labels if name is not None and name in fields]
        columns = [name for name, kind in fields.items() if name in needed or _is_string(kind) or _is_plain(kind)]
        for index, group in enumerate(row_groups(handle)):
            if start > group.chunks[0].offset or (end is not None and group.chunks[0].offset >= end):
                first += group.rows
                continue
            taken, size, stored = _measured(handle, group, columns, needed)
            if _is_too_large(size, stored):
                yield Unreadable(path, first, _too_large(size, stored, group.rows), b"")
                first += group.rows
                continue
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))
            for batch in _batches(file, index, rows, taken, needed):
                if size > BATCH_BYTES:
                    pa.default_memory_pool().release_unused()  # of the batch before: each reserves what is left of its page
                lengths, needed_lengths = _row_bytes(batch, batch.schema.names), _row_bytes(batch, needed)
                grown += sum(length for length in lengths if length <= max_bytes)
                if grown > most:
                    yield Unreadable(path, first, GROWS.format(max_expansion), b"")
                    return
                for row in range(batch.num_rows):
                    if needed_lengths[row] > max_bytes:
                        yield Unreadable(path, first, TOO_LONG.format(needed_lengths[row], max_bytes), b"")
                    else:
                        yield _row(batch, row, columns if lengths[row] <= max_bytes else needed, columns, path, first, source)
                    first += 1
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the content
        yield Unreadable(path, first, f"the rest is no readable Parquet: {str(error).splitlines()[0] if str(error) else error!r}", b"")


def _batches(file: pq.ParquetFile, group: int, rows: int, columns: list[str], needed: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of a row group. If a column that is not needed cannot be read, the rest of the group comes without those."""
    done = 0
    try:
        for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
            yield batch
            done += batch.num_rows
        return
    except UNREADABLE as error:
        if columns == needed or (isinstance(error, OSError) and error.errno is not None):
            raise
    for batch in file.iter_batches(rows, row_groups=[group], columns=needed):
        if done < batch.num_rows:
            yield batch.slice(done)
        done = max(0, done - batch.num_rows)


def _is_too_large(size: int, stored: int) -> bool:
    return size + stored + max(size, ROW_BYTES) > MOST_HELD_BYTES or size > max(LEAST_BOMB_PAGE_BYTES, MOST_PAGE_EXPANSION * stored)


def _too_large(size: int, stored: int, rows: int) -> str:
    return (
        f"the {rows:,} rows of a row group, with pages of {size:,} bytes made of {stored:,}: a page is read whole. Write it with "
        "smaller ones, as by pyarrow's write_batch_size and data_page_size"
    )


def _measured(handle: BinaryIO, group: RowGroup, columns: list[str], needed: list[str]) -> tuple[list[str], int, int]:
    """The columns to read of a row group, with their page bytes: without those that are not needed where their pages cannot be read."""
    try:
        size, stored = _page_bytes(handle, group, columns)
        if columns == needed or not _is_too_large(size, stored):
            return columns, size, stored
    except UNREADABLE:
        if columns == needed:
            raise
    return needed, *_page_bytes(handle, group, needed)


def _page_bytes(handle: BinaryIO, group: RowGroup, columns: list[str]) -> tuple[int, int]:
    """Decompressed and stored bytes of the columns' largest pages together: they are in memory at once."""
    pages = [largest_page(handle, chunk) for chunk in group.chunks if chunk.name in columns]
    return sum(size for size, _ in pages), sum(stored for _, stored in pages)


def _no_text(fields: dict[str, pa.DataType], name: str) -> str | None:
    """Why the column `name` has no texts; None where it has."""
    if name not in fields:
        return f"no column {name!r}; it has {', '.join(fields)} (text_field)"
    return None if _is_string(fields[name]) else f"its column {name!r} is of {fields[name]}, not of strings (text_field)"


def _is_string(kind: pa.DataType) -> bool:
    own = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(own) or pa.types.is_large_string(own) or pa.types.is_string_view(own)


def _is_plain(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) or pa.types.is_decimal(kind)


def _row(batch: pa.RecordBatch, index: int, names: list[str], all_names: list[str], path: str, at: int, source: Source) -> Row:
    """The document of a row from the columns `names`; a value that Python cannot have is left out, unless it is the text."""
    record: dict[str, Any] = {}
    for name in (name for name in names if name in batch.schema.names):
        try:
            record[name] = batch.column(name)[index].as_py()
        except UNREADABLE as error:
            if name == source.text_field:
                return Unreadable(path, at, f"its {name} cannot be read: {error}", b"")
    row = document_of(record, path, at, source, str(record[source.text_field])[:HEAD_BYTES].encode("utf-8", "replace"))
    return row._replace(omitted=tuple(name for name in all_names if name not in record)) if isinstance(row, Document) else row


def _row_bytes(batch: pa.RecordBatch, names: list[str]) -> list[int]:
    """The bytes of each row's strings in these columns, before any is made."""
    lengths = [0] * batch.num_rows
    for column in (batch.column(name) for name in names if name in batch.schema.names):
        if _is_string(column.type):
            own = pc.binary_length(column.cast(pa.large_string())).to_pylist()
            lengths = [length + (more or 0) for length, more in zip(lengths, own, strict=True)]
    return lengths
