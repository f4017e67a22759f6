"""The data half of each preset for GPUs, as it ships, on a small source of real web text: what a person tries before the large one."""

import subprocess
import sys
from pathlib import Path

import pytest

from store.catalogue import artifacts
from store.root import open_root

ROOT = Path(__file__).parents[2]


@pytest.mark.e2e
@pytest.mark.parametrize("preset", ["124m", "350m", "1b"])
def test_the_data_half_runs_on_one_source_of_web_text_and_says_what_the_mixture_lacks(preset: str, test_data: Path, tmp_path: Path):
    root = (tmp_path / "root").as_uri()
    source = f"sources=[{{uri: {test_data / 'web/docs/c4_sample.jsonl.zst'}, domain: web}}]"
    settings = [source, f"storage.root={root}", "run.workers=1", "align.methods=[]", "align.export=pretrain"]
    command = [sys.executable, "-m", "flows", "run", "curate", "--preset", preset, *(f"--set={each}" for each in settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("there is no text of academic, books, code, conversation, reference to train on") == 1
    assert said.count("tokens are asked for (mix.total_tokens), and the text gives ") == 1
    (blocks,) = [artifact for artifact in artifacts(open_root(root)) if artifact.stage == "mix"]
    rows = blocks.figures["domains"]
    assert {name for name, row in rows.items() if row["asked"]} == {"web"} and rows["web"]["epochs"] == 4.0
