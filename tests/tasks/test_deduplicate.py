"""deduplicate and split as stages: the room's decisions through storage, whatever the parts, workers and kills."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from contract.config import Frozen, RunOptions
from contract.errors import IntegrityError
from contract.ledger import Count, Ledger
from contract.schemas import DECISIONS, DOCUMENTS, SPLIT, document_id
from dedup.config import DeduplicateConfig
from dedup.steps import READS
from dedup.steps import deduplicate as in_memory
from engine.parts import stop_ray
from engine.stage import Engine, Output, Stage, stage
from filters.config_split import SplitConfig
from store.artifact import Artifact
from store.root import open_root
from store.storage import Storage
from tasks import deduplicate as program
from tasks.deduplicate import deduplicate
from tasks.split import split


class Plan(Frozen):
    rows: tuple[int, ...] = (40, 0, 35, 25)
    reverse: bool = False
    group: bool = True


class Config(Frozen):
    documents: Plan = Plan()
    dedup: DeduplicateConfig = DeduplicateConfig(prefer=("books",))
    split: SplitConfig = SplitConfig(least_documents=3)


class Silent:
    """A journal that keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


def corpus(plan: Plan) -> pa.Table:
    """A hundred texts in families of three: a text, an edited one, and a copy of either."""
    rng = random.Random(4)
    rows = []
    for i in range(sum(plan.rows)):
        text = "".join(rng.choices("abcdefghijklmnop ", k=rng.randrange(300, 600)))
        if i % 3:
            text = rows[-1]["text"][: len(rows[-1]["text"]) - (i % 3 == 1) * 9]
        domain, group = rng.choice(("web", "books")), f"host {rng.randrange(30)}" if plan.group and i % 4 else None
        row = dict.fromkeys(DOCUMENTS.names) | {"id": document_id("s", str(i)), "text": text, "domain": domain, "group": group}
        rows.append(row | {"source": "s", "locator": str(i)})
    return pa.Table.from_pylist(rows[::-1] if plan.reverse else rows, DOCUMENTS)


@stage(version=1, config=lambda c: c.documents, rows="out")
def documents(config: Plan, out: Output) -> Ledger:
    whole, start = corpus(config), 0
    for i, rows in enumerate(config.rows):
        out.table(f"part-{i:05d}.parquet", whole.slice(start, rows))
        start += rows
    return Ledger(Count(start, start))


def made(storage: Storage, config: Config | None = None, workers: int = 1) -> tuple[Artifact, Artifact, Artifact, list[str]]:
    """The three artifacts, and what was warned of."""
    journal = Silent()
    engine = Engine(storage, config or Config(), RunOptions(workers=workers), journal, "test")

    def run(one: Stage, **inputs: Artifact) -> Artifact:
        return engine.run(engine.plan(one, inputs))

    texts = run(documents)
    duplicates = run(deduplicate, documents=texts)
    return texts, duplicates, run(split, documents=texts, duplicates=duplicates), journal.warnings


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for name in artifact.names() for row in artifact.table(name).to_pylist()]


@pytest.fixture
def two_workers() -> Iterator[None]:
    yield
    stop_ray()


def test_decisions_are_the_rooms_own_part_for_part(storage: Storage):
    config = Config()
    texts, duplicates, _, _ = made(storage, config)
    want, figures = in_memory([texts.table(name, READS) for name in texts.names()], config.dedup)
    assert duplicates.names() == texts.names()
    assert [duplicates.table(name).to_pydict() for name in duplicates.names()] == [table.to_pydict() for table in want]
    assert all(duplicates.table(name).schema.equals(DECISIONS) for name in duplicates.names())
    found = dict(duplicates.figures)
    domains = found.pop("domains")
    assert found == figures
    assert {name: sum(cell[name] for cell in domains.values()) for name in ("kept", "exact_duplicate", "near_duplicate")} == {
        "kept": figures["kept"],
        "exact_duplicate": figures["exact_duplicates"],
        "near_duplicate": figures["near_duplicates"],
    }
    assert duplicates.ledger.documents == Count(
        100, figures["kept"], dropped={"exact_duplicate": figures["exact_duplicates"], "near_duplicate": figures["near_duplicates"]}
    )
    assert min(figures["exact_duplicates"], figures["near_duplicates"]) > 20
    assert sorted(duplicates.files) == texts.names(), "intermediate files are not published"
    stored = [entry.path for entry in storage.list("artifacts/deduplicate/")]
    assert not [path for path in stored if "keys/" in path or "members/" in path], "nor left behind"


def test_decisions_do_not_depend_on_parts_or_their_order(local: Storage):
    by_id = []
    for plan in (Plan(), Plan(rows=(100,)), Plan(rows=(13, 60, 27), reverse=True)):
        _, duplicates, sides, _ = made(local, Config(documents=plan))
        by_id.append(
            (sorted(rows_of(duplicates), key=lambda r: r["id"]), sorted(rows_of(sides), key=lambda r: r["id"]), duplicates.figures)
        )
    assert by_id[0] == by_id[1] == by_id[2]


def test_two_workers_give_the_digests_of_one(local: Storage, tmp_path: Path, two_workers: None):
    alone = made(local)[1:3]
    together = made(open_root((tmp_path / "second").as_uri()), workers=2)[1:3]
    assert [artifact.digest for artifact in together] == [artifact.digest for artifact in alone]


def test_an_empty_corpus_and_one_without_duplicates_give_empty_figures(local: Storage):
    _, duplicates, sides, _ = made(local, Config(documents=Plan(rows=(0,))))
    assert (duplicates.ledger.documents, duplicates.figures["components"]) == (
        Count(0, 0, dropped={"exact_duplicate": 0, "near_duplicate": 0}),
        0,
    )
    assert sides.figures["domains"] == {}
    _, duplicates, _, _ = made(local, Config(documents=Plan(rows=(1,))))
    assert rows_of(duplicates) == [{"id": document_id("s", "0"), "kept": True, "reason": None, "survivor": None}]


STEPS = ("sign_one", "pair_one", "gather_one", "settle_one", "decide_one")


@pytest.mark.slow
def test_a_kill_in_every_step_is_resumed_to_the_same_digest(local: Storage, tmp_path: Path):
    """One after the other: the attempt that dies in `pairs` has adopted the signatures of the one that died there, and so on."""
    want = made(local)[1].digest
    calls = tmp_path / "calls"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CALLS": str(calls)}
    command = [sys.executable, __file__, (tmp_path / "killed").as_uri()]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == [want, *[str(-signal.SIGKILL)] * len(STEPS), "0"], run.stderr
    worked_on = calls.read_text().splitlines()
    assert [line for line in worked_on if line.startswith("killed")] == [f"killed in {step}" for step in STEPS]
    assert len(worked_on) == len(set(worked_on)), "a sealed part was worked on again"


def test_the_side_follows_the_group_and_every_row_has_one(storage: Storage):
    texts, duplicates, sides, warnings = made(storage)
    rows, kept = rows_of(sides), {row["id"]: row["kept"] for row in rows_of(duplicates)}
    assert [row["id"] for row in rows] == [row["id"] for row in rows_of(texts)]
    assert all(sides.table(name).schema.equals(SPLIT) for name in sides.names())
    listed = dict(zip(*sides.table("groups.parquet").to_pydict().values(), strict=True))
    assert {(row["group"], row["split"]) for row in rows} == set(listed.items()), "one side a group, and the list has it"
    assert sides.ledger.documents == Count(100, 100)
    names = {row["id"]: row["group"] for row in rows_of(texts)}
    survivors = {row["id"]: row["survivor"] or row["id"] for row in rows_of(duplicates)}
    assert all(row["group"] == (names[row["id"]] or f"component:{survivors[row['id']].hex()}") for row in rows)
    domains = {row["id"]: row["domain"] for row in rows_of(texts)}
    for domain, cell in sides.figures["domains"].items():
        here = [row for row in rows if kept[row["id"]] and domains[row["id"]] == domain]
        assert cell == {name: sum(row["split"] == name for row in here) for name in ("train", "validation", "test")} | {
            "trusted": sum(row["trusted"] for row in here)
        }
        assert cell["trusted"] == (len(here) if domain == "books" else 0)
        assert min(cell["validation"], cell["test"]) >= 1
    assert warnings == []


def test_settings_without_effect_and_domains_without_held_out_text_are_said(local: Storage):
    plan = Plan(rows=(4,), group=False)
    warnings = made(local, Config(documents=plan, split=SplitConfig(trusted_domains=("academic",), trusted_sources=("manuals",))))[3]
    assert any("no validation documents of" in text for text in warnings)
    assert any("nothing is trusted: no document comes from manuals, academic" in text for text in warnings)


def test_decisions_of_other_documents_are_refused(local: Storage):
    engine = Engine(local, Config(), RunOptions(workers=1), Silent(), "test")
    duplicates = made(local)[1]
    other = engine.run(Engine(local, Config(documents=Plan(reverse=True)), RunOptions(workers=1), Silent(), "test").plan(documents, {}))
    with pytest.raises(IntegrityError, match="are not those of documents@"):
        engine.run(engine.plan(split, {"documents": other, "duplicates": duplicates}))


def _kill_in(step: str, calls: Path) -> None:
    """Note each part that a step works on, and die by SIGKILL in `step`: in its second part where it may have several."""

    def noting(name: str, work: Any) -> Any:
        def noted(spec: dict, write: Any) -> dict:
            before = calls.read_text() if calls.exists() else ""
            dies = name == step and (f"{step} " in before or name in ("pair_one", "settle_one"))
            key = f"{name} {spec.get('name', spec.get('bucket', spec.get('shard')))}"
            calls.write_text(before + (f"killed in {step}" if dies else key) + "\n")
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return dict(work(spec, write))

        return noted

    for name in STEPS:
        setattr(program, name, noting(name, getattr(program, name)))


def _attempt(root: str, step: str | None) -> int:
    """One run in a process of its own, forked from a process without threads, so that nothing is imported again; how it ended."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _kill_in(step or "no step", Path(os.environ["CALLS"]))
    print(made(open_root(root))[1].digest, flush=True)
    os._exit(0)


if __name__ == "__main__":
    print(*(_attempt(sys.argv[1], step) for step in [*STEPS, None]))
