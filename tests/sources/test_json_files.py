"""JSON as people have it: .json.gz of lines, one array instead of lines, and wide encodings that nothing names."""

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from contract.config import RunOptions
from engine.stage import Engine
from sources.config import IngestConfig, Source
from sources.files import SourceFile, files_of
from sources.formats import read
from sources.rows import Document, Row, Unreadable
from store.storage import Storage
from tasks.ingest import ingest
from tests.tasks.corpus import Notes

RECORDS = [{"text": f"Text {i} ä", "url": f"https://example.org/{i}", "n": [i]} for i in range(50)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def rows_of(path: Path, most: int = 2**20, **named: str) -> list[Row]:
    source = Source(uri=str(path), domain="web", **named)
    (file,), _ = files_of(source, None)
    with path.open("rb") as handle:
        return list(read(file, source, IngestConfig(max_record_bytes=most), handle))


def check(rows: list[Row]) -> None:
    assert [(row.text, row.extra) for row in rows] == [(r["text"], {"url": r["url"], "n": r["n"]}) for r in RECORDS]
    assert len({row.locator for row in rows}) == len(RECORDS)


@pytest.mark.parametrize("name", ["c4-train.00000-of-01024.json.gz", "a.json", "a.jsonl", "a.ndjson.gz", "A.JSON.GZ"])
def test_lines_are_lines_whatever_the_suffix_says(tmp_path: Path, name: str):
    data = LINES.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    check(rows_of(tmp_path / name))


@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
@pytest.mark.parametrize("before", ["", "\n \n", "\ufeff", "\ufeff  "])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz"])
def test_one_array_is_read_as_its_records(tmp_path: Path, indent: int | str | None, before: str, name: str):
    data = (before + json.dumps(RECORDS, indent=indent, ensure_ascii=False)).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    check(rows_of(tmp_path / name))


def test_an_array_in_a_declared_encoding_is_read(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(json.dumps(RECORDS, ensure_ascii=False).encode("cp1252"))
    check(rows_of(tmp_path / "a.json", encoding="cp1252"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(RECORDS)[:-30], "one JSON array that is not whole: "),
        (json.dumps(RECORDS * 30), "one JSON array, of which a file of more than 65,536 bytes"),
        ("[{" + '"a":1,' * 9 + '"b":[' + "0," * 2**15 + "0]}]", "one JSON array, of which a file of more than"),
    ],
)
def test_an_array_that_cannot_be_read_is_said_with_what_to_do(tmp_path: Path, text: str, said: str):
    (tmp_path / "a.json").write_text(text)
    (row,) = rows_of(tmp_path / "a.json", most=2**16)
    assert isinstance(row, Unreadable) and row.reason.startswith(said) and "one object a line, as by jq -c '.[]'" in row.reason


def test_what_is_no_object_in_an_array_costs_itself_alone(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3, null, {"text": "b"}, {"no": 1}]')
    rows = rows_of(tmp_path / "a.json")
    assert [type(row) for row in rows] == [Document, Unreadable, Unreadable, Document, Unreadable]
    assert [row.offset for row in rows if isinstance(row, Unreadable)] == [1, 2, 4]


def test_a_line_that_is_a_list_is_no_array_of_records(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('[1]\n{"text": "a"}\n')
    bad, good = rows_of(tmp_path / "a.jsonl")
    assert isinstance(bad, Unreadable) and isinstance(good, Document)


WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", WIDE)
def test_a_wide_encoding_that_nothing_names_is_suggested_once_and_read_when_declared(tmp_path: Path, encoding: str):
    (tmp_path / "a.jsonl").write_bytes(LINES.encode(encoding))
    (row,) = rows_of(tmp_path / "a.jsonl")
    assert isinstance(row, Unreadable) and row.reason.endswith(f"set the source's encoding: {encoding}")
    check(rows_of(tmp_path / "a.jsonl", encoding=encoding))


@pytest.mark.parametrize("form", ["array", *WIDE])
def test_parts_smaller_than_the_file_change_nothing(local: Storage, tmp_path: Path, form: str):
    """Only its first split would know what such a file is, so it is not split."""
    data = json.dumps(RECORDS).encode() if form == "array" else LINES.encode(form)
    (tmp_path / "a.jsonl").write_bytes(data)
    source = Source(uri=str(tmp_path / "a.jsonl"), domain="web", encoding=None if form == "array" else form)
    places = SimpleNamespace(endpoint_url=None)
    config = SimpleNamespace(sources=(source,), ingest=IngestConfig(part_bytes=200), storage=places)
    one = Engine(local, config, RunOptions(workers=1), Notes(), "test")
    made = one.run(one.plan(ingest, {}))
    texts = pa.concat_tables([made.table(name) for name in made.names()])["text"].to_pylist()
    assert sorted(texts) == sorted(record["text"] for record in RECORDS)
    assert made.ledger.documents is not None and made.ledger.documents.quarantined == 0


def test_an_empty_stream_is_no_array():
    assert list(read(SourceFile("f", "jsonl", 0, "f"), Source(uri="x", domain="web"), IngestConfig(), io.BytesIO(b""))) == []
