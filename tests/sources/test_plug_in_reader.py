"""A reader of the user's own: its records become rows by the source's fields, and nothing that its code does ends the part."""

import errno
import gzip
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.errors import ConfigError, InputError
from sources.config import IngestConfig, IngestIdentity, Placed, Source
from sources.environment import Environment
from sources.files import SourceFile, files_of
from sources.formats import read
from sources.opener import Opener
from sources.pieces import rows_of
from sources.plan import plan_parts, select
from sources.plug_in_reader import Reader, reader_of
from sources.rows import Batch, Blank, Document, Row, Unreadable, quarantine_table
from store.digests import digests_of_files

LIMITS = IngestConfig(max_record_bytes=200, max_expansion=50)
Make = Callable[..., Source]


def lines(handle: io.BufferedIOBase, locator: str) -> Iterator[dict]:
    for line in handle:
        yield {"text": line.decode().strip()}


@pytest.fixture
def their(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A source that is read by the given function, found by its name in a module of the user's."""
    module: Any = ModuleType("their")
    monkeypatch.setitem(sys.modules, "their", module)

    def source(read: Callable = lines, uri: object = "x", version: int = 1, suffixes: tuple = (".log",), **fields: Any) -> Source:
        module.READER = Reader(version, suffixes, read)
        reader_of.cache_clear()
        return Source(uri=str(uri), domain="web", reader="their:READER", **fields)

    yield source
    reader_of.cache_clear()


def rows(source: Source, data: bytes = b"", compression: str | None = None) -> list[Row]:
    file = SourceFile("f", "plug_in", len(data), "f", compression=compression)
    return list(read(file, source, LIMITS, io.BytesIO(data)))


def yielding(*values: object) -> Callable:
    return lambda handle, locator: iter(values)


def test_a_record_becomes_a_document_by_the_fields_that_the_source_names(their: Make):
    values = yielding(
        {"body": "one", "key": 7, "host": "h", "terms": "MIT", "year": 2001},
        MappingProxyType({"body": "two"}),
        {"body": "three", "key": "a"},
    )
    fields = {"text_field": "body", "id_field": "key", "group_field": "host", "license_field": "terms"}
    assert rows(their(values, **fields)) == [
        Document("#7", "one", "h", "MIT", {"year": 2001, "file": "f", "offset": 0}),
        Document("f:1", "two", None, None, {}),
        Document("#a", "three", None, None, {"file": "f", "offset": 2}),
    ]
    assert rows(their(lambda handle, locator: [{"text": f"{locator} {handle.read().decode()}"}]), b"xyz") == [
        Document("f:0", "f xyz", extra={})
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not a mapping but a NoneType"),
        ("text", "not a mapping but a str"),
        (ValueError("no body in <Article at 0x7f3a12345678>\nof it"), "ValueError: no body in <Article at 0x…> of it"),
        ({"body": "x"}, "no field 'text'; it has body (text_field)"),
        ({"text": None}, "its text is null, not a string"),
        ({"text": b"x"}, "its text is a bytes, not a string"),
        ({"text": " \n"}, "its text is blank"),
        ({"text": "\ud800"}, "a text with lone surrogates, which no encoding holds"),
        ({"text": "x" * 199}, "a record of 201 bytes, over 200 (ingest.max_record_bytes)"),
        ({"text": "x", "y": "z" * 200}, "a record of 209 bytes, over 200 (ingest.max_record_bytes)"),
    ],
)
def test_what_is_no_record_is_quarantined_alone(their: Make, value: object, reason: str):
    before, bad, after = rows(their(yielding({"text": "before"}, value, {"text": "after"}), id_field="id"))
    assert (before, after) == (Document("f:0", "before", extra={}), Document("f:2", "after", extra={}))
    assert isinstance(bad, Unreadable) and (bad.locator, bad.offset) == ("f", 1) and bad.reason.startswith(reason)


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("fields", [{"key": "\ud800"}, {7: "y"}, {"raw": b"y"}, {"object": object()}, {"deep": nested(300)}])
def test_a_field_that_json_cannot_hold_is_left_out_and_named(their: Make, fields: dict):
    (row,) = rows(their(yielding({"text": "x", "n": 1, **fields})))
    assert row == Document("f:0", "x", extra={"n": 1}, omitted=tuple(map(str, fields)))


def test_what_a_reader_raises_quarantines_the_rest_of_its_file_and_keeps_what_came_before(their: Make):
    def breaks(handle: object, locator: str) -> Iterator[dict]:
        yield {"text": "before"}
        raise KeyError(f"\ud800{object()}")

    document, rest = rows(their(breaks))
    assert document == Document("f:0", "before", extra={})
    assert rest == Unreadable(
        "f", 1, "the reader their:READER raised KeyError: '\\ud800<object object at 0x…>'; from here on the file is not read", b""
    )


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda handle, locator: None, "TypeError: 'NoneType' object is not iterable"),
        (lambda handle: iter(()), "TypeError: .*2 were given"),
        (lambda handle, locator: [][0], "IndexError"),
        (lambda handle, locator: next(iter(())), "StopIteration"),
        (lambda handle, locator: Path("/no/such/file").read_text(), "FileNotFoundError"),
        (lambda handle, locator: (_ for _ in [1, 0, 1] if 1 // _), "ZeroDivisionError"),
    ],
)
def test_a_reader_that_is_no_good_says_so_in_each_of_its_files(their: Make, read: Callable, said: str):
    *_, row = rows(their(read))
    assert isinstance(row, Unreadable)
    assert re.search(said, row.reason)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error"), OSError(errno.ENOSPC, "full")], ids=repr)
def test_what_is_of_the_machine_is_no_fault_of_the_file(their: Make, error: Exception):
    def breaks(handle: object, locator: str) -> Iterator[dict]:
        yield {"text": "before"}
        raise error

    with pytest.raises(type(error)):
        rows(their(breaks))


def test_a_file_in_which_a_reader_finds_nothing_is_counted_as_blank(their: Make):
    assert rows(their(yielding())) == [Blank("f")]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9) | st.dates() | st.just(Path("x")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3) | st.tuples(inner),
    max_leaves=6,
)
surrogates = st.text(st.characters(codec=None), max_size=5)
values = anything | st.fixed_dictionaries(
    {"text": surrogates | anything}, optional={"id": anything | surrogates, "more": anything | surrogates}
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.lists(values, max_size=4))
def test_every_value_is_one_row_and_the_tables_can_be_written(their: Make, given: list):
    source = their(yielding(*given), id_field="id")
    got, batch = rows(source), Batch()
    assert len(got) == max(1, len(given))
    for row in got:
        if isinstance(row, Document):
            batch.add(source, row)
    assert batch.table().num_rows + quarantine_table([("s", row) for row in got if isinstance(row, Unreadable)]).num_rows == len(given)


def packed(data: bytes, compression: str) -> bytes:
    return gzip.compress(data) if compression == "gz" else zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_compressed_file_is_decompressed_before_it_is_read(their: Make, compression: str):
    want = [f"line {i}" for i in range(50_000)]
    got = rows(their(), packed("\n".join(want).encode(), compression), compression)
    assert [row.text for row in got if isinstance(row, Document)] == want and len(got) == len(want)


def swallowing(handle: io.BufferedIOBase, locator: str) -> Iterator[dict]:
    try:
        yield from lines(handle, locator)
    except Exception:
        return


@pytest.mark.parametrize("read", [lines, swallowing])
@pytest.mark.parametrize(("damage", "said"), [("cut", "cut before its end mark"), ("bomb", "taken for a bomb")])
def test_a_broken_stream_is_said_whatever_the_reader_makes_of_it(their: Make, read: Callable, damage: str, said: str):
    if damage == "cut":
        data = packed("".join(f"line {i * i}\n" for i in range(50_000)).encode(), "gz")[:-2000]
    else:
        data = packed(b"line\n" + b"\0" * 70 * 2**20, "gz")
    *good, rest = rows(their(read), data, "gz")
    assert good and all(isinstance(row, Document) for row in good)
    assert isinstance(rest, Unreadable) and said in rest.reason and rest.offset == len(good)


def test_a_plain_file_can_seek_and_may_be_an_archive(their: Make):
    """As .docx and .epub are."""
    import zipfile

    def members(handle: io.BufferedIOBase, locator: str) -> Iterator[dict]:
        with zipfile.ZipFile(handle) as archive:
            for name in archive.namelist():
                yield {"text": archive.read(name).decode(), "name": name}

    with zipfile.ZipFile(sink := io.BytesIO(), "w") as archive:
        archive.writestr("a", "the text")
    assert rows(their(members), sink.getvalue()) == [Document("f:0", "the text", extra={"name": "a"})]


def test_files_are_known_by_the_readers_suffixes_and_others_are_counted(their: Make, tmp_path: Path):
    for name in ("a.log", "b.LOG", "c.log.gz", "d.zst", "e.warc.gz", "f.jsonl", "glog", "h.log.bak"):
        (tmp_path / name).write_text("x")
    files, skipped = files_of(their(uri=tmp_path, suffixes=(".log", "warc.gz")), None)
    assert [(file.locator, file.compression) for file in files] == [
        ("a.log", None),
        ("b.LOG", None),
        ("c.log.gz", "gz"),
        ("e.warc.gz", None),
    ]
    assert skipped == 4
    with pytest.raises(InputError, match=r"none of the 8 files of .* ends in \.xml or \.tei, also with \.gz or \.zst; rename them"):
        files_of(their(uri=tmp_path, suffixes=(".xml", "tei")), None)


def texts(source: Source, part_bytes: int) -> list[str]:
    chosen = select([source], digests_of_files, Environment(site=(), stdlib=None, share=None, packages=None), None)
    plan = plan_parts(chosen, part_bytes, Opener())
    return [row.text for part in plan for *_, row in rows_of(part, [source], LIMITS, Opener()) if isinstance(row, Document)]


def test_caps_count_the_records_of_a_reader_whatever_the_part_size(their: Make, tmp_path: Path):
    for i in range(5):
        (tmp_path / f"{i}.log").write_text("".join(f"{i} {j:03d}\n" for j in range(40)))
    assert texts(their(uri=tmp_path), 64) == [f"{i} {j:03d}" for i in range(5) for j in range(40)]
    assert texts(their(uri=tmp_path, max_documents=50), 64) == texts(their(uri=tmp_path, max_documents=50), 2**20)
    assert len(texts(their(uri=tmp_path, max_documents=50), 64)) == 50
    assert 90 < sum(map(len, texts(their(uri=tmp_path, max_bytes=100), 64))) <= 100


def identity(*sources: Source) -> list[dict]:
    return IngestIdentity.of(sources, IngestConfig()).model_dump(mode="json")["sources"]


def test_name_and_version_are_identity_and_a_source_without_a_reader_has_the_one_it_had(their: Make):
    (plain,) = identity(Source(uri="x", domain="web"))
    (first,), (second,) = identity(their()), identity(their(version=2))
    assert not {"reader", "reader_version"} & plain.keys()
    assert first == plain | {"reader": "their:READER", "reader_version": 1} and second == first | {"reader_version": 2}


def test_a_reader_of_another_version_than_the_planned_one_is_refused(their: Make):
    placed = Placed.of(their())
    their(version=2)
    with pytest.raises(ConfigError, match="has version 2 here, and version 1 where the run was planned"):
        rows(placed)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"version": "1"}, "version '1' is no whole number"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version True"),
        ({"suffixes": "xml"}, "suffixes 'xml' are no tuple"),
        ({"suffixes": ()}, "are no tuple"),
        ({"suffixes": (".",)}, "are no tuple"),
        ({"read": None}, "cannot be called"),
    ],
)
def test_a_reader_that_is_made_wrong_is_refused_where_it_is_made(made: dict, said: str):
    with pytest.raises(ValueError, match=said):
        Reader(**{"version": 1, "suffixes": (".x",), "read": lines} | made)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"uri": "environment:web"}, "is read as the environment is; leave reader out"),
        ({"format": "txt"}, "leave format and encoding out"),
        ({"encoding": "cp1252"}, "leave format and encoding out"),
        ({"reader": ""}, "at least 1 character"),
    ],
)
def test_settings_that_a_reader_leaves_without_effect_are_refused(settings: dict, said: str):
    with pytest.raises(ValidationError, match=said):
        Source.model_validate({"uri": "x", "domain": "web", "reader": "a:B"} | settings)
