"""The files that break careless readers: every expected count, line and encoding, from expected.json beside them."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from contract.errors import InputError
from sources.config import IngestConfig, Source
from sources.files import files_of
from sources.formats import read
from sources.rows import Document, Row, Unreadable
from sources.streams import StreamFault, stream

# every .jsonl case but those whose expectation leaves a choice; the choices made are tests of their own below
RECORD_CASES = [
    "bad_escapes.jsonl", "bad_utf8_1_of_10000.jsonl.gz", "bad_utf8_kinds.jsonl", "broken_line.jsonl",
    "concatenated_no_newline.jsonl", "crlf_and_blank_lines.jsonl", "cut_last_line.jsonl", "deep_nesting.jsonl.gz",
    "duplicate_ids.jsonl", "duplicate_keys.jsonl", "empty_member.jsonl.gz", "lone_surrogates.jsonl", "mixed_schema.jsonl",
    "mojibake.jsonl", "no_final_newline.jsonl", "null_and_wrong_types.jsonl", "nuls.jsonl", "truncated.jsonl.gz",
    "truncated.jsonl.zst", "two_frames.jsonl.zst", "two_members.jsonl.gz", "unicode_line_breaks.jsonl",
    "unicode_oddities.jsonl", "utf16be_bom.jsonl", "utf16le_bom.jsonl", "utf8_bom.jsonl", "zero_bytes.jsonl",
]  # fmt: skip


@pytest.fixture(scope="session")
def hard(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hard")
    with tarfile.open(test_data / "hard" / "hard_cases.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "hard_cases"


@pytest.fixture(scope="session")
def expected(hard: Path) -> dict:
    return json.loads((hard / "expected.json").read_text())


def rows_of(path: Path, **settings: object) -> list[Row]:
    source = Source(uri=str(path), domain="web", **settings)
    (file,), _ = files_of(source, None)
    with path.open("rb") as handle:
        return list(read(file, source, IngestConfig(), handle))


def split(rows: list[Row]) -> tuple[list[Document], list[Unreadable]]:
    return [r for r in rows if isinstance(r, Document)], [r for r in rows if isinstance(r, Unreadable)]


def contents(path: Path) -> bytes:
    """The decompressed bytes before any fault."""
    compression = {".gz": "gz", ".zst": "zst"}.get(path.suffix)
    out = io.BytesIO()
    try:
        for chunk in stream(io.BytesIO(path.read_bytes()), compression, 10**6):
            out.write(chunk)
    except StreamFault:
        pass
    return out.getvalue()


@pytest.mark.parametrize("name", RECORD_CASES)
def test_every_good_record_comes_through_and_each_bad_line_is_named_by_its_offset(name: str, hard: Path, expected: dict) -> None:
    if not (hard / name).stat().st_size:
        with pytest.raises(InputError, match="empty"):
            rows_of(hard / name)
        return
    good, bad = split(rows_of(hard / name))
    assert (len(good), len(bad)) == (expected[name]["good"], expected[name]["bad"])
    data = contents(hard / name)
    assert [data[: row.offset].count(b"\n") + 1 for row in bad] == expected[name]["bad_lines"]


@pytest.mark.parametrize("name", ["latin1.txt", "cp1252.txt", "shift_jis.txt"])
def test_a_text_that_is_not_utf8_is_detected_and_its_encoding_recorded(name: str, hard: Path, expected: dict) -> None:
    (document,), bad = split(rows_of(hard / name))
    assert not bad
    assert document.text == (hard / name).read_bytes().decode(expected[name]["encoding"])
    assert document.extra is not None and document.extra["encoding_is"] == "detected"


def test_a_declared_encoding_comes_before_detection(hard: Path) -> None:
    (document,), _ = split(rows_of(hard / "shift_jis.txt", encoding="cp932"))
    assert document.extra == {"encoding": "cp932", "encoding_is": "declared"}


def test_lines_in_a_declared_wide_encoding_are_read_and_undeclared_ones_are_never_text_with_nuls(hard: Path, expected: dict) -> None:
    path = hard / "utf16le_no_bom.jsonl"
    good, bad = split(rows_of(path, encoding="utf-16-le"))
    assert (len(good), len(bad)) == (expected[path.name]["good"], 0)
    undeclared, (said,) = split(rows_of(path))
    assert undeclared == [] and said.reason.endswith("if it is, set the source's encoding: utf-16-le")


@pytest.mark.parametrize("name", ["bad_crc.jsonl.gz", "trailing_garbage.jsonl.gz"])
def test_all_rows_before_damage_are_kept_and_the_damage_is_said(name: str, hard: Path, expected: dict) -> None:
    good, bad = split(rows_of(hard / name))
    assert (len(good), len(bad)) == (expected[name]["good"], 1)


@pytest.mark.parametrize("name", ["not_gzip.jsonl.gz", "gzip_named_plain.jsonl"])
def test_a_name_that_lies_about_compression_is_refused_with_one_row(name: str, hard: Path) -> None:
    good, bad = split(rows_of(hard / name))
    assert good == [] and len(bad) == 1 and "name" in bad[0].reason


def test_what_is_no_json_is_refused_though_python_would_take_it(hard: Path) -> None:
    good, bad = split(rows_of(hard / "nan_infinity_bigint.jsonl"))
    assert [len(good), len(bad)] == [2, 2]  # NaN and Infinity are no JSON; a big integer and a tiny float are


def test_an_indented_array_is_read_as_its_records(hard: Path) -> None:
    good, bad = split(rows_of(hard / "array_not_lines.jsonl"))
    values = json.loads((hard / "array_not_lines.jsonl").read_text())
    assert [row.text for row in good] == [value["text"] for value in values] and not bad


def test_one_bad_byte_costs_one_of_ten_thousand_and_its_head_is_kept(hard: Path) -> None:
    good, (bad,) = split(rows_of(hard / "bad_utf8_1_of_10000.jsonl.gz"))
    assert len(good) == 9999 and bad.reason.startswith("not utf-8") and b"\xff" in bad.head
