"""Content made to hang a reader or to fill the memory, read in a child process with a clock or a scale beside it, at the default limits."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
UNCLOSED = {
    "html": [b"<script>", b"<head ", b"</script  ", b"<!--x>", b"<a", b"<p", b"&#", b"&#" + b"1" * 5000, b"<style></script>"],
    "man": [b"\\[", b"\\*[", b"\\f[", b"\\h'", b'.SH "', b"\\("],
    "metadata": [b"A: b\n c\n", b"Content-Type: multipart/mixed; boundary=x\n\n--x\n", b"Description: =?u?q?\n"],
    "docstrings": [b"(", b"-", b"not ", b"1+", b"a.a", b'f"{', b'def f():\n "d"\n'],
    "txt": [b"\xff", b"\xe9 ", b"\0a", b"\x1b$B"],
    "jsonl": [b"[", b'{"a":', b'"\\', b"\n", b"\0"],
}
HANG_S = 60  # each test takes 4 s; before, a single unclosed opening was sought to the text's end and took 20 s at this size, or minutes

CHILD = """
import io, sys
from sources.config import IngestConfig, Source
from sources.files import SourceFile
from sources.reader import read

def rows(data, form, compression=None):
    file = SourceFile("f", form, len(data), "f", compression=compression)
    return list(read(file, Source(uri="x", domain="web"), IngestConfig(), io.BytesIO(data)))
"""


def in_child(script: str, timeout_s: float) -> str:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", CHILD + script], env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
