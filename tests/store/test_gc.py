"""A clean-up: whatever it is given, what it keeps is whole, and what a preset used last is Cached afterwards."""

import hashlib
import itertools
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bessemer.config_file import ConfigFile
from contract.config import canonical_json
from contract.errors import TransientError
from store import gc, pins
from store.artifact import find
from store.attempt import Attempt
from store.catalogue import shelves
from store.root import open_root
from store.run_records import RunRecord
from store.storage import Storage
from store.verify import verify
from tests.engine import toy

DAY = 86_400.0
ROOMS = itertools.count()


def clean(storage: Storage, days: float = 30, in_days: float = 40) -> gc.Plan:
    """A clean-up as it would be that many days from now."""
    found = gc.plan(storage, days, storage.now() + in_days * DAY)
    gc.delete(storage, found)
    return found


def states(engine) -> list[str]:
    return [line[1] for line in engine.journal.lines]


def stages(storage: Storage) -> set[str]:
    return {shelf.stage for shelf in shelves(storage) if shelf.artifact(storage) is not None}


def paths(storage: Storage) -> list[str]:
    return [entry.path for entry in storage.list("")]


def test_a_dry_run_touches_nothing_and_says_the_sizes(storage: Storage):
    toy.pipeline(toy.engine(storage))
    toy.pipeline(toy.engine(storage, toy.Config(power=3)))
    before = {entry.path: entry.size for entry in storage.list("")}
    found = gc.plan(storage, 30, storage.now() + 40 * DAY)
    assert {entry.path: entry.size for entry in storage.list("")} == before
    going = {entry.path for sweep in found.sweeps for entry in sweep.files}
    assert found.size == sum(before[path] for path in going) > 0
    assert found.kept_bytes == sum(size for path, size in before.items() if path.startswith("artifacts/") and path not in going)
    assert gc.delete(storage, found) == (len(going), found.size)
    assert {*before} - {*paths(storage)} == going


def test_what_the_preset_used_last_stays_with_its_inputs_and_the_rest_goes(storage: Storage):
    old = toy.pipeline(toy.engine(storage))
    new = toy.pipeline(toy.engine(storage, toy.Config(power=3)))
    found = clean(storage)
    assert {*found.kept} == {(artifact.stage, artifact.fingerprint) for artifact in new}
    assert find(storage, "squares", old[1].fingerprint) is None
    again = toy.engine(storage, toy.Config(power=3))
    toy.pipeline(again)
    assert states(again) == ["cached"] * 3


def test_a_run_record_keeps_what_it_used_until_its_days_are_over(storage: Storage):
    record = RunRecord.begin(storage, "toy", "toy", {})
    for artifact in toy.pipeline(toy.engine(storage)):
        if artifact.stage == "total":  # its inputs are reached through it
            record.used(artifact, "ran")
    record.end("completed")
    toy.pipeline(toy.engine(storage, toy.Config(count=6)))
    kept = clean(storage, days=50).kept
    assert len(kept) == 6 and sum(why.startswith("used by runs/") for why in kept.values()) == 1
    assert len(clean(storage, days=30).kept) == 3
    assert not storage.list("runs/"), "a record that reaches nothing any more goes too"


def test_a_run_without_an_end_keeps_its_artifacts_for_thirty_days(storage: Storage):
    record = RunRecord.begin(storage, "toy", "toy", {})
    for artifact in toy.pipeline(toy.engine(storage)):
        record.used(artifact, "ran")
    for entry in storage.list("last/"):
        storage.delete(entry.path)
    assert len(clean(storage, days=0, in_days=29).kept) == 3
    assert len(clean(storage, days=0, in_days=31).kept) == 0


def test_a_pin_keeps_and_unpinning_lets_go(storage: Storage):
    made = toy.pipeline(toy.engine(storage))
    pins.pin(storage, made[1])
    toy.pipeline(toy.engine(storage, toy.Config(count=6)))
    kept = clean(storage).kept
    assert kept["squares", made[1].fingerprint] == "pinned"
    assert ("numbers", made[0].fingerprint) in kept and ("total", made[2].fingerprint) not in kept
    pins.unpin(storage, ("squares", made[1].fingerprint))
    assert len(clean(storage).kept) == 3


def test_superseded_manifests_go_and_parts_that_the_newest_adopted_stay(local: Storage):
    made = toy.pipeline(toy.engine(local))
    lost = made[1].files["part-00001.parquet"].path
    local.delete(lost)
    rebuilt = toy.pipeline(toy.engine(local))[1]
    found = clean(local)
    assert [sweep.what for sweep in found.sweeps] == ["superseded", "locks"]
    names = {Path(entry.path).name for entry in local.list(f"artifacts/squares/{rebuilt.fingerprint}/manifest-")}
    assert names == {"manifest-000002.json"}
    assert not verify(local, lambda *_: None).faults
    assert len(local.list("artifacts/squares/")) == 5


def test_leftovers_of_killed_attempts_and_dead_locks_go(storage: Storage):
    made = toy.pipeline(toy.engine(storage))
    left = Attempt.new(storage, "squares", made[1].fingerprint, "basis")
    left.bytes("part-00009.parquet", b"never published")
    other = Attempt.new(storage, "pretrain", "f" * 64, "basis")
    other.bytes("checkpoints/step-000000001/WHOLE", b"{}")
    storage.write("locks/pretrain-" + "f" * 32 + "/000000001.json", json.dumps({"owner": "x", "expires": 0.0}).encode())
    assert not gc.plan(storage, 30, storage.now() + 0.9 * DAY).sweeps, "what is younger than a day may be at work"
    assert [sweep.what for sweep in gc.plan(storage, 30, storage.now() + 2 * DAY).sweeps] == ["leftovers", "locks"], (
        "a resume needs the other"
    )
    assert sorted(sweep.what for sweep in clean(storage).sweeps) == ["leftovers", "leftovers", "locks"]
    assert not [path for path in paths(storage) if left.id in path or other.id in path or path.startswith("locks/")]
    assert not verify(storage, lambda *_: None).faults


def test_a_live_lock_keeps_an_old_attempt(storage: Storage):
    attempt = Attempt.new(storage, "pretrain", "f" * 64, "basis")
    attempt.bytes("checkpoints/step-000000001/WHOLE", b"{}")
    later = storage.now() + 41 * DAY
    storage.write("locks/pretrain-" + "f" * 32 + "/000000001.json", json.dumps({"owner": "x", "expires": later}).encode())
    assert not clean(storage).sweeps
    assert clean(storage, in_days=43).sweeps


def test_half_written_files_of_a_killed_process_go(local: Storage):
    made = toy.pipeline(toy.engine(local))
    half = Path(local.local(made[1].files["part-00000.parquet"].path)).with_name(".partial-0123456789ab")
    half.write_bytes(b"half")
    assert [sweep.what for sweep in clean(local).sweeps] == ["half-written", "locks"]
    assert not half.exists()


def with_settings(storage: Storage, text: bytes, in_days: float = 0) -> tuple[str, RunRecord]:
    """What a run under Prefect leaves that began with a file of settings: a copy, and a record that names its digest."""
    file = ConfigFile("/home/me/my.yaml", text)
    record = RunRecord.begin(storage, "toy", "toy", {}, {"file": file.where, "sha256": file.digest, "base": "smoke", "settings": {}})
    record.value["started"] += in_days * DAY
    record.used(toy.pipeline(toy.engine(storage))[0], "ran")
    return file.keep(storage).removeprefix(f"{storage.uri}/"), record


def test_a_copy_of_a_file_of_settings_goes_with_the_last_record_that_names_it(storage: Storage):
    old, record = with_settings(storage, b"base: smoke\n")
    record.end("completed")
    with_settings(storage, b"base: smoke\n", in_days=20)  # the same file, a later run
    open_, _ = with_settings(storage, b"base: smoke\nrun: {workers: 1}\n")  # a run without an end, as is the one before
    assert {path for path in paths(storage) if path.startswith("configs/")} == {old, open_}
    assert not [sweep for sweep in gc.plan(storage, 0, storage.now() + 0.9 * DAY).sweeps if sweep.what == "configs"], "too young"
    for in_days, left in ((25, {old, open_}), (35, {old}), (55, set())):
        clean(storage, days=30, in_days=in_days)
        assert {path for path in paths(storage) if path.startswith("configs/")} == left, in_days


def test_a_file_of_settings_that_a_run_begins_with_after_the_plan_stays(storage: Storage):
    named, young, gone = (with_settings(storage, b"base: smoke\nseed: %d\n" % n) for n in range(3))
    for _, record in (named, young, gone):
        record.end("completed")
    now = storage.now() + 40 * DAY
    found = gc.plan(storage, 30, now)
    assert [len(sweep.files) for sweep in found.sweeps if sweep.what == "configs"] == [3]
    with_settings(storage, b"base: smoke\nseed: 0\n", in_days=40)
    if (local := storage.local(young[0])) is not None:
        os.utime(local, (now, now))  # as its next run writes it, before its record
    gc.delete(storage, found)
    left = {path for path in paths(storage) if path.startswith("configs/")}
    assert left == {named[0]} | ({young[0]} if local is not None else set())


def test_a_copy_is_young_again_when_another_run_begins_with_it(local: Storage):
    path, _ = with_settings(local, b"base: smoke\n")
    os.utime(local.local(path), (0, 0))
    before = local.stat(path).modified
    time.sleep(0.05)
    with_settings(local, b"base: smoke\n")
    assert local.stat(path).modified > before


def test_nothing_outside_its_four_folders_goes(local: Storage):
    toy.pipeline(toy.engine(local))
    others = ["removals/id-1.json", "pins/x.json", "corpus/text.txt", "artifacts/readme", "artifacts/stage/short/file", "last/odd"]
    others += ["configs/mine.yaml", "configs/my/own/file.yaml"]
    for path in others:
        local.write(path, b"a person's")
    for entry in local.list("last/toy/"):
        local.delete(entry.path)
    assert len(clean(local).sweeps) == 4
    assert sorted(paths(local)) == sorted(others)


def test_a_fingerprint_that_a_run_takes_up_after_the_plan_stays(local: Storage):
    made = toy.pipeline(toy.engine(local))
    toy.pipeline(toy.engine(local, toy.Config(power=3)))
    found = gc.plan(local, 30, local.now() + 40 * DAY)
    assert [sweep.where.split("@")[0] for sweep in found.sweeps] == ["squares", "total", "locks/"]
    record = RunRecord.begin(local, "toy", "toy", {})
    record.value["started"] += 40 * DAY  # the run is of the day of the clean-up
    record.used(made[1], "cached")
    gc.delete(local, found)
    assert find(local, "squares", made[1].fingerprint) is not None
    assert find(local, "total", made[2].fingerprint) is None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["run", "record", "pin", "forget", "damage", "leave", "gc"]),
        st.integers(1, 3),
        st.integers(0, 2),
        st.sampled_from([0, 20, 35, 50]),
    ),
    max_size=8,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS)
def test_after_any_history_what_is_kept_is_whole_and_the_last_run_is_cached(tmp_path: Path, events):
    storage = open_root((tmp_path / f"root-{next(ROOMS)}").as_uri())
    config = toy.Config(count=6, power=1)
    made = toy.pipeline(toy.engine(storage, config))
    for what, power, which, days in events:
        if what == "run":
            config = toy.Config(count=6, power=power)
            made = toy.pipeline(toy.engine(storage, config))
        elif what == "record":
            RunRecord.begin(storage, "toy", "toy", {}).used(made[which], "ran")
        elif what == "pin":
            pins.pin(storage, made[which])
        elif what == "forget":
            storage.delete(f"last/toy/{made[which].stage}.json")
        elif what == "damage":
            storage.delete(made[which].files[sorted(made[which].files)[0]].path)
            made = toy.pipeline(toy.engine(storage, config))
        elif what == "leave":
            Attempt.new(storage, made[which].stage, made[which].fingerprint, "basis").bytes("part-00000.parquet", b"half")
        else:
            clean(storage, days=days)
            made = toy.pipeline(toy.engine(storage, config))
    toy.pipeline(toy.engine(storage, config))  # what was forgotten is pointed at again
    clean(storage)
    assert not verify(storage, lambda *_: None).faults
    again = toy.engine(storage, config)
    toy.pipeline(again)
    assert states(again) == ["cached"] * 3


def test_a_clean_up_beside_running_stages_breaks_none(local: Storage, monkeypatch):
    """Runs of four configurations, each made anew again and again, while clean-ups that find old artifacts follow each other."""
    for power in range(11, 16):
        toy.pipeline(toy.engine(local, toy.Config(power=power, count=6)))
    age(local, monkeypatch, "squares", "total", "numbers")
    faults: list[BaseException] = []
    deleted: list[int] = []
    stop = threading.Event()

    def runs(power: int) -> None:
        try:
            for _ in range(3):
                made = toy.pipeline(toy.engine(local, toy.Config(power=power, count=6), force="squares"))
                assert [artifact.damaged() for artifact in made] == [None] * 3
        except BaseException as error:
            faults.append(error)

    def cleans() -> None:
        try:
            while not stop.wait(0.01):
                deleted.append(gc.delete(local, gc.plan(local, 0))[0])
        except BaseException as error:
            faults.append(error)

    workers = [threading.Thread(target=runs, args=(power,)) for power in range(1, 5)]
    cleaner = threading.Thread(target=cleans)
    for thread in [*workers, cleaner]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    cleaner.join()
    assert not faults, faults
    assert sum(deleted) >= 4 * 5, "the old artifacts but the last went meanwhile"
    assert not verify(local, lambda *_: None).faults


def age(storage: Storage, monkeypatch, *stages: str) -> set[str]:
    """Make everything that these stages have now look a month old."""
    original, before = type(storage).list, storage.now() - 40 * DAY
    old = {entry.path for stage in stages for entry in storage.list(f"artifacts/{stage}/")}
    monkeypatch.setattr(
        type(storage), "list", lambda self, prefix: [replace(e, modified=before) if e.path in old else e for e in original(self, prefix)]
    )
    return old


def test_parts_of_a_killed_attempt_are_safe_while_another_attempt_adopts_them(local: Storage, monkeypatch):
    """The killed attempt is old enough to go; the run that goes on from it has not written a part of its own yet."""
    numbers = toy.pipeline(toy.engine(local))[0]
    engine = toy.engine(local, toy.Config(power=5))
    planned = engine.plan(toy.squares, {"numbers": numbers})
    killed = Attempt.new(local, "squares", planned.fingerprint, _basis(planned))
    for name in numbers.names():
        table = numbers.table(name)
        part = killed.table(name, table)
        inner = killed.bytes(name + ".inner", b"for a later step", content=False)
        killed.seal(name.removesuffix(".parquet"), [part, inner], {"sum": 0})
    age(local, monkeypatch, "squares")
    planned_clean = gc.plan(local, 0)
    assert [sweep.what for sweep in planned_clean.sweeps] == ["leftovers"]
    seen: list[int] = []

    def work(numbers, config, out):
        seen.append(gc.delete(local, planned_clean)[0])  # the clean-up that was planned before this run began
        return toy.squares.work(numbers=numbers, config=config, out=out)

    artifact = engine.run(replace(planned, stage=replace(toy.squares, work=work)))
    assert seen == [0]
    assert artifact.manifest["adopted_parts"] == 4
    assert not verify(local, lambda *_: None).faults


def test_adopted_parts_that_went_all_the_same_stop_the_publication(local: Storage):
    numbers = toy.pipeline(toy.engine(local))[0]
    engine = toy.engine(local, toy.Config(power=5))
    planned = engine.plan(toy.squares, {"numbers": numbers})
    first = engine.plan(toy.squares, {"numbers": numbers})

    def dies(numbers, config, out):
        toy.squares.work(numbers=numbers, config=config, out=out)
        raise TransientError("after its parts were sealed")

    with pytest.raises(TransientError):
        engine.run(replace(first, stage=replace(toy.squares, work=dies)))

    def loses(numbers, config, out):
        ledger = toy.squares.work(numbers=numbers, config=config, out=out)
        local.delete(out.files["part-00001.parquet"].path)
        return ledger

    with pytest.raises(TransientError, match=r"part-00001\.parquet, which was adopted from an earlier attempt, is gone"):
        engine.run(replace(planned, stage=replace(toy.squares, work=loses)))
    assert find(local, "squares", planned.fingerprint) is None


def _basis(planned) -> str:
    return hashlib.sha256(canonical_json({role: artifact.digest for role, artifact in planned.inputs.items()})).hexdigest()


def test_the_age_of_a_file_is_when_it_came_here(storage: Storage, tmp_path: Path):
    before = time.time()
    local = tmp_path / "old"
    local.write_bytes(b"x")
    os.utime(local, (0, 0))
    storage.put("artifacts/x", local)
    assert storage.list("artifacts/")[0].modified >= before - 2
