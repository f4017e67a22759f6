"""One flipped byte in a file of every kind that every stage of `smoke` publishes, and in all that lies beside the artifacts."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from store import gc, pins
from store.catalogue import artifacts
from store.root import open_root
from store.storage import Storage
from store.verify import verify
from tests.e2e.conftest import run
from tests.e2e.installation import on_demand
from tests.e2e.test_smoke import digests
from tests.store.test_verify import flip

pytestmark = pytest.mark.e2e


@dataclass
class Damaged:
    storage: Storage
    paths: dict[tuple[str, str], str]
    """Of the artifacts' changed files, by stage and suffix."""


@pytest.fixture
def damaged(undisturbed: Storage, tmp_path: Path) -> Damaged:
    """A copy of the undisturbed root with a pin; a byte is flipped in the pin, every run record, pointer and lock as well."""
    shutil.copytree(undisturbed.local(""), tmp_path / "root")  # type: ignore[arg-type]
    storage = open_root((tmp_path / "root").as_uri())
    made = list(artifacts(storage))
    paths = {(one.stage, Path(record.name).suffix): record.path for one in made for record in one.files.values()}
    pins.pin(storage, made[0])
    beside = [entry.path for folder in ("pins/", "runs/", "last/", "locks/") for entry in storage.list(folder)]
    assert {path.split("/")[0] for path in beside} == {"pins", "runs", "last", "locks"}
    for path in [*paths.values(), *beside]:
        flip(storage, path)
    return Damaged(storage, paths)


def test_verify_names_every_changed_file_and_a_clean_up_keeps_what_is_pinned(damaged: Damaged):
    suffixes = {suffix for _, suffix in damaged.paths}
    assert suffixes >= {".parquet", ".json", ".jsonl", ".safetensors", ".binary", ".arpa", ".html", ".md"}
    faults = verify(damaged.storage, lambda *_: None).faults
    assert sorted(fault.path for fault in faults) == sorted(damaged.paths.values())
    assert {fault.what for fault in faults} == {"is changed: its bytes are not those recorded"}
    assert "pinned" in gc.plan(damaged.storage, 30, damaged.storage.now() + 40 * gc.DAY_S).kept.values()


@on_demand
def test_the_next_run_makes_every_changed_stage_again_with_the_same_digests(damaged: Damaged, undisturbed: Storage):
    done = run(damaged.storage)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(" is missing or changed in the store") == len({stage for stage, _ in damaged.paths})
    assert digests(damaged.storage) == digests(undisturbed)
    assert not verify(damaged.storage, lambda *_: None).faults
