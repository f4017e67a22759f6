"""What a record holds beside its text: a value that cannot be kept is left out and named, and never costs the text."""

import io
import json
import random
import string
from datetime import date
from decimal import Decimal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.config import IngestConfig, Source
from sources.files import SourceFile
from sources.formats import read
from sources.rows import EXTRA_BYTES, Document, Unreadable, as_json

FAR = 253_402_300_800  # seconds from 1970 to the year 10000


def rows_of(data: bytes, form: str, **named: str) -> list:
    limits = IngestConfig(max_record_bytes=named.pop("most", 2**26))  # type: ignore[arg-type]
    return list(read(SourceFile("f", form, len(data), "f"), Source(uri="x", domain="web", **named), limits, io.BytesIO(data)))


def parquet(columns: dict, **how: object) -> bytes:
    pq.write_table(pa.table(columns), sink := io.BytesIO(), **how)
    return sink.getvalue()


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [10, 253, 254, 300, 900, 1022])
def test_a_text_beside_deep_nesting_is_kept_and_the_rest_too(levels: int):
    line = f'{{"text": "good", "url": "u", "deep": {nested(levels)}}}\n'.encode()
    (row,) = rows_of(line, "jsonl")
    assert isinstance(row, Document) and row.text == "good"
    extra, omitted = as_json(row.extra or {})
    assert extra is not None and json.loads(extra)["url"] == "u"
    assert omitted == ([] if levels < 254 else ["deep"])


UNREADABLE = {
    "zone": pa.array([0, None, 2], pa.timestamp("us", "Mars/Phobos")),
    "year": pa.array([FAR, 0, -FAR], pa.timestamp("s")),
    "day": pa.array([FAR // 86_400, 1, None], pa.date32()),
    "nanos": pa.array([1, 10**9, None], pa.timestamp("ns", "UTC")),
    "span": pa.array([2**62, 1, None], pa.duration("s")),
    "name": pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xffab")]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_value_of_parquet_that_python_cannot_have_costs_itself_alone(name: str):
    data = parquet({"text": ["eins", "zwei", "drei"], name: UNREADABLE[name], "n": [1, 2, 3]})
    rows = rows_of(data, "parquet")
    assert [row.text for row in rows] == ["eins", "zwei", "drei"]
    for number, row in enumerate(rows, 1):
        extra, too_much = as_json(row.extra)
        assert json.loads(extra or "")["n"] == number
        assert {*row.omitted, *too_much} <= {name}


def test_which_values_are_left_out_is_named_by_their_column():
    data = parquet({"text": ["a", "b", "c"], "zone": UNREADABLE["zone"], "day": UNREADABLE["day"]})
    assert [row.omitted for row in rows_of(data, "parquet")] == [("zone", "day"), (), ("zone",)]


def test_a_text_that_is_no_utf8_is_named_and_its_neighbours_are_read():
    rows = rows_of(parquet({"text": UNREADABLE["name"], "n": [1, 2, 3]}), "parquet")
    assert isinstance(rows[0], Unreadable) and rows[0].reason.startswith("its text cannot be read: 'utf-8' codec")
    assert [(row.text, row.extra) for row in rows[1:]] == [("a", {"n": 2}), ("b", {"n": 3})]


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_column_beside_the_text_costs_no_text(seed: int):
    """Bytes of its pages are changed, or its codec's frame is broken: the text's pages are whole."""
    draw = random.Random(seed)
    count = 1000
    columns = {"text": [f"text {i}" for i in range(count)], "note": ["".join(draw.choices(string.printable, k=30)) for _ in range(count)]}
    data = bytearray(parquet(columns, compression="zstd", row_group_size=400, data_page_size=2048, use_dictionary=False))
    chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(1)
    begin = chunk.data_page_offset
    for _ in range(200):
        data[begin + draw.randrange(chunk.total_compressed_size)] = draw.randrange(256)
    rows = rows_of(bytes(data), "parquet")
    assert [row.text for row in rows] == columns["text"]
    assert [row.locator for row in rows] == [f"f:{i}" for i in range(count)]
    assert all(not row.omitted for row in (*rows[:400], *rows[800:]))
    assert any(row.omitted == ("note",) for row in rows[400:800])


def test_a_row_whose_other_fields_are_too_long_keeps_its_text_and_its_labels():
    data = parquet({"text": ["short", "x" * 200], "host": ["h", "h"], "page": ["p" * 200, "p"]})
    kept, long = rows_of(data, "parquet", group_field="host", most=100)
    assert kept == Document("f:0", "short", "h", None, {}, ("page",))
    assert isinstance(long, Unreadable) and long.reason == "a row of 201 bytes, over 100 (ingest.max_record_bytes)"


BIG = ["18446744073709551616", "18446744073709551617", "-9223372036854775809", "123456789012345678901234567890", "1" * 300]


def test_ids_of_more_than_64_bits_are_the_text_that_is_there():
    lines = "".join(f'{{"text": "t", "id": {number}, "ids": [{number}, 1]}}\n' for number in BIG)
    rows = rows_of(lines.encode(), "jsonl", id_field="id")
    assert [row.locator for row in rows] == [f"#{number}" for number in BIG]
    assert [row.extra["ids"] for row in rows] == [[number, 1] for number in BIG]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**70), 2**70) | st.integers(), min_size=2, max_size=5, unique=True))
def test_different_numbers_are_different_ids(numbers: list[int]):
    lines = "".join(f'{{"text": "t", "id": {number}}}\n' for number in numbers)
    assert [row.locator for row in rows_of(lines.encode(), "jsonl", id_field="id")] == [f"#{number}" for number in numbers]


@pytest.mark.parametrize("within", [-(2**63), 2**64 - 1, 2**63, 10**19])
def test_numbers_of_64_bits_stay_numbers(within: int):
    (row,) = rows_of(f'{{"text": "t", "n": {within}, "f": 1234567890123456789012.5}}\n'.encode(), "jsonl")
    assert row.extra == {"n": within, "f": 1234567890123456789012.5}


@pytest.mark.parametrize(
    ("column", "label"),
    [
        (pa.array([Decimal("12345678901234567890123456789012345678")], pa.decimal128(38, 0)), "12345678901234567890123456789012345678"),
        (pa.array([b"\x00\xff" * 8], pa.binary(16)), "00ff" * 8),
        (pa.array([b"ab"], pa.binary()), "6162"),
        (pa.array([date(2026, 1, 2)]), "2026-01-02"),
        (pa.array([2**63], pa.uint64()), "9223372036854775808"),
        (pa.array([True]), "True"),
    ],
    ids=str,
)
def test_an_id_of_parquet_may_be_of_any_plain_kind(column: pa.Array, label: str):
    (row,) = rows_of(parquet({"text": ["t"], "key": column}), "parquet", id_field="key", group_field="key")
    assert (row.locator, row.group) == (f"#{label}", label)


@pytest.mark.parametrize("filler", [{f"field {i}": i for i in range(2000)}, {"a": "x" * 9000}, {"html": ["<p>"] * 4000, "z": None}])
@pytest.mark.parametrize("name", ["url", "URL", "licence", "id"])
def test_where_a_text_comes_from_outlives_long_other_fields(filler: dict, name: str):
    extra, omitted = as_json({**filler, name: "https://example.org/" + "p" * 500})
    kept = json.loads(extra or "")
    assert kept[name].startswith("https://example.org/") and len((extra or "").encode()) <= EXTRA_BYTES
    assert omitted and sorted([*kept, *omitted]) == sorted([*filler, name])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.text(max_size=3000) | st.integers(-(2**63), 2**63) | st.none(), max_size=12))
def test_no_field_is_lost_without_its_name(fields: dict):
    extra, omitted = as_json(fields)
    kept = orjson.loads(extra) if extra else {}
    assert {**kept, **{name: fields[name] for name in omitted}} == fields
    assert len((extra or "").encode()) <= EXTRA_BYTES
