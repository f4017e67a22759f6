"""The loop with the plain engine, in this process: resuming, skipping, going back, stopping."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small

from tests.rounding import rounding
from training.checkpoint_folder import Saver
from training.engine_plain import Batch, PlainEngine
from training.guard import Guard
from training.loader import Blocks, Rows
from training.loop import Diverged, Loop, Plan, Progress, Stopped
from training.metrics import Report
from training.objectives import LanguageModelling, Model
from training.options import Place, Recipe, Schedule, Skipping

STEPS = 14
ROWS = 400
"""More than a run takes, so that a poisoned row comes once."""


class Poisoned(LanguageModelling):
    """Next-token loss that is NaN whenever a batch holds one of the given rows."""

    poison: frozenset[int] = frozenset()

    def batch(self, rows: Rows, weight: float) -> Batch:
        made = super().batch(rows, weight)
        return {**made, "poison": torch.tensor(torch.nan if self.poison & {*rows.tolist()} else 0.0)}

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        return super().loss(model, batch) + batch["poison"]


def loop(folder: Path, limit: int = 3, every: int = 4, stop_at: int | None = None, poison: frozenset[int] = frozenset()) -> Loop:
    if not (folder / "train.npy").exists():
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(2)
        np.save(folder / "train.npy", small.text(rng, ROWS, 33))
        np.save(folder / "validation.npy", small.text(rng, 5, 33))
    objective = Poisoned(Blocks(folder / "train.npy"), Blocks(folder / "validation.npy"), torch.device("cpu"), 5)
    objective.poison = poison
    plan = Plan(1, 4, 2, 0.01, Schedule(STEPS, 2), Skipping(limit, 8.0, 2), 5, every, {"config_digest": "0" * 64, "execution": {}})
    saver = Saver(small.checkpoints(folder / "root"), folder / "scratch", is_writer=True)
    engine = PlainEngine(small.model(), Recipe(learning_rate=0.01), Place())
    made = Loop(engine, objective, plan, saver, Report(None, lambda: 0.0, STEPS, "steps"), lambda: dict(small.model().state_dict()))
    if stop_at is not None:
        made.should_stop = lambda: made._progress.step >= stop_at
    return made


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return loop.engine.weights()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop_at", [1, 4, 7, 13])
def test_stopped_anywhere_it_goes_on_to_the_bit(tmp_path: Path, stop_at: int):
    straight = loop(tmp_path / "a")
    want = straight.run()
    with pytest.raises(Stopped):
        loop(tmp_path / "b", stop_at=stop_at).run()
    resumed = loop(tmp_path / "b")
    assert resumed.run() == want and equal(weights(resumed), weights(straight))
    assert want.validation[-1]["loss"] < want.validation[0]["loss"] and [v["step"] for v in want.validation] == [0, 5, 10, 14]


def rows_of(step: int, offset: int = 0) -> set[int]:
    from training.loader import global_batch

    return set(global_batch(1, step + offset, ROWS, 4).tolist())


def test_a_bad_step_is_skipped_and_said(tmp_path: Path):
    made = loop(tmp_path, poison=frozenset({next(iter(rows_of(6)))}))
    progress = made.run()
    skipped = [record["step"] for record in progress.history if record["skipped"]]
    assert skipped == [6] and not progress.rollbacks and len(progress.history) == STEPS
    assert all((record["loss"] is None) == record["skipped"] for record in progress.history)
    assert all(torch.isfinite(value).all() for value in weights(made).values())


def test_bad_steps_in_a_row_go_back_to_the_checkpoint_and_past_the_data(tmp_path: Path):
    poison = frozenset(row for step in (5, 6, 7) for row in rows_of(step))
    made = loop(tmp_path, poison=poison)
    progress = made.run()
    assert progress.rollbacks == [{"from": 7, "to": 4, "data_offset": 4}], "back from 7 to the checkpoint of 4, whose next data is 8's"
    assert [record["step"] for record in progress.history] == list(range(STEPS))
    assert progress.data_offset == 4 and not any(record["skipped"] for record in progress.history)
    again = loop(tmp_path / "again", poison=poison)
    assert again.run() == progress and equal(weights(again), weights(made)), "going back is deterministic too"


def test_bad_from_the_start_begins_anew_past_the_data(tmp_path: Path):
    made = loop(tmp_path, limit=2, every=100, poison=frozenset(rows_of(0) | rows_of(1)))
    progress = made.run()
    assert progress.rollbacks[0] == {"from": 1, "to": 0, "data_offset": 2} and len(progress.history) == STEPS


def test_a_kill_after_going_back_changes_nothing(tmp_path: Path):
    poison = frozenset(row for step in (5, 6, 7) for row in rows_of(step))
    straight = loop(tmp_path / "a", poison=poison)
    want = straight.run()
    with pytest.raises(Stopped):
        loop(tmp_path / "b", poison=poison, stop_at=10).run()
    resumed = loop(tmp_path / "b", poison=poison)
    assert resumed.run() == want and equal(weights(resumed), weights(straight))


def test_data_that_is_bad_everywhere_ends_the_run(tmp_path: Path):
    with pytest.raises(Diverged, match="after going back 2 times"):
        loop(tmp_path, poison=frozenset(range(ROWS))).run()


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path):
    with pytest.raises(Stopped):
        loop(tmp_path, stop_at=5).run()
    other = loop(tmp_path)
    object.__setattr__(other, "plan", Plan(**{**vars(other.plan), "identity": {"config_digest": "1" * 64, "execution": {}}}))
    with pytest.raises(ValueError, match="000000000000, this run's is 111111111111"):
        other.run()


def test_the_guard_takes_a_spike_for_bad_once_it_knows_enough():
    guard = Guard(4.0, torch.device("cpu"))
    losses = [2.0 + 0.1 * np.sin(i) for i in range(80)]
    for i, loss in enumerate(losses):
        assert (guard.limit() == torch.inf) == (i < 32)
        guard.push(torch.tensor(loss), torch.tensor(True))
    want = np.mean(losses[-64:]) + 4 * np.std(losses[-64:])
    bound = rounding(2 * 64, 1)  # in float32, over 64 losses, for their mean and their spread
    assert float(guard.limit()) == pytest.approx(want, rel=bound)
    guard.push(torch.tensor(50.0), torch.tensor(False))
    assert float(guard.limit()) == pytest.approx(want, rel=bound), "a bad loss does not widen the bound"
    other = Guard(4.0, torch.device("cpu"))
    other.load(guard.state())
    assert torch.equal(other.limit(), guard.limit())


def test_progress_survives_its_json(tmp_path: Path):
    import json
    from dataclasses import asdict

    progress = Progress(step=3, history=[{"step": 0, "loss": 0.1 + 0.2, "skipped": False}])
    assert Progress(**json.loads(json.dumps(asdict(progress)))) == progress


@pytest.mark.slow
def test_loop_and_plain_engine_import_with_torch_and_numpy_alone():
    """So they run on a bare GPU box: with everything else that we install hidden, the imports still work."""
    import subprocess

    hidden = ("pydantic", "pyarrow", "safetensors", "deepspeed", "prefect", "ray", "tokenizers", "orjson", "boto3")
    program = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); import training.loop, training.engine_plain, training.objectives"
    done = subprocess.run([sys.executable, "-c", program], env=small.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
