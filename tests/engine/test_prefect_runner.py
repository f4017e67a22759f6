"""Stages as Prefect task runs, on a real (temporary) server: what is cached is called so, what can heal is retried."""

import base64
import logging
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings

from contract.errors import InputError, IntegrityError, StageFailed, TransientError
from contract.ledger import Ledger
from engine.prefect_runner import PrefectJournal, PrefectRunner, ending_in_a_sentence
from engine.runner import Runner
from engine.stage import stage
from engine.stage_lines import Note
from store.artifact import Artifact
from store.storage import Storage
from tests.infra.machines.worlds import Server

sys.path.insert(0, str(Path(__file__).parent))
import toy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def server(prefect_server: Server) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
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


def test_a_stage_that_takes_over_what_a_killed_one_had_done_is_resumed(local: Storage, tmp_path: Path):
    (tmp_path / "kill").write_text("part-00002.parquet")
    environment = os.environ | {"TOY_KILL": str(tmp_path / "kill"), "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, toy.__file__, local.uri, ""], env=environment).returncode == -signal.SIGKILL
    run(local, "goes on")
    states = {name.split()[0]: state for name, state in task_runs("goes on").items()}
    assert states == {"numbers": "Cached", "squares": "Resumed", "total": "Completed"}


@pytest.mark.parametrize(("error", "calls"), [(TransientError, 3), (IntegrityError, 1)])
def test_only_errors_that_can_heal_are_retried(local: Storage, monkeypatch, error: type[Exception], calls: int):
    monkeypatch.setattr("engine.prefect_runner.RETRY_DELAYS_S", [0, 0])
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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StageFailed("the cup is empty: fill it"), "the cup is empty: fill it"),
        (
            OSError(28, "No space left on device", "/tmp/x"),
            "/tmp/x: No space left on device. Make space; the same command goes on from here.",
        ),
        (KeyError("a fault of ours"), "Flow run encountered an exception: KeyError: 'a fault of ours'"),
    ],
)
def test_a_failed_runs_message_is_the_sentence_alone(local: Storage, error: Exception, message: str):
    name = f"fails by {type(error).__name__}"

    @stage(version=1, config=lambda c: toy.Amount(count=1))
    def fails(config, out) -> Ledger:
        raise error

    @flow(flow_run_name=name)
    def body() -> State | None:
        return ending_in_a_sentence(lambda: PrefectRunner(toy.engine(local))(fails))

    with pytest.raises(type(error)):
        body()
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    assert run.state is not None and (run.state.name, run.state.message) == ("Failed", message)


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


@stage(version=1, config=lambda c: toy.Amount(count=1))
def trains(config, out) -> Ledger:
    for step in range(1, 701):
        out.progress._last = 0.0  # every report, not two a second
        out.progress(step, 700, "steps", Note.of({"loss": 1000 / step, "lr": 0.1, "note": "<b>"}))
        if step in (1, 350):
            time.sleep(0.4)  # what follows is said
    return Ledger()


def artifacts(key: str) -> list[dict]:
    """All versions of an artifact."""
    with get_client(sync_client=True) as client:
        return client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()


def test_a_long_stage_keeps_one_progress_artifact_and_one_picture_of_its_loss(local: Storage, monkeypatch):
    monkeypatch.setattr("engine.prefect_runner.SILENT_S", 0.2)
    monkeypatch.setattr("engine.prefect_runner.PICTURE_S", 0.3)

    @flow
    def body() -> Artifact:
        with_server = replace(toy.engine(local), journal=PrefectJournal())
        return PrefectRunner(with_server)(trains)

    made = body()
    (progress,) = artifacts("progress-trains")
    assert progress["data"] == 100 and made.fingerprint[:12] in progress["description"]
    (picture,) = artifacts("loss-trains")
    assert picture["task_run_id"] is not None
    data = base64.b64decode(re.search(r"!\[loss by step\]\(data:image/svg\+xml;base64,([^)]+)\)", picture["data"])[1])  # type: ignore[index]
    svg = xml.etree.ElementTree.fromstring(data)
    (line,) = svg.iter("{http://www.w3.org/2000/svg}polyline")
    assert 200 < len(line.attrib["points"].split()) <= 300
    assert picture["data"].startswith("trains: 700 of 700 steps")


def test_a_server_that_is_away_ends_no_stage(local: Storage, monkeypatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("engine.prefect_runner.SILENT_S", 0)
    journal = PrefectJournal()
    journal.started("trains", "f" * 64, "")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), caplog.at_level(logging.WARNING, "bessemer"):
        journal.progress("trains", 1, 2, "steps", "")
    assert "the progress is not shown" in caplog.text
