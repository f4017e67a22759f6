import contextlib
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.config import Frozen, RunOptions
from contract.errors import InputError
from contract.ledger import Count, Ledger
from contract.schemas import document_id
from engine.stage import Engine, Output, Stage, stage
from evaluation.config import ItemsConfig, NamedTask
from evaluation.items import named_items
from store.artifact import Artifact
from store.root import open_root
from tasks.eval_tasks import MOST_BYTES, _lines, eval_tasks


class Notes:
    """What the engine said, kept."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...

    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...

    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


class Nothing(Frozen):
    pass


def corpus(parts: int = 3, rows: int = 20) -> list[pa.Table]:
    rng = np.random.default_rng(0)
    vocabulary = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(1, 9, 400)]
    tables = []
    for part in range(parts):
        texts = [" ".join(vocabulary[i] for i in rng.integers(0, 400, 120)) for _ in range(rows)]
        ids = [document_id("web", f"{part}/{i}") for i in range(rows)]
        tables.append(pa.table({"id": ids, "text": pa.array(texts, pa.large_string()), "domain": ["web"] * rows}))
    return tables


def inputs() -> dict[str, Stage]:
    """Real stages that publish the three inputs, every second document on the test side."""

    @stage(version=1, config=lambda c: Nothing())
    def documents(config: Nothing, out: Output) -> Ledger:
        for i, table in enumerate(corpus()):
            out.table(f"part-{i:05d}.parquet", table)
        return Ledger(Count(60, 60))

    @stage(version=1, config=lambda c: Nothing())
    def duplicates(config: Nothing, out: Output) -> Ledger:
        for i, table in enumerate(corpus()):
            out.table(f"part-{i:05d}.parquet", pa.table({"id": table["id"], "kept": [True] * len(table)}))
        return Ledger(Count(60, 60))

    @stage(version=1, config=lambda c: Nothing())
    def splits(config: Nothing, out: Output) -> Ledger:
        for i, table in enumerate(corpus()):
            sides = ["test" if k % 2 else "train" for k in range(len(table))]
            out.table(
                f"part-{i:05d}.parquet", pa.table({"id": table["id"], "split": sides, "group": [f"{i}/{k}" for k in range(len(table))]})
            )
        return Ledger(Count(60, 60))

    return {"documents": documents, "duplicates": duplicates, "splits": splits}


def run(root: Path, config: ItemsConfig, notes: Notes) -> Artifact:
    storage = open_root(str(root))
    storage.probe()
    engine = Engine(storage, SimpleNamespace(evaluate=SimpleNamespace(items=config)), RunOptions(workers=1), notes, "test")
    given = {role: engine.run(engine.plan(made, {})) for role, made in inputs().items()}
    return engine.run(engine.plan(eval_tasks, given))


CONFIG = ItemsConfig(items=30, context_characters=60, continuation_characters=30)
LINE = json.dumps({"query": "Two and two make", "choices": ["four", "five"], "gold": 0})


def test_items_come_from_the_test_side_and_named_tasks_stand_beside_them(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl.gz").write_bytes(gzip.compress(f"{LINE}\n{LINE}\n".encode()))
    notes = Notes()
    config = CONFIG.model_copy(update={"tasks": (NamedTask(name="sums", uri=str(tmp_path / "sums.jsonl.gz")),)})
    artifact = run(tmp_path / "root", config, notes)
    table = artifact.table("items.parquet")
    test_ids = {row for part in corpus() for i, row in enumerate(part["id"].to_pylist()) if i % 2}
    local = [row for row in table.to_pylist() if row["task"] == "continuation"]
    assert {row["document"] for row in local} <= test_ids and len(local) == 28  # sets of four
    assert [row["context"] for row in table.to_pylist() if row["task"] == "sums"] == ["Two and two make"] * 2
    assert artifact.figures == {"items": {"continuation": 28, "sums": 2}, "documents": 28, "domains": {"web": 28}}
    assert artifact.names("") == ["items.parquet"] and not notes.warnings


def test_a_changed_task_file_is_another_artifact_and_an_equal_one_elsewhere_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    config = CONFIG.model_copy(update={"tasks": (NamedTask(name="sums", uri=path.as_uri()),)})
    path.write_text(LINE)
    first = run(tmp_path / "root", config, Notes())
    assert run(tmp_path / "elsewhere", config, Notes()).digest == first.digest
    path.write_text(LINE.replace("five", "nine"))
    assert run(tmp_path / "root", config, Notes()).fingerprint != first.fingerprint


def test_too_few_documents_are_said(tmp_path: Path) -> None:
    notes = Notes()
    artifact = run(tmp_path, CONFIG.model_copy(update={"items": 500}), notes)
    assert artifact.figures["items"]["continuation"] < 500
    assert any("local items instead of 500" in text for text in notes.warnings)


def test_a_missing_task_file_is_named_before_anything_runs(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"tasks": (NamedTask(name="sums", uri=str(tmp_path / "absent.jsonl")),)})
    with pytest.raises(InputError, match=r"absent.jsonl of the task sums: No such file"):
        run(tmp_path / "root", config, Notes())


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
PARTS = st.sampled_from([f"{LINE}\n".encode(), b"\n", b"[1]\n", b'{"query": "a", "choices": ["b", "c"], "gold": true}\n'])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(PARTS | st.binary(max_size=30), max_size=6),
    places=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=3),
    cut=st.none() | st.integers(0, 10**4),
    suffix=st.sampled_from([*COMPRESSIONS]),
)
def test_any_damaged_task_file_gives_items_or_a_sentence(tmp_path: Path, parts: list, places: list, cut: int | None, suffix: str) -> None:
    damaged = bytearray(COMPRESSIONS[suffix](b"".join(parts)))
    for place, value in places if damaged else []:
        damaged[place % len(damaged)] = value
    path = tmp_path / f"sums.jsonl{suffix}"
    path.write_bytes(damaged if cut is None else damaged[:cut])
    task = NamedTask(name="sums", uri=str(path))
    with contextlib.suppress(InputError):
        assert len(named_items(task, _lines(task, open_root(str(tmp_path)))))


@pytest.mark.parametrize(("suffix", "content"), [(".gz", bytes(2**28)), (".zst", bytes(2**28)), ("", b"[" * 2**21)])
def test_a_line_longer_than_any_item_is_refused_where_it_stands(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"sums.jsonl{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](content))
    task = NamedTask(name="sums", uri=str(path))
    with pytest.raises(InputError, match=r"of the task sums, at byte 0: (a line of|grows to more)"):
        named_items(task, _lines(task, open_root(str(tmp_path))))


@pytest.mark.slow
def test_more_items_than_memory_is_meant_for_are_refused_unless_limited(tmp_path: Path) -> None:
    """A megabyte on disk may hold a gigabyte of items."""
    path = tmp_path / "sums.jsonl.zst"
    path.write_bytes(zstandard.compress(f"{LINE}\n".encode() * (MOST_BYTES // len(LINE) + 1)))
    task = NamedTask(name="sums", uri=str(path), limit=100)
    assert len(named_items(task, _lines(task, open_root(str(tmp_path))))) == 100
    with pytest.raises(InputError, match=r"has more than 25,165,824 bytes of items; give the task a limit"):
        named_items(task.model_copy(update={"limit": None}), _lines(task, open_root(str(tmp_path))))
