"""Records: JSON lines and Parquet rows. A record that cannot be read costs itself only; nothing of the content's raises.

JSON is strict (orjson): NaN, lone surrogates, raw control characters and nesting beyond 1,024 are no JSON here, in every file alike.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from sources.config import Source
from sources.lines import Line, LineFile
from sources.rows import HEAD_BYTES, Document, Row, Unreadable

BATCH_ROWS = 256
PLAIN = (str, int, float, bool)


def read_jsonl(handle: BinaryIO, path: str, source: Source, file: LineFile, start: int, end: int | None) -> Iterator[Row]:
    """A row a line that starts in [start, end); blank lines are none. Locators are path:offset, or #id with `id_field`."""
    for encoding, line in file.lines(handle, start, end):
        if line.fault is None and (not line.data or line.data.isspace()):
            continue
        value = _object(encoding, line)
        if isinstance(value, str):
            yield Unreadable(path, line.offset, value, line.data[:HEAD_BYTES])
        else:
            yield _document(value, path, line.offset, source, line.data)


def _object(encoding: str, line: Line) -> dict[str, Any] | str:
    """The object of a line, or why there is none."""
    if line.fault is not None:
        return line.fault
    try:
        value = orjson.loads(line.data if encoding == "utf-8" else line.data.decode(encoding))
    except UnicodeDecodeError as error:
        return f"not {encoding}: {error.reason} at its byte {error.start:,}"
    except (orjson.JSONDecodeError, UnicodeError) as error:
        return _why_not_json(line.data, encoding, error)
    return value if isinstance(value, dict) else f"not a JSON object but {_kind(value)}"


def _why_not_json(data: bytes, encoding: str, error: Exception) -> str:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as fault:
        return f"not {encoding}: {fault.reason} at its byte {fault.start:,}"
    return f"not JSON: {error}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(type(value), "a number")


def _document(record: dict[str, Any], path: str, at: int, source: Source, head: bytes) -> Row:
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
    return (str(value) or None) if isinstance(value, PLAIN) else None


def read_parquet(handle: BinaryIO, path: str, source: Source, max_bytes: int, start: int, end: int | None) -> Iterator[Row]:
    """A row a table row, of the row groups that start in [start, end). Offsets and locators count rows from the file's first."""
    first = 0
    try:
        file = pq.ParquetFile(handle)
        fields = {field.name: field.type for field in file.schema_arrow}
        if source.text_field not in fields:
            if start == 0:  # said once, by the first split
                yield Unreadable(path, 0, f"no column {source.text_field!r}; it has {', '.join(fields)} (text_field)", b"")
            return
        columns = [name for name, kind in fields.items() if name == source.text_field or _is_small(kind)]
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            if start <= _offset(group) and (end is None or _offset(group) < end):
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[index], columns=columns):
                    yield from _rows(batch, path, first, source, max_bytes)
                    first += batch.num_rows
            else:
                first += group.num_rows
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        yield Unreadable(path, first, f"the rest is no readable Parquet: {str(error).splitlines()[0] if str(error) else error!r}", b"")


def _is_small(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_primitive(kind)


def _offset(group: pq.RowGroupMetaData) -> int:
    column = group.column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


def _rows(batch: pa.RecordBatch, path: str, first: int, source: Source, max_bytes: int) -> Iterator[Row]:
    for index in range(batch.num_rows):
        try:
            record = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        except (UnicodeDecodeError, ValueError, OverflowError) as error:
            yield Unreadable(path, first + index, f"a row that cannot be read: {error}", b"")
            continue
        text = record.get(source.text_field)
        if isinstance(text, str) and len(text) > max_bytes:
            yield Unreadable(path, first + index, f"a text of {len(text):,} characters, over {max_bytes:,} (ingest.max_record_bytes)", b"")
        else:
            yield _document(record, path, first + index, source, str(text)[:HEAD_BYTES].encode("utf-8", "replace"))
