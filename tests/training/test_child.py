"""The promise of training, held with real kills: a run that was killed and resumed is the undisturbed run, to the bit."""

import functools
import json
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small

from tests.rounding import rounding

pytestmark = pytest.mark.slow

OF_A_LOSS = rounding(8 * small.SHAPE.context, 1)
"""A share of it: a sum over so many targets in float32 (test_engines.py says why a run's rounding shows there)."""
Undisturbed = Callable[[str, str, int], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a run that nobody disturbed, by kind, engine and ranks."""

    @functools.cache
    def run(kind: str, engine: str, ranks: int) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        small.train(small.spec(folder, kind, engine), folder, ranks)
        return folder

    return run


@pytest.mark.parametrize(
    ("kind", "engine", "ranks"),
    [("pretrain", "plain", 1), ("pretrain", "deepspeed", 2), ("ppo", "plain", 1)],
)
def test_killed_and_resumed_is_undisturbed(tmp_path: Path, undisturbed: Undisturbed, kind: str, engine: str, ranks: int):
    straight, spec = undisturbed(kind, engine, ranks), small.spec(tmp_path, kind, engine)
    small.signal_at(spec, tmp_path, 5, signal.SIGKILL, ranks)  # past the save at 4, which waits until 2 is published
    found = small.checkpoints(tmp_path / "root").latest()
    assert found is not None, "it must be resumed from a checkpoint, not begun anew"
    processes = small.start(spec, tmp_path / "root", tmp_path / "run", ranks)
    assert processes[0].stdout is not None
    first = next(done for line in processes[0].stdout if (done := json.loads(line).get("progress", [0])[0]))
    assert first == found[0] + 1
    assert small.finish(processes, tmp_path / "run") == small.result(straight / "run")
    assert small.model_bytes(straight) == small.model_bytes(tmp_path)
    assert small.losses(straight) == small.losses(tmp_path)


def test_sigterm_checkpoints_ends_with_75_and_the_other_number_of_ranks_is_close(tmp_path: Path, undisturbed: Undisturbed):
    spec = small.spec(tmp_path, "pretrain", "plain") | {"checkpoint_every": 1000}
    stopped = small.signal_at(spec, tmp_path, 2, signal.SIGTERM, ranks=2)
    assert [process.returncode for process in stopped] == [75, 75]
    result = small.finish(small.start(spec, tmp_path / "root", tmp_path / "run", ranks=1), tmp_path / "run")
    assert result["steps"] == 12
    folders = (undisturbed("pretrain", "plain", 1), tmp_path)
    one, two = ([json.loads(line)["loss"] for line in small.losses(folder).splitlines()] for folder in folders)
    assert one == pytest.approx(two, rel=OF_A_LOSS)


def test_ranks_that_share_out_muons_matrices_train_as_one_does(tmp_path: Path):
    spec = small.spec(tmp_path, "pretrain", "plain", optimizer="muon", zero_stage=0, grad_clip=0.0, learning_rate=0.02)
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(small.train, spec, tmp_path / str(ranks), ranks) for ranks in (1, 2)]
        assert all(run.result() for run in runs)
    one, two = ([json.loads(line)["loss"] for line in small.losses(tmp_path / name).splitlines()] for name in "12")
    assert one == pytest.approx(two, rel=OF_A_LOSS) and one[-1] < one[0] - 0.5


def test_a_failure_is_the_last_json_line_and_stdout_holds_nothing_else(tmp_path: Path):
    spec = small.spec(tmp_path, "pretrain", "deepspeed")
    (tmp_path / "pretrain" / "train.npy").unlink()
    process = small.start(spec, tmp_path / "root", tmp_path / "run")[0]
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert lines[-1]["kind"] == "FileNotFoundError" and "train.npy" in lines[-1]["error"]
