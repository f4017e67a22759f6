"""More than one at a time: two workers of one pool, of which one is taken away, and two runs that want the same artifact."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bessemer.config import load
from services import background
from services.automations import SILENT, SILENT_S
from store.root import open_root
from store.run_records import records
from store.storage import Storage
from tests.e2e.browser import PROGRAM, Browser
from tests.e2e.installation import ROOT, Installation, at_work, copied, is_final, on_demand, where

pytestmark = [pytest.mark.e2e, on_demand]

LONG = 300
"""Steps: long enough to be met at work, and seconds all the same."""


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, undisturbed: Storage) -> Storage:
    """The undisturbed root, and a copy of it behind HTTP, in which nobody has trained yet."""
    return undisturbed if request.param == "disk" else copied(undisturbed, request.getfixturevalue("s3"), "pretrain")


@pytest.fixture
def second(installed: Installation, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as another machine starts it."""
    environment = installed.client_environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    command = [sys.executable, str(ROOT / "deployments" / "worker.py"), "--pool", "cpu", "--name", "second"]
    with open(tmp_path / "second.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=background.default_signals)
    assert background.wait_until(lambda: installed.api.has_worker("cpu", "second", 0), 60), (tmp_path / "second.log").read_text()
    yield process
    process.terminate()
    process.wait(60)


def manifests(storage: Storage, stage: str) -> set[str]:
    return {entry.path for entry in storage.list(f"artifacts/{stage}/") if "/manifest-" in entry.path}


def went_on(installed: Installation, id: str) -> None:
    """To its end, in its second attempt, and from the checkpoint."""
    run = installed.wait(id, lambda run: is_final(run) and run["run_count"] == 2)
    assert run["state"]["name"] == "Completed", run["state"]
    installed.shows(id, 2, {"pretrain": "Resumed"})
    assert installed.resumed(id, "pretrain") >= [1], "training began again from its first step"


def test_what_one_worker_had_to_leave_another_takes_up(installed: Installation, root: Storage, second: subprocess.Popen[bytes]):
    id = installed.pretrains(root, LONG)
    taken_by = installed.run(id)["labels"]["prefect.worker.name"]
    first_pid = int((installed.home / ".cache" / "services" / "worker.pid").read_text().split()[0])
    os.kill(second.pid if taken_by == "second" else first_pid, signal.SIGTERM)
    try:
        went_on(installed, id)
    finally:
        installed.services("up")
    assert installed.run(id)["labels"]["prefect.worker.name"] != taken_by


def test_worker_and_flow_killed_together_another_worker_goes_on_and_nobody_clicks(
    installed: Installation, root: Storage, second: subprocess.Popen[bytes]
):
    """As when a machine vanishes: only the server can know it, by the heartbeats that stop."""
    id = installed.pretrains(root, LONG + 3)
    taken_by = installed.run(id)["labels"]["prefect.worker.name"]
    victim = psutil.Process(second.pid)
    family = [victim, *victim.children(recursive=True)] if taken_by == "second" else installed.worker_family()
    assert len(family) >= 4, "wrapper, worker, flow and training child"
    for process in family:
        process.kill()
    assert background.wait_until(lambda: not any(map(background.is_alive, family)), 10)
    try:
        assert installed.run(id)["state"]["name"] == "Running"
        run = installed.wait(id, lambda run: run["state"]["type"] == "CRASHED", SILENT_S + 60)
        assert run["state"]["message"] == SILENT
        run = installed.wait(id, lambda run: run["run_count"] == 2)
        assert run["labels"]["prefect.worker.name"] != taken_by
        went_on(installed, id)
    finally:
        installed.services("up")


def test_a_stage_that_is_silent_for_minutes_is_left_alone(installed: Installation, undisturbed: Storage):
    """Its training child stands still, as before a slow disk or in a long collective: what counts is that the flow process lives."""
    id = installed.start("train", **{"storage.root": undisturbed.uri, "train.max_steps": LONG + 6})

    def child() -> list[psutil.Process]:
        return [process for process in installed.working() if "training.child" in process.cmdline()]

    assert background.wait_until(lambda: bool(child()), 120)
    (silent,) = child()
    silent.suspend()
    try:
        time.sleep(2 * SILENT_S)
        assert installed.run(id)["state"]["name"] == "Running", installed.run(id)["state"]
    finally:
        silent.resume()
    run = installed.wait(id, is_final)
    assert (run["state"]["name"], run["run_count"]) == ("Completed", 1), run["state"]


def test_two_runs_at_once_make_one_artifact_and_the_one_that_waits_says_for_what(installed: Installation, root: Storage):
    before = manifests(root, "pretrain")
    ids = [installed.start("train", **where(root), **{"train.max_steps": LONG + 1}) for _ in range(2)]
    runs = [installed.wait(id, is_final) for id in ids]
    assert [run["state"]["name"] for run in runs] == ["Completed", "Completed"], [run["state"] for run in runs]
    assert len(manifests(root, "pretrain") - before) == 1
    said = [line for id in ids for line in installed.lines(id) if "waiting for" in line]
    assert len(said) == 1 and "which makes the same artifact" in said[0], said


def test_two_presets_at_once_share_their_first_stages_and_the_one_that_waits_says_so(installed: Installation, tmp_path: Path):
    """The laptop's, given the smoke preset's curation, differs from it in the size of the mixture: all before `mix` is one work."""
    storage, smoke = open_root((tmp_path / "root").as_uri()), load("smoke").model_dump(mode="json")
    common = {"storage.root": storage.uri, "run.workers": 1}
    alike = {name: smoke[name] for name in smoke if name not in ("storage", "run", "model", "train", "align", "evaluate")}
    alike["evaluate.items"] = smoke["evaluate"]["items"]
    ids = [
        installed.start("curate", **common),
        installed.start("curate", preset="laptop", **common, **alike, **{"mix.total_tokens": 150_000}),
    ]
    runs = [installed.wait(id, is_final, 600) for id in ids]
    assert [run["state"]["name"] for run in runs] == ["Completed", "Completed"], [run["state"] for run in runs]
    made = Counter(entry.path.split("/")[1] for entry in storage.list("artifacts/") if "/manifest-" in entry.path)
    assert {name: count for name, count in made.items() if count > 1} == {"mix": 2, "gate_mix": 2}
    assert any("waiting for" in line and "which makes the same artifact" in line for id in ids for line in installed.lines(id))
    both = [{name.split()[0]: state for name, state in installed.tasks(id)} for id in ids]
    for name in set(both[0]) - {"mix", "gate_mix"}:
        assert sorted(tasks[name] for tasks in both) == ["Cached", "Completed"], name


def test_down_in_the_middle_of_rays_work_leaves_no_process_and_the_run_goes_on_after_up(installed: Installation, tmp_path: Path):
    id = installed.start("curate", **{"storage.root": (tmp_path / "root").as_uri()})
    try:
        assert background.wait_until(lambda: any("ray::Map" in "".join(line) for _, line in installed.processes()), 120)
        installed.services("down")
        assert background.wait_until(lambda: not installed.processes(), 20), installed.processes()
    finally:
        installed.services("up")
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Completed" and run["run_count"] == 2, run["state"]


@pytest.mark.parametrize("program", ["gcs_server", "ray::Map"])
def test_a_flow_that_gets_sigterm_while_ray_starts_or_works_is_handed_back_and_goes_on(
    installed: Installation, undisturbed: Storage, s3: Storage, program: str
):
    storage = copied(undisturbed, s3, "deduplicate")
    id = installed.start("pretrain", **where(storage))
    assert background.wait_until(lambda: at_work(program, "BESSEMER_HOME", str(installed.home)) is not None, 120), installed.lines(id)
    process = psutil.Process(int(installed.run(id)["infrastructure_pid"]))
    family = [process, *process.children(recursive=True)]
    process.terminate()
    assert background.wait_until(lambda: not any(map(background.is_alive, family)), 20)
    run = installed.wait(id, is_final)
    assert (run["state"]["name"], run["run_count"]) == ("Completed", 2), run["state"]
    assert [value["state"] for _, value in records(storage)][-2:] == ["checkpointed", "completed"]


@pytest.mark.parametrize(("stage", "program"), [("deduplicate", "ray::Map"), ("score_perplexity", "lmplz"), ("pretrain", "training.child")])
def test_a_run_that_is_cancelled_in_the_ui_leaves_no_process_and_is_not_taken_up_again(
    installed: Installation, undisturbed: Storage, s3: Storage, tmp_path: Path, stage: str, program: str
):
    storage = copied(undisturbed, s3, stage)
    id = installed.start("pretrain", **where(storage))
    assert background.wait_until(lambda: at_work(program, "BESSEMER_HOME", str(installed.home)) is not None, 120), installed.lines(id)
    process = psutil.Process(int(installed.run(id)["infrastructure_pid"]))
    family = [process, *process.children(recursive=True)]
    cancel(installed, id, tmp_path)
    run = installed.wait(id, is_final, 60)
    assert run["state"]["name"] == "Cancelled", run["state"]
    assert background.wait_until(lambda: not any(map(background.is_alive, family)), 20), [
        each.cmdline() for each in family if each.is_running()
    ]
    assert not manifests(storage, stage)
    assert [value["state"] for _, value in records(storage)][-1] == "stopped"


def cancel(installed: Installation, id: str, folder: Path) -> None:
    """As a person does it, or by the call that the button makes where there is no browser."""
    if PROGRAM is None:
        installed.api.call("POST", f"/flow_runs/{id}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
        return
    with Browser(folder / "browser") as browser:
        browser.log_in(installed.ui, installed.password)
        browser.open(f"{installed.api.url.removesuffix('/api')}/runs/flow-run/{id}")
        browser.wait_for("Running")
        browser.press(".flow-run-menu button")
        browser.click("Cancel")
        browser.wait_for("Cancel Flow Run")
        browser.click("Confirm")
        installed.wait(id, lambda run: run["state"]["name"] != "Running", 30)
