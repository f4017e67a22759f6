"""Fingerprints are pinned: for every preset the config part of each stage, and whole ones over a fixture corpus.

A changed line means that everybody's artifacts of that stage, and of those after it, are made anew. When that is meant, write the
file again (`python tests/tasks/test_fingerprints.py`) and say why in the commit.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bessemer.config import Preset, load
from contract.config import canonical_json
from engine.runner import PlanRunner
from engine.stage import Engine, Planned
from store.root import open_root
from store.storage import Storage

PINNED = Path(__file__).with_name("fingerprints.json")
CORPUS = [{"text": f"Document {i} of a fixture corpus: it has words enough to be read, and nothing else."} for i in range(20)]
PAIRS = [{"prompt": f"What is {i}?", "response": f"A number, the one after {i - 1}."} for i in range(20)]


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.as_uri()


def plans(preset: str, folder: Path, storage: Storage) -> list[Planned]:
    """Every stage of the whole flow over the fixture corpus; nothing is run."""
    from flows.pretrain import body

    overrides: dict[str, Any] = {
        "sources": [{"uri": write_lines(folder / "corpus.jsonl", CORPUS), "domain": "web"}],
        "align_data.sources": [{"uri": write_lines(folder / "pairs.jsonl", PAIRS), "domain": "conversation"}],
    }
    config = load(preset, overrides)
    runner = PlanRunner(Engine(storage, config, config.run, None, preset))  # type: ignore[arg-type]
    body(runner, config)
    return runner.plans


def fingerprints(folder: Path) -> dict[str, dict[str, str]]:
    storage = open_root((folder / "root").as_uri())
    found: dict[str, dict[str, str]] = {}
    for preset in Preset:
        planned = plans(preset.value, folder, storage)
        found[f"config of {preset.value}"] = {p.stage.name: hashlib.sha256(canonical_json(p.config)).hexdigest()[:16] for p in planned}
        if preset is Preset.smoke:
            found["smoke over the fixture corpus"] = {p.stage.name: p.fingerprint[:16] for p in planned}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    return fingerprints(tmp_path_factory.mktemp("somewhere"))


def test_fingerprints_are_as_pinned(found: dict[str, dict[str, str]]):
    assert found == json.loads(PINNED.read_text())


def test_the_place_of_corpus_and_store_does_not_matter(found: dict[str, dict[str, str]], tmp_path: Path):
    (tmp_path / "else where").mkdir()
    assert fingerprints(tmp_path / "else where") == found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PINNED.write_text(json.dumps(fingerprints(Path(folder)), indent=1) + "\n")
    sys.exit(0)
