"""What a machine is found to do best, and that steps follow from it and from nothing else."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bessemer.config import load
from contract.config import RunOptions
from contract.errors import ConfigError
from store.artifact import Artifact
from store.storage import Storage
from tasks import calibrate as calibration
from tasks.calibrate import Machine, calibrate, place, places, steps_in
from tasks.pretrain import pretrain
from tests.tasks.test_training_stages import CONTEXT, call, config, engine, prepared

GIB = 2**30
LAPTOP = Machine(cores=2, memory_bytes=24 * GIB, vector_units=frozenset({"avx2"}), has_compiler=True)


def sizes(run: RunOptions, machine: Machine, batch_size: int = 16) -> list[tuple[int, int]]:
    return [(where.ranks, where.threads) for where in places(run, batch_size, machine)]


def test_cores_become_ranks_of_one_two_or_four_threads_as_far_as_memory_goes():
    assert sizes(RunOptions(), LAPTOP) == [(2, 1), (1, 2)]
    assert sizes(RunOptions(), replace(LAPTOP, cores=16, memory_bytes=64 * GIB)) == [(16, 1), (8, 2), (4, 4), (1, 16)]
    assert sizes(RunOptions(), replace(LAPTOP, cores=16, memory_bytes=8 * GIB)) == [(4, 4), (1, 16)]
    assert sizes(RunOptions(), replace(LAPTOP, cores=6, memory_bytes=64 * GIB)) == [(1, 6)], "neither 6 nor 3 ranks divide 16 rows"
    assert sizes(RunOptions(), replace(LAPTOP, cores=1, memory_bytes=2 * GIB)) == [(1, 1)]


def test_bfloat16_is_tried_where_the_processor_has_it():
    assert {where.dtype for where in places(RunOptions(), 16, LAPTOP)} == {"float32"}
    server = replace(LAPTOP, vector_units=frozenset({"avx512f", "avx512_bf16"}))
    assert {where.dtype for where in places(RunOptions(), 16, server)} == {"float32", "bfloat16"}


def test_what_is_given_is_not_tried_otherwise():
    assert sizes(RunOptions(ranks=1, threads=1), LAPTOP) == [(1, 1)]
    assert sizes(RunOptions(ranks=4), replace(LAPTOP, cores=16)) == [(4, 4)]
    assert {where.dtype for where in places(RunOptions(dtype="bfloat16"), 16, LAPTOP)} == {"bfloat16"}
    with pytest.raises(ConfigError, match=r"run.ranks is 3 and a step has 16 rows"):
        places(RunOptions(ranks=3), 16, LAPTOP)


@pytest.mark.slow
def test_calibrate_measures_here_and_pretraining_takes_the_steps_that_fit(local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "SECONDS_A_TRIAL", 0.05)
    settings = config(engine="plain", max_steps=None, seconds=0.3)
    settings.tokenizer = SimpleNamespace(vocab_size=300)
    one = engine(local, settings, ranks=1, compile=False)
    found = call(one, calibrate)
    chosen = found.json("calibration.json")
    tried = [asdict(where) for where in places(RunOptions(ranks=1, compile=False), 4, Machine.here())]
    assert chosen["place"] in [{key: where[key] for key in chosen["place"]} for where in tried], "which one wins is the machine's to say"
    assert chosen["place"]["ranks"] == 1 and chosen["place"]["compile"] is False
    assert 0 < chosen["token_s"] * 4 * CONTEXT <= chosen["step_s"] and chosen["fixed_s"] >= 0
    assert one.journal.warnings == [f"calibrate: {one.journal.warnings[0].partition(': ')[2]}"]  # type: ignore[attr-defined]
    assert one.plan(calibrate, {}).reuse is not None, "measured once"

    given = prepared(one)
    base = call(one, pretrain, blocks=given["blocks"], tokenizer=given["tokenizer"], calibration=found)
    fitting = 0.9 * 0.3 / (chosen["fixed_s"] + chosen["token_s"] * 4 * CONTEXT)
    assert base.figures["steps"] == max(1, int(fitting))
    assert base.manifest["execution"]["ranks"] == 1


def test_another_kind_of_machine_is_measured_anew(local: Storage, monkeypatch: pytest.MonkeyPatch):
    settings = config()
    settings.tokenizer = SimpleNamespace(vocab_size=300)
    found = set()
    for machine in (LAPTOP, replace(LAPTOP, cores=4), replace(LAPTOP, memory_bytes=8 * GIB), replace(LAPTOP, vector_units=frozenset())):
        monkeypatch.setattr(Machine, "here", classmethod(lambda cls, machine=machine: machine))
        found.add(engine(local, settings).plan(calibrate, {}).fingerprint)
    assert len(found) == 4


class Calibrated:
    """An artifact of calibrate, as far as a stage looks at it."""

    def json(self, name: str) -> dict:
        return {"place": {"dtype": "bfloat16", "ranks": 2, "threads": 1, "compile": True}, "fixed_s": 0.1, "token_s": 0.001, "step_s": 0.5}


def test_steps_are_what_the_seconds_hold():
    found: Artifact = Calibrated()  # type: ignore[assignment]
    assert steps_in(100, tokens=400, updates=1, calibration=found, setting="train.max_steps") == 180  # 0.9 · 100 / (0.1 + 0.4)
    assert steps_in(100, tokens=400, updates=4, calibration=found, setting="align.ppo.iterations") == 112
    assert steps_in(0.01, tokens=400, updates=1, calibration=found, setting="train.max_steps") == 1
    with pytest.raises(ConfigError, match=r"train.max_steps is unset, and there is no calibration"):
        steps_in(100, tokens=400, updates=1, calibration=None, setting="train.max_steps")


def test_explicit_settings_win_and_without_calibration_it_is_one_plain_thread():
    found: Artifact = Calibrated()  # type: ignore[assignment]
    assert place(RunOptions(), found, is_long=True) == place(RunOptions(dtype="bfloat16", ranks=2, compile=True), None)
    assert not place(RunOptions(), found).compile, "a short stage would wait longer than it gains"
    where = place(RunOptions(ranks=1, dtype="float32", compile=False), found)
    assert (where.ranks, where.dtype, where.compile) == (1, "float32", False)
    assert (place(RunOptions(), None).ranks, place(RunOptions(), None).dtype) == (1, "float32")


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ({}, True),
        ({"train.max_steps": 5, "align.methods": []}, False),
        ({"train.max_steps": 5, "align.methods": ["ppo"], "align.sft.max_steps": 5, "align.reward.max_steps": 5}, True),
        ({"train.max_steps": 5, "align.methods": ["sft"], "align.sft.max_steps": 5}, False),
    ],
)
def test_calibration_is_left_out_where_all_steps_are_given(overrides: dict, wanted: bool):
    aligned = {"align.export": "pretrain"} if "align.methods" in overrides else {}
    assert load("laptop", overrides | aligned).has_steps_to_fit() is wanted
    assert not load("smoke").has_steps_to_fit()
