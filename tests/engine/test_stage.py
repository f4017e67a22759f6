"""The engine's promises, each with the fault caused for real."""

import inspect
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from contract.config import RunOptions
from contract.errors import ConfigError, IntegrityError, StageFailed, StorageError
from contract.ledger import Count, Ledger
from engine.parts import stop_ray
from engine.stage import Engine, Output, stage
from store.storage import Storage
from tests.e2e.installation import on_demand

sys.path.insert(0, str(Path(__file__).parent))
import toy  # the same file is the program that is killed


def states(engine: Engine) -> list[tuple[str, str]]:
    return [line[:2] for line in engine.journal.lines]  # type: ignore[attr-defined]


def run_toy(storage: Storage, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, toy.__file__, storage.uri, getattr(storage, "endpoint_url", "") or ""]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, env=os.environ | environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120)


def test_the_second_call_is_cached_and_has_the_same_artifacts(storage: Storage):
    first = toy.pipeline(toy.engine(storage))
    again = toy.engine(storage)
    assert [a.digest for a in toy.pipeline(again)] == [a.digest for a in first]
    assert states(again) == [("numbers", "cached"), ("squares", "cached"), ("total", "cached")]
    assert [a.manifest["nonce"] for a in toy.pipeline(again)] == [a.manifest["nonce"] for a in first]


def test_fingerprints_are_pinned(local: Storage):
    """Equal config and input give this fingerprint on every machine and in every version; a change here rebuilds everybody's artifacts."""
    assert [a.fingerprint[:16] for a in toy.pipeline(toy.engine(local))] == PINNED


@pytest.mark.slow
def test_a_killed_stage_is_resumed_from_its_sealed_parts(storage: Storage, tmp_path: Path):
    undisturbed = [a.digest for a in toy.pipeline(toy.engine(storage, toy.Config(note="same identity")))]
    for entry in storage.list("artifacts/"):
        storage.delete(entry.path)
    (tmp_path / "kill").write_text("part-00002.parquet")
    environment = {"TOY_KILL": str(tmp_path / "kill"), "TOY_CALLS": str(tmp_path / "calls")}
    assert run_toy(storage, **environment).returncode == -signal.SIGKILL
    resumed = run_toy(storage, **environment)
    assert resumed.stdout.strip() == str(undisturbed), resumed.stderr
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(calls) == [f"part-0000{i}.parquet" for i in range(4)], "a sealed part was worked on again"


def test_a_part_sealed_from_other_inputs_is_not_adopted(local: Storage):
    made = toy.pipeline(toy.engine(local))
    sealed = made[1].files["part-00000.parquet"].path.rsplit("/", 1)[0]
    seal = {"basis": "other inputs", "files": [], "result": {"sum": 10**6}}
    local.write(f"{sealed}/part-00000.seal", orjson.dumps(seal))
    forced = toy.pipeline(toy.engine(local, force="squares"))
    assert forced[1].figures["sum"] == made[1].figures["sum"]


@pytest.mark.parametrize("fault", ["deleted", "flipped"])
def test_a_damaged_file_rebuilds_that_stage_alone(storage: Storage, fault: str):
    made = toy.pipeline(toy.engine(storage))
    path = made[1].files["part-00001.parquet"].path
    data = bytearray(storage.read(path))
    storage.delete(path)
    if fault == "flipped":
        data[len(data) // 2] ^= 1
        storage.write(path, bytes(data))
    again = toy.engine(storage)
    rebuilt = toy.pipeline(again)
    assert [a.digest for a in rebuilt] == [a.digest for a in made]
    assert states(again) == [("numbers", "cached"), ("squares", "ran"), ("total", "cached")]
    assert again.journal.lines[1][2] == "part-00001.parquet is missing or changed in the store"  # type: ignore[attr-defined]
    assert rebuilt[1].manifest["number"] == made[1].manifest["number"] + 1


def test_what_reads_a_rebuilt_stage_with_other_content_is_stale(local: Storage):
    made = toy.pipeline(toy.engine(local))
    manifest = made[1].manifest | {"number": 2, "digest": "0" * 64}
    local.write(f"artifacts/squares/{made[1].fingerprint}/manifest-000002.json", orjson.dumps(manifest))
    again = toy.engine(local)
    toy.pipeline(again)
    assert again.journal.lines[2] == ("total", "ran", "squares was rebuilt with other content")  # type: ignore[attr-defined]


def test_two_runs_at_once_make_one_artifact(storage: Storage):
    results: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append([a.manifest["nonce"] for a in toy.pipeline(toy.engine(storage))])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len({tuple(nonces) for nonces in results}) == 1
    manifests = [entry.path for entry in storage.list("artifacts/") if "/manifest-" in entry.path]
    assert len(manifests) == 3


def test_a_slower_run_keeps_the_parts_that_the_faster_one_adopted(local: Storage):
    """B seals its parts and is away until its lock expires, A adopts them and publishes; B must not tidy away what A's manifest names."""
    numbers = toy.pipeline(toy.engine(local))[0]
    fast, slow = toy.engine(local, toy.Config(power=3)), toy.engine(local, toy.Config(power=3))
    planned = slow.plan(toy.squares, {"numbers": numbers})
    made_by_fast = []

    def work(numbers, config, out):
        ledger = toy.squares.work(numbers=numbers, config=config, out=out)
        for entry in local.list("locks/"):
            local.delete(entry.path)
        made_by_fast.append(fast.run(fast.plan(toy.squares, {"numbers": numbers})))
        return ledger

    slower = slow.run(replace(planned, stage=replace(toy.squares, work=work)))
    assert slower.manifest["nonce"] == made_by_fast[0].manifest["nonce"]
    assert made_by_fast[0].manifest["adopted_parts"] == 4
    assert slower.damaged() is None


def test_a_planted_lost_row_stops_the_run_and_publishes_nothing(local: Storage, monkeypatch):
    monkeypatch.setenv("TOY_LOSE", "part-00001.parquet")
    with pytest.raises(IntegrityError, match="squares wrote 11 rows, but its ledger says 12 documents in"):
        toy.pipeline(toy.engine(local))
    assert not [entry for entry in local.list("artifacts/squares/") if "/manifest-" in entry.path]


def test_a_stage_must_take_in_what_its_input_let_out(local: Storage):
    @stage(version=1, config=lambda c: toy.Amount(count=1), counts="numbers")
    def forgets(numbers, config, out: Output) -> Ledger:
        return Ledger(documents=Count(came_in=11, out=11))

    engine = toy.engine(local)
    made = engine.run(engine.plan(toy.numbers, {}))
    with pytest.raises(IntegrityError, match="forgets counted 11 documents in, but numbers let 12 out"):
        engine.run(engine.plan(forgets, {"numbers": made}))


def test_a_miss_is_explained_by_field(local: Storage):
    toy.pipeline(toy.engine(local))
    planned = toy.engine(local, toy.Config(power=3)).plan(toy.squares, {"numbers": toy.pipeline(toy.engine(local))[0]})
    assert planned.why == "power 2 -> 3"


def test_run_options_do_not_enter_the_fingerprint(local: Storage):
    plans = [Engine(local, toy.Config(), run, toy.Silent(), "toy").plan(toy.numbers, {}) for run in (RunOptions(), RunOptions(workers=7))]
    assert plans[0].fingerprint == plans[1].fingerprint


@pytest.fixture(scope="class")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray for the tests of a class, whose workers find the toy stages, talk, and fail in the way that this file says, if it is there."""
    file = tmp_path_factory.mktemp("ray") / "broken"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": path, "TOY_SAY": "part-00003.parquet", "TOY_BREAK": str(file)}.items():
            patch.setenv(name, value)
        yield file
        stop_ray()


@pytest.mark.slow
class TestByRay:
    def test_the_same_parts_have_the_same_digests_and_what_workers_say_is_heard(self, local: Storage, broken: Path):
        stop_ray()
        here = toy.pipeline(toy.engine(local))
        assert not toy.ASIDE
        by_ray = toy.engine(local, workers=2, force="squares")
        assert [a.digest for a in toy.pipeline(by_ray)] == [a.digest for a in here]
        assert toy.ASIDE == ["while Ray starts"]
        heard = [text for _, state, text in by_ray.journal.lines if state == "warn"]
        assert heard == ["a worker says: half of this is guessed"], "the last word of the last part, once, in the log of its stage"

    def test_ray_data_reads_the_two_numbers_that_are_set_for_it(self):
        """A Ray that has them elsewhere would only be slow."""
        from ray.data._internal.execution import resource_manager, streaming_executor_state

        assert inspect.getsource(resource_manager).count("GLOBAL_LIMITS_UPDATE_INTERVAL_S") == 2
        assert inspect.getsource(streaming_executor_state).count("WAIT_FOR_TASK_COMPLETION_TIMEOUT_S") == 2

    @pytest.mark.parametrize(
        ("how", "sentence"),
        [
            ("no such number", r"^squares: part-0000\d failed with ValueError: no such number$"),
            pytest.param("dies", r"^squares: a worker was killed or crashed 4 times over: out of memory\? Make room, ", marks=on_demand),
        ],
        ids=["raises", "dies"],
    )
    def test_a_part_that_fails_is_said_in_a_sentence_and_done_when_it_is_mended(
        self, local: Storage, broken: Path, how: str, sentence: str
    ):
        broken.write_text(how)
        with pytest.raises(StageFailed) as caught:
            toy.pipeline(toy.engine(local, workers=2))
        assert re.search(sentence, str(caught.value))
        assert how == "dies" or "in square_part" in caught.value.__notes__[0]
        broken.unlink()
        assert toy.pipeline(toy.engine(local, workers=2))[2].json("total.json") == sum(n**2 for n in range(12))


def test_an_attempts_intermediate_files_go_and_other_attempts_stay(local: Storage):
    made = toy.pipeline(toy.engine(local))
    local.write(f"artifacts/squares/{made[1].fingerprint}/otherattempt/x", b"1")
    names = {Path(entry.path).name for entry in local.list("artifacts/squares/")}
    assert names == {*(f"part-0000{i}.parquet" for i in range(4)), "manifest-000001.json", "x"}


def test_a_newer_manifest_schema_is_refused_with_a_sentence(local: Storage):
    made = toy.pipeline(toy.engine(local))
    path = f"artifacts/numbers/{made[0].fingerprint}/manifest-000001.json"
    local.write(path, orjson.dumps(made[0].manifest | {"schema": 99}))
    with pytest.raises(StorageError, match="schema 99, this version reads up to 1"):
        toy.pipeline(toy.engine(local))


def test_an_unknown_input_and_an_unstable_value_are_refused(local: Storage):
    @stage(version=1, config=lambda c: toy.Amount(count=1), external=lambda config, store: {"x": object()})  # type: ignore[dict-item]
    def unstable(config, out: Output) -> Ledger:
        return Ledger()

    with pytest.raises(StageFailed, match="numbers has no input nonsense"):
        toy.engine(local).plan(toy.numbers, {"nonsense": None})
    with pytest.raises(ConfigError, match="no stable form"):
        toy.engine(local).plan(unstable, {})


def test_outside_bytes_that_change_while_they_are_read_are_not_published(local: Storage, tmp_path: Path):
    source = tmp_path / "source"
    source.write_text("before")

    @stage(version=1, config=lambda c: toy.Amount(count=1), external=lambda config, store: {"source": source.read_text()})
    def reads(config, out: Output) -> Ledger:
        source.write_text("after")
        return Ledger()

    engine = toy.engine(local)
    with pytest.raises(IntegrityError, match="source changed while it was read"):
        engine.run(engine.plan(reads, {}))
    assert local.list("artifacts/reads/") == []


def test_one_name_written_twice_is_refused(local: Storage):
    @stage(version=1, config=lambda c: toy.Amount(count=1))
    def twice(config, out: Output) -> Ledger:
        out.table("a.parquet", pa.table({"n": [1]}))
        out.table("a.parquet", pa.table({"n": [1]}))
        return Ledger()

    engine = toy.engine(local)
    with pytest.raises(IntegrityError, match=r"wrote a\.parquet twice"):
        engine.run(engine.plan(twice, {}))


PINNED = ["7a70d890a7b5c7ac", "35ef7d5f2299070b", "2c1724d21875a0aa"]
