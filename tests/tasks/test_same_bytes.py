"""Data stages give equal rows on every processor and with every Python: what they make of a fixture corpus is pinned.

A changed digest means that a stage now gives other rows. When that is meant, raise the stage's version, write the file again
(`python tests/tasks/test_same_bytes.py`) and say why in the commit. `make test-isa` runs this under each instruction set.
"""

import hashlib
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bessemer.config import load
from engine.runner import PlainRunner
from engine.stage import Engine
from store.artifact import Artifact
from store.root import open_root
from tests.tasks.corpus import Notes

PINNED = Path(__file__).with_name("same_bytes.json")
WORDS = ("the", "of", "and", "to", "in", "that", "river", "stone", "house", "light", "morning", "letter", "garden", "paper", "window")
SCRIPTS = ("Ä first", "漢字かな交じり文", "Привет, мир", "صباح الخير", "😀 ok", "naïve café", "é")


def sentences(draw: random.Random, count: int) -> str:
    made = (" ".join(pick(draw, WORDS) for _ in range(6 + int(9 * draw.random()))).capitalize() + "." for _ in range(count))
    return "\n".join(f"{each} {pick(draw, SCRIPTS)}" if draw.random() < 0.1 else each for each in made)


def pick(draw: random.Random, words: Sequence[str]) -> str:
    return words[int(len(words) * draw.random())]


def rows() -> list[dict[str, Any]]:
    """Documents, near duplicates of every fourth, and one that is too short. `random` promises to keep the sequence of `random()` alone."""
    draw = random.Random(7)
    texts = [sentences(draw, 20 + int(41 * draw.random())) for _ in range(80)]
    return [{"text": text} for text in [*texts, *(text[:-40] + "the end" for text in texts[::4]), "Too short."]]


def digest_of(artifact: Artifact) -> str:
    """Of its rows, not of its Parquet files: how those are packed is the library's. Any other file counts by its bytes."""
    found = hashlib.sha256()
    for name in sorted(artifact.names("")):
        content = artifact.table(name).to_pylist() if name.endswith(".parquet") else artifact.read(name)
        found.update(repr((name, content)).encode())
    return found.hexdigest()[:16]


def digests(folder: Path) -> dict[str, str]:
    from flows.curate import body

    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    overrides = {
        "sources": [{"uri": (folder / "corpus.jsonl").as_uri(), "domain": "web"}],
        "split.trusted_domains": ["web"],
        "align.methods": [],
        "align.export": "pretrain",
        "mix.weights": {"web": 1},
        "mix.total_tokens": 20000,
        "mix.validation_tokens": 1000,
        "run.workers": 1,
    }
    config = load("smoke", overrides)
    made = body(PlainRunner(Engine(open_root((folder / "root").as_uri()), config, config.run, Notes(), "test")), config)  # type: ignore[arg-type]
    return {name: digest_of(artifact) for name, artifact in made.items() if artifact is not None}


@pytest.mark.slow
def test_every_data_stage_gives_the_pinned_rows_on_this_processor_and_this_python(tmp_path: Path):
    assert digests(tmp_path) == json.loads(PINNED.read_text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PINNED.write_text(json.dumps(digests(Path(folder)), indent=1) + "\n")
