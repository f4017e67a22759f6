"""A takedown in a whole root: every artifact and model that holds the document is named, and the next run leaves it out."""

import re
import shutil
from pathlib import Path

import pytest

from flows.__main__ import main
from store.artifact import Artifact
from store.catalogue import artifacts
from store.root import open_root
from store.storage import Storage
from tests.e2e.conftest import arguments

pytestmark = pytest.mark.e2e

ALIGNED = {"sft", "reward", "ppo", "dpo", "export"}


@pytest.fixture(scope="module")
def root(undisturbed: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    folder = tmp_path_factory.mktemp("takedown") / "root"
    shutil.copytree(Path(str(undisturbed.local(""))), folder)
    return open_root(folder.as_uri())


def newest(root: Storage, stage: str) -> Artifact:
    return max((artifact for artifact in artifacts(root) if artifact.stage == stage), key=lambda artifact: artifact.manifest["created"])


def documents(root: Storage, stage: str, prefix: str) -> dict[bytes, dict]:
    """What a stage has read, by id."""
    artifact = newest(root, stage)
    return {row["id"]: row for name in artifact.names(prefix) for row in artifact.table(name).to_pylist()}


def in_blocks(root: Storage) -> set[bytes]:
    mix = newest(root, "mix")
    return {id for name in mix.names() for listed in mix.table(name, ["documents"])["documents"].to_pylist() for id in listed}


def holding(root: Storage, text: str) -> set[str]:
    """The stages with the text in any table or file, found without the product's help."""
    found = set()
    for artifact in artifacts(root):
        for name in artifact.files:
            rows = repr(artifact.table(name).to_pydict()) if name.endswith(".parquet") else ""
            if text in rows or text.encode() in artifact.read(name):
                found.add(artifact.stage)
    return found


def removed(root: Storage, capsys: pytest.CaptureFixture, by: str, value: str) -> dict[str, set[str]]:
    """The stages that `bessemer remove` lists as artifacts and as models; the rule is recorded."""
    assert main(["remove", by, value, "--yes", "--preset", "smoke", "--set", f"storage.root={root.uri}"]) == 0
    said = capsys.readouterr().out
    assert f"recorded  {root.uri}/removals/" in said
    return {kind: set(re.findall(rf"^{kind} +(\w+) [0-9a-f]{{12}}  ", said, re.MULTILINE)) for kind in ("artifact", "model")}


def test_all_that_holds_a_document_is_listed_and_the_next_run_leaves_it_out(root: Storage, capsys: pytest.CaptureFixture):
    """By id, one that a model learned in blocks and in pairs; by place, one that only pairs were made of; by licence, all under it."""
    read, paired, blocks = documents(root, "ingest", "part-"), documents(root, "align_data", "documents"), in_blocks(root)
    learnt = [row for row in paired.values() if row["side"] == "train" and re.fullmatch(r"[\w :?.,`()\n]+", row["text"])]
    both = next(row for row in learnt if row["id"] in blocks)
    pair_only = next(row for row in learnt if row["id"] not in read)
    license = min(row["license"] for id, row in read.items() if id in blocks and row["license"])
    for by, row, value, models in (
        ("--id", both, both["id"].hex(), {"pretrain", *ALIGNED}),
        ("--url", pair_only, pair_only["locator"], ALIGNED),
        ("--license", None, license, {"pretrain", *ALIGNED}),
    ):
        listed = removed(root, capsys, by, value)
        assert listed["model"] == models, f"{by} {value}"
        holders = holding(root, row["text"].splitlines()[-1]) if row else {"ingest", "mix"}
        assert holders - models and holders | {"evaluate", "report"} <= listed["artifact"] | models

    def gone(rows: dict[bytes, dict]) -> set[bytes]:
        return {id for id, row in rows.items() if row["text"] in (both["text"], pair_only["text"]) or row["license"] == license}

    before = {stage: newest(root, stage).manifest["ledger"]["documents"] for stage in ("ingest", "align_data")}
    assert main([*arguments(root), "--until", "align_data", "--set", "run.workers=1"]) == 0
    after = {stage: newest(root, stage).manifest["ledger"]["documents"] for stage in before}
    assert all("removed" not in before[stage]["dropped"] and before[stage]["in"] == after[stage]["in"] for stage in before)
    assert after["ingest"]["dropped"]["removed"] == before["ingest"]["out"] - after["ingest"]["out"] == len(gone(read))
    assert after["align_data"]["dropped"]["removed"] == len(gone(paired)) == 2
    assert not gone(documents(root, "ingest", "part-")) and not gone(documents(root, "align_data", "documents"))
