"""Stages as Prefect task runs, on a real (temporary) server: what is cached is called so, what can heal is retried."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.testing.utilities import prefect_test_harness

from contract.errors import InputError, IntegrityError, TransientError
from contract.ledger import Ledger
from store.artifact import Artifact
from store.storage import Storage
from tasks.prefect_runner import PrefectRunner
from tasks.runner import Runner
from tasks.stage import stage

sys.path.insert(0, str(Path(__file__).parent))
import toy


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def run(storage: Storage, name: str) -> list[Artifact]:
    @flow(name="toy", flow_run_name=name)
    def body() -> list[Artifact]:
        call = PrefectRunner(toy.engine(storage))
        numbers = call(toy.numbers)
        squares = call(toy.squares, numbers=numbers)
        return [numbers, squares, call(toy.total, squares=squares)]

    return body()


def task_runs(flow_run: str, count: int = 3) -> dict[str, str]:
    """State names by task-run name, once the server has written all of them down (it does so after they ended)."""
    deadline = time.monotonic() + 30
    while True:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_run])))
        ended = {run.name: str(run.state.name) for run in found if run.state and run.state.is_final()}
        if len(ended) >= count or time.monotonic() > deadline:
            return ended
        time.sleep(0.2)


def test_a_hit_is_a_cached_state_and_stands_in_the_task_runs_name(local: Storage):
    first = run(local, "first")
    assert task_runs("first") == {f"{a.stage} {a.fingerprint[:12]}": "Completed" for a in first}
    assert [a.digest for a in run(local, "second")] == [a.digest for a in first]
    assert task_runs("second") == {f"{a.stage} {a.fingerprint[:12]} cached": "Cached" for a in first}


@pytest.mark.parametrize(("error", "calls"), [(TransientError, 3), (IntegrityError, 1)])
def test_only_errors_that_can_heal_are_retried(local: Storage, monkeypatch, error: type[Exception], calls: int):
    monkeypatch.setattr("tasks.prefect_runner.RETRY_DELAYS_S", [0, 0])
    made = []

    @stage(version=1, config=lambda c: toy.Amount(count=1))
    def fails(config, out) -> Ledger:
        made.append(1)
        raise error("the store is away")

    @flow
    def body() -> None:
        PrefectRunner(toy.engine(local))(fails)

    with pytest.raises(error, match="the store is away"):
        body()
    assert len(made) == calls


def test_a_part_is_sent_away_only_while_something_of_it_is_missing(local: Storage):
    """What the other machine makes is found here as Cached; when it is all there, no machine is asked for."""
    sent = []

    def elsewhere(flow: str) -> Callable[[], None]:
        return lambda: sent.append((flow, toy.pipeline(toy.engine(local))[-1].digest))

    @flow(name="toy parts")
    def body(name: str) -> str:
        def stages(run: Runner) -> dict[str, Artifact]:
            numbers = run(toy.numbers)
            return {"total": run(toy.total, squares=run(toy.squares, numbers=numbers))}

        return PrefectRunner(toy.engine(local), sender=elsewhere).part(name, stages)["total"].digest

    assert [body("train"), body("train")] == [sent[0][1]] * 2
    assert [name for name, _ in sent] == ["train"]


def test_a_part_that_does_not_come_back_with_its_artifacts_is_named(local: Storage):
    @flow(name="toy lost")
    def body() -> None:
        PrefectRunner(toy.engine(local), sender=lambda flow: lambda: None).part("train", lambda run: {"numbers": run(toy.numbers)})

    with pytest.raises(InputError, match=r"no artifact of numbers for this configuration .*: run train/full first"):
        body()
