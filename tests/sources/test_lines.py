"""Lines and their splits, streams and their limits, against plain definitions and Python's own decompressors."""

import codecs
import gzip
import io
import itertools
import json
import tracemalloc
import zipfile
import zlib
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sources.config import IngestConfig, Source
from sources.environment import Environment
from sources.files import SourceFile
from sources.formats import read
from sources.lines import Line, LineFile, lines, splittable
from sources.opener import Opener
from sources.pieces import rows_of
from sources.plan import plan_parts, select
from sources.rows import Document, Row, Unreadable
from sources.streams import GZIP, ZIP, ZSTD, StreamFault, stream
from store.digests import digests_of_files

SOURCE = Source(uri="x", domain="web")
LIMITS = IngestConfig()


def rows(
    data: bytes,
    form: str,
    compression: str | None = None,
    limits: IngestConfig = LIMITS,
    declared: str | None = None,
    **cut: int | None,
) -> list[Row]:
    file, source = SourceFile("f", form, len(data), "f", compression=compression), SOURCE.model_copy(update={"encoding": declared})
    return list(read(file, source, limits, io.BytesIO(data), **cut))  # type: ignore[arg-type]


def zipped(texts: dict[str, str]) -> bytes:
    with zipfile.ZipFile(archive := io.BytesIO(), "w") as written:
        for name, text in texts.items():
            written.writestr(name, text)
    return archive.getvalue()


def cuts(points: list[int], size: int) -> list[tuple[int, int]]:
    edges = sorted({0, size, *(point % (size + 1) for point in points)})
    return list(itertools.pairwise(edges)) or [(0, 0)]


record = st.one_of(
    st.text(max_size=30).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "replace")),
    st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")),
    st.sampled_from([b"", b"\r", b'{"text": "x"}\r', b'{"text": null}', '{"text": "\u2028\x85"}'.encode()]),
)


opening = st.sampled_from([b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE, GZIP, ZSTD, *ZIP])


@settings(max_examples=200, deadline=None)
@example(parts=[b"PK\x03\x04", b'{"text": ""}'], final=False, points=[2], head=b"", declared=None)
@given(
    parts=st.lists(record, max_size=12),
    final=st.booleans(),
    points=st.lists(st.integers(0, 10**4), max_size=8),
    head=opening,
    declared=st.sampled_from([None, "utf-8", "cp1252", "shift_jis", "cp037", "utf-16-le", "utf-8-sig"]),
)
def test_any_splits_give_the_rows_of_the_whole_file_once_and_in_order(
    parts: list, final: bool, points: list, head: bytes, declared: str | None
) -> None:
    data = head + b"\n".join(parts) + (b"\n" if final else b"")
    if not splittable(data[:4], declared):
        return  # the plan reads it whole
    whole = rows(data, "jsonl", declared=declared)
    assert [row for start, end in cuts(points, len(data)) for row in rows(data, "jsonl", declared=declared, start=start, end=end)] == whole


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("declared", [None, "utf-8", "cp1252", "shift_jis", "gb18030"])
def test_a_plain_file_of_an_encoding_whose_line_ends_are_one_byte_can_be_split(head: bytes, declared: str | None) -> None:
    assert splittable((head + b'{"text": "x"}')[:4], declared)


@pytest.mark.parametrize("name", [*(f"a zip of {count}" for count in (0, 1)), "gzip", "zstd", "EBCDIC"])
def test_a_file_that_cannot_be_split_gives_the_same_rows_whatever_the_part_size(tmp_path: Path, name: str) -> None:
    """Its first split alone would know what it is, and the others take its bytes for lines."""
    text = "".join(f'{{"text": "line {i}"}}\n' for i in range(50))
    contents = {
        "a zip of 0": zipped({}),
        "a zip of 1": zipped({"a.jsonl": text}),
        "gzip": gzip.compress(text.encode()),
        "zstd": zstandard.ZstdCompressor().compress(text.encode()),
        "EBCDIC": text.encode("cp037"),
    }
    (tmp_path / "a.jsonl").write_bytes(contents[name])
    source = Source(uri=str(tmp_path), domain="web", encoding="cp037" if name == "EBCDIC" else None)
    selections = select([source], digests_of_files, Environment(site=(), stdlib=None, share=None, packages=None), None)
    got = [
        [row for part in plan_parts(selections, size, Opener()) for *_, row in rows_of(part, [source], LIMITS, Opener())]
        for size in (16, 2**20)
    ]
    assert got[0] == got[1]
    assert len(got[0]) == (50 if name == "EBCDIC" else 1) and isinstance(got[0][0], Document if name == "EBCDIC" else Unreadable)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), step=st.integers(1, 50), limit=st.integers(1, 40))
def test_lines_are_those_of_bytes_split_whatever_the_chunks(data: bytes, step: int, limit: int) -> None:
    got = list(lines((data[i : i + step] for i in range(0, len(data), step)), 0, b"\n", limit))
    want, at = [], 0
    for line in data.split(b"\n"):
        want.append((at, line))
        at += len(line) + 1
    if not want[-1][1]:
        want.pop()
    assert [line.offset for line in got] == [offset for offset, _ in want]
    assert [(line.data, line.fault is None) for line in got if line.fault is None] == [(d, True) for _, d in want if len(d) <= limit]
    assert [line.offset for line in got if line.fault] == [offset for offset, d in want if len(d) > limit]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=9), max_size=6), step=st.integers(1, 9))
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_lines_end_at_their_code_unit_and_nowhere_else(encoding: str, texts: list[str], step: int) -> None:
    texts = [text.replace("\n", "\u0a0a\u0a00") for text in texts]  # code units that hold the byte 0x0A
    data = "".join(text + "\n" for text in texts).encode(encoding)
    chunks = (data[i : i + step] for i in range(0, len(data), step))
    assert [line.data.decode(encoding) for line in lines(chunks, 0, "\n".encode(encoding), 10**6)] == texts


@settings(max_examples=60, deadline=None)
@given(members=st.lists(st.binary(max_size=400), min_size=1, max_size=4), cut=st.integers(0, 10**4), flip=st.integers(0, 10**5))
def test_gzip_gives_what_pythons_decompressor_gives_and_a_cut_stream_a_prefix_with_a_fault(members: list, cut: int, flip: int) -> None:
    data = b"".join(gzip.compress(member, mtime=0) for member in members)
    assert b"".join(stream(io.BytesIO(data), "gz", 1000)) == gzip.decompress(data)
    short = data[: cut % len(data)]
    ends = {0}
    for member in members:
        ends.add(max(ends) + len(gzip.compress(member, mtime=0)))
    got = io.BytesIO()
    if len(short) in ends - {0}:
        return  # whole members: a good file
    with pytest.raises(StreamFault):
        for chunk in stream(io.BytesIO(short), "gz", 1000):
            got.write(chunk)
    assert b"".join(members).startswith(got.getvalue())


def test_what_inflate_can_give_of_a_cut_member_is_all_given() -> None:
    text = b"".join(b"line %d %d\n" % (i, i * i) for i in range(60_000))
    data = gzip.compress(text)[:-500]
    got = io.BytesIO()
    with pytest.raises(StreamFault, match="cut"):
        for chunk in stream(io.BytesIO(data), "gz", 1000):
            got.write(chunk)
    assert got.getvalue() == zlib.decompressobj(31).decompress(data)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_bomb_of_one_line_is_one_row_and_never_in_memory(compression: str) -> None:
    plain = b'{"text": "before"}\n' + b"0" * 100_000_000 + b'\n{"text": "after"}\n'
    data = gzip.compress(plain, 1) if compression == "gz" else zstandard.ZstdCompressor().compress(plain)
    del plain
    tracemalloc.start(1)
    got = rows(data, "jsonl", compression, IngestConfig(max_record_bytes=2**20, max_expansion=10**6))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [type(row) for row in got] == [Document, Unreadable, Document]
    assert peak < 80 * 2**20
    bounded = rows(data, "jsonl", compression, IngestConfig(max_record_bytes=2**20, max_expansion=50))
    assert isinstance(bounded[-1], Unreadable) and "bomb" in bounded[-1].reason


@settings(max_examples=120, deadline=None)
@given(
    data=st.binary(max_size=200), head=st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xff\xfe", b"\xef\xbb\xbf"])
)
@pytest.mark.parametrize("form", ["jsonl", "txt", "md", "html", "man", "metadata", "python", "docstrings", "questions"])
@pytest.mark.parametrize("compression", [None, "gz", "zst"])
def test_no_content_makes_a_reader_raise(form: str, compression: str | None, data: bytes, head: bytes) -> None:
    got = rows(head + data, form, compression)
    for row in got:
        if isinstance(row, Document):
            row.text.encode()


@cache
def parquets() -> list[bytes]:
    table = pa.table({"text": ["eins", "zwei", "drei", None], "n": [1, 2, 3, 4], "s": pa.array(["a", "a", "b", "b"]).dictionary_encode()})
    files = []
    for how in ({}, {"compression": "zstd", "data_page_version": "2.0"}, {"compression": "gzip", "use_dictionary": False}):
        pq.write_table(table, sink := io.BytesIO(), row_group_size=2, **how)
        files.append(sink.getvalue())
    return files


@settings(max_examples=300, deadline=None)
@given(
    number=st.integers(0, 2),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 40)),
)
def test_no_damage_to_parquet_makes_its_reader_raise(number: int, places: list, cut: tuple[int, int] | None) -> None:
    """Bytes changed anywhere, and some of them taken out."""
    data = bytearray(parquets()[number])
    for place, value in places:
        data[place % len(data)] = value
    if cut is not None:
        del data[cut[0] % len(data) : cut[0] % len(data) + cut[1]]
    assert len(rows(bytes(data), "parquet")) <= 5


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_strings_of_every_kind_are_read_in_every_column(kind: pa.DataType) -> None:
    """pandas writes a category as a dictionary."""
    columns = {name: pa.array([f"{name} ä", None]).cast(kind) for name in ("text", "repository", "license", "note")}
    pq.write_table(pa.table(columns), sink := io.BytesIO())
    labels = Source(uri="x", domain="web", group_field="repository", license_field="license")
    file = SourceFile("f", "parquet", 1, "f")
    document, unreadable = read(file, labels, IngestConfig(), sink)
    assert document == Document("f:0", "text ä", "repository ä", "license ä", {"note": "note ä"})
    assert isinstance(unreadable, Unreadable) and unreadable.reason == "its text is null, not a string"


@settings(max_examples=40, deadline=None)
@given(points=st.lists(st.integers(0, 10**5), max_size=6), group=st.integers(1, 5))
def test_any_splits_of_parquet_give_its_rows_once(points: list[int], group: int) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(12)]}), sink, row_group_size=group)
    data = sink.getvalue()
    got = [row for start, end in cuts(points, len(data)) for row in rows(data, "parquet", start=start, end=end)]
    assert [(row.text, row.locator) for row in got if isinstance(row, Document)] == [(f"row {i}", f"f:{i}") for i in range(12)]


def test_a_line_knows_its_offset_after_a_mark_and_in_a_split() -> None:
    file = LineFile(None, None, 100, 100)
    data = b"\xef\xbb\xbfab\ncd\nef"
    assert [line for _, line in file.lines(io.BytesIO(data), 0, 4)] == [Line(0, b"ab")]
    assert [line for _, line in file.lines(io.BytesIO(data), 4, None)] == [Line(6, b"cd"), Line(9, b"ef")]


@pytest.mark.parametrize("form", ["txt", "md", "jsonl"])
@pytest.mark.parametrize("texts", [{}, {"a.txt": "text " * 99}, {"a.txt": "a\0" * 99}])
def test_a_zip_read_as_text_is_one_row_that_says_so(form: str, texts: dict[str, str]) -> None:
    (row,) = rows(zipped(texts), form)
    assert isinstance(row, Unreadable) and "zip archive" in row.reason
