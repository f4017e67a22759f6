"""Content made to hang a reader or to fill the memory, read in a child process with a clock or a scale beside it, at the default limits."""

import io
import os
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.docstrings import MOST_TOKENS
from sources.formats import MOST_PARSED_BYTES
from sources.pages import largest_page, row_groups

PROJECT = Path(__file__).parents[2]
UNCLOSED = {
    "html": [b"<script>", b"<head ", b"</script  ", b"<!--x>", b"<a", b"<p", b"&#", b"&#" + b"1" * 5000, b"<style></script>"],
    "man": [b"\\[", b"\\*[", b"\\f[", b"\\h'", b'.SH "', b"\\("],
    "metadata": [b"A: b\n c\n", b"Content-Type: multipart/mixed; boundary=x\n\n--x\n", b"Description: =?u?q?\n"],
    "docstrings": [b"(", b"-", b"not ", b"1+", b"a.a", b'f"{', b'def f():\n "d"\n'],
    "txt": [b"\xff", b"\xe9 ", b"\0a", b"\x1b$B"],
    "jsonl": [b"[", b'{"a":', b'"\\', b"\n", b"\0"],
}
GIBIBYTE = 2**30
HANG_S = 60  # each test takes 4 s; before, a single unclosed opening was sought to the text's end and took 20 s at this size, or minutes

CHILD = """
import io, sys
from sources.config import IngestConfig, Source
from sources.files import SourceFile
from sources.formats import read

def rows(data, form, compression=None):
    file = SourceFile("f", form, len(data), "f", compression=compression)
    return list(read(file, Source(uri="x", domain="web"), IngestConfig(), io.BytesIO(data)))
"""


def in_child(script: str, timeout_s: float) -> str:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", CHILD + script], env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_opens_and_never_closes_hangs_no_reader() -> None:
    script = f"""
for form, units in {UNCLOSED!r}.items():
    for unit in units:
        assert len(rows(unit * (100_000 // len(unit)), form)) < 10**5, (form, unit)
"""
    in_child(script, HANG_S)


def test_a_stream_of_nothing_but_members_frames_and_headers_does_not_hang() -> None:
    script = """
import gzip, zstandard
empty = gzip.compress(b"", mtime=0)
frame = zstandard.ZstdCompressor().compress(b"")
for compression, data in [("gz", empty * 20_000), ("gz", empty[:3] + bytes([8]) + empty[4:10] + b"a" * 5_000_000), ("zst", frame * 20_000)]:
    rows(data, "jsonl", compression)
"""
    in_child(script, HANG_S)


def peak_bytes(tmp_path: Path, form: str, compression: str | None = None) -> tuple[int, list[str]]:
    """The most memory that a process held which read tmp_path/f row by row, and what the rows were, neighbours of one kind once."""
    script = f"""
import itertools
path = {str(tmp_path / "f")!r}
file = SourceFile("f", {form!r}, 1, path, compression={compression!r})
kinds = []
with open(path, "rb") as handle:
    for row in read(file, Source(uri="x", domain="web"), IngestConfig(), handle):
        kinds.append(getattr(row, "reason", type(row).__name__).replace("\\n", " "))
        del row
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
print("\\n".join(kind for kind, _ in itertools.groupby(kinds)))
"""
    kibibytes, *kinds = in_child(script, HANG_S).splitlines()
    return int(kibibytes) * 1024, kinds


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.slow
def test_a_bomb_of_half_a_gigabyte_stays_small(tmp_path: Path, compression: str) -> None:
    """Of two lines of 256 MiB: neither the longest line taken nor the one passed over is kept."""
    pack = zlib.compressobj(wbits=31) if compression == "gz" else zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "f").open("wb") as out:
        for line in range(2):
            out.write(pack.compress(b"[" if line else b'{"text": "'))
            for _ in range(256):
                out.write(pack.compress(b"0" * 2**20))
            out.write(pack.compress(b"\n"))
        out.write(pack.flush())
    peak, kinds = peak_bytes(tmp_path, "jsonl", compression)
    assert peak < GIBIBYTE and "bomb" in kinds[-1] and "Document" not in kinds


LONGEST = 64 * 2**20
LINES = {
    "lists": ('{"text": "x", "a": [', "[],", "[]]}", "JSON values"),
    "strings": ('{"text": "x", "a": [', '"",', '""]}', "JSON values"),
    "one text with brackets and a wide character": ('{"text": "\U0001f600', "[],", '"}', "Document"),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.slow
def test_the_longest_line_taken_costs_less_than_a_gibibyte_whatever_it_holds(tmp_path: Path, name: str) -> None:
    head, unit, tail, said = LINES[name]
    (tmp_path / "f").write_text(head + unit * ((LONGEST - 64) // len(unit)) + tail + "\n")
    peak, kinds = peak_bytes(tmp_path, "jsonl")
    assert peak < GIBIBYTE and len(kinds) == 1 and said in kinds[0]


LARGEST = {"html": b"ab\n", "man": b".SH a\n", "metadata": b"a:\n", "docstrings": b"a\n"}


@pytest.mark.parametrize("form", LARGEST)
@pytest.mark.slow
def test_the_largest_file_that_is_parsed_costs_less_than_a_gibibyte(tmp_path: Path, form: str) -> None:
    """Of many small things, with a character that makes every other one four bytes wide."""
    many = LARGEST[form] * ((MOST_TOKENS // 2 if form == "docstrings" else MOST_PARSED_BYTES // len(LARGEST[form])) - 10)
    (tmp_path / "f").write_bytes((many + b"#\xf0\x9f\x98\x80").ljust(MOST_PARSED_BYTES))
    peak, kinds = peak_bytes(tmp_path, form)
    assert peak < GIBIBYTE and kinds == ["Blank" if form == "docstrings" else "Document"]


@pytest.mark.parametrize(
    ("form", "size", "said"), [("html", MOST_PARSED_BYTES, "are parsed"), ("questions", MOST_TOKENS, "words and marks")]
)
def test_what_is_too_large_to_be_parsed_is_not(tmp_path: Path, form: str, size: int, said: str) -> None:
    (tmp_path / "f").write_bytes(b"a\n" * (size // 2 + 1))
    peak, kinds = peak_bytes(tmp_path, form)
    assert peak < GIBIBYTE / 4 and len(kinds) == 1 and said in kinds[0]


@pytest.mark.parametrize(("megabytes", "said"), [(30, "bomb"), (140, "pages of 146,8")])
@pytest.mark.slow
def test_a_text_in_a_dictionary_of_parquet_is_not_made_many_times(tmp_path: Path, megabytes: int, said: str) -> None:
    """256 rows of one text of 30 MB in a file of some kB; and a page of 140."""
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), pa.array(["a" * megabytes * 2**20]))})
    pq.write_table(table, tmp_path / "f", compression="zstd")
    peak, kinds = peak_bytes(tmp_path, "parquet")
    assert peak < GIBIBYTE and said in kinds[-1]


def noise(mebibytes: int) -> str:
    """ASCII that packs by an eighth: random, and repeated only farther apart than Zstandard looks back at its fast levels."""
    block = random.Random(1).randbytes(8 * 2**20).translate(bytes(range(128)) * 2)
    return (block * (mebibytes // 8 + 1))[: mebibytes * 2**20].decode()


PAGES = {
    "a thousand books": (lambda: [random.Random(row).randbytes(150_000).hex() for row in range(700)], "Document"),
    "one text that packs by five, among short ones": (lambda: ["a", noise(72) + "a" * (312 * 2**20), "b"], "Document"),
    "the longest texts taken, with a wide character": (lambda: ["\U0001f600" + noise(64)[:-4]] * 3 + [noise(56)], "Document"),
    "more than is held": (lambda: [noise(264)], "pages of 276,824,0"),
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.slow
def test_a_page_as_large_as_is_read_costs_less_than_a_gibibyte_whatever_it_holds(tmp_path: Path, name: str) -> None:
    """As pyarrow writes it: 1,024 texts a page, however long."""
    texts, said = PAGES[name]
    pq.write_table(pa.table({"text": texts()}), tmp_path / "f", compression="zstd", compression_level=1, use_dictionary=False)
    peak, kinds = peak_bytes(tmp_path, "parquet")
    assert peak < GIBIBYTE and said in kinds[0], f"{peak / 2**20:.0f} MiB, {(tmp_path / 'f').stat().st_size:,} bytes stored"


@pytest.mark.slow
def test_a_row_is_as_long_as_all_of_its_strings(tmp_path: Path) -> None:
    """Else a column beside the text would be made a string of five times its bytes."""
    columns = {"text": ["a", "b"], "notes": ["\U0001f600" + noise(80), "short"]}
    pq.write_table(pa.table(columns), tmp_path / "f", compression="zstd")
    peak, kinds = peak_bytes(tmp_path, "parquet")
    assert peak < GIBIBYTE / 2 and kinds == ["Document"]


@pytest.mark.parametrize("column", [pa.array([[1] * 10**7]), pa.array([b"a" * 10**7]), pa.array([None])], ids=["lists", "bytes", "null"])
def test_a_column_of_no_strings_is_said_once(tmp_path: Path, column: pa.Array) -> None:
    """Ten million numbers would be as many objects."""
    pq.write_table(pa.table({"text": column}), tmp_path / "f")
    peak, kinds = peak_bytes(tmp_path, "parquet")
    (said,) = kinds
    assert peak < GIBIBYTE / 4 and re.fullmatch(r"its column 'text' is of \S.*, not of strings \(text_field\)", said)


@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=60),
    version=st.sampled_from(["1.0", "2.0"]),
    compression=st.sampled_from(["none", "zstd", "snappy", "gzip"]),
    dictionary=st.booleans(),
    page=st.integers(1, 200),
    checksums=st.booleans(),
)
@settings(max_examples=60)
def test_every_page_is_seen_and_measured(texts: list, version: str, compression: str, dictionary: bool, page: int, checksums: bool) -> None:
    """The largest page of text is at least as large as the longest text, and no larger than the column."""
    sink = io.BytesIO()
    how = {"data_page_version": version, "compression": compression, "use_dictionary": dictionary, "write_page_checksum": checksums}
    pq.write_table(pa.table({"text": texts}), sink, data_page_size=page, write_batch_size=3, **how)
    chunk = pq.ParquetFile(sink).metadata.row_group(0).column(0)
    (group,) = row_groups(sink)
    size, _ = largest_page(sink, group.chunks[0])
    assert (group.rows, group.chunks[0].values, group.chunks[0].stored) == (len(texts), len(texts), chunk.total_compressed_size)
    assert group.chunks[0].offset == (chunk.dictionary_page_offset or chunk.data_page_offset)
    assert max(len(text.encode()) for text in texts) <= size <= chunk.total_uncompressed_size
