"""The real deployments on a real server and worker, over the artifacts of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bessemer.api import Api
from store.storage import Storage
from tests.bessemer.test_services import free_port

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".git", ".venv", ".cache", "runs", "build"}

pytestmark = pytest.mark.e2e


class Installation:
    """This project under a name of its own, with a Prefect home of its own: what `make up` starts."""

    def __init__(self, folder: Path) -> None:
        self.home, port = folder / "home", free_port()
        self.home.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in LEFT_OUT:
                (self.home / entry.name).symlink_to(entry)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment |= {"BESSEMER_HOME": str(self.home), "PREFECT_HOME": str(folder / "prefect"), "BESSEMER_PORT": str(port)}
        self.api = Api(f"http://127.0.0.1:{port}/api")

    def services(self, verb: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "bessemer.services", verb], env=self.environment, check=True, timeout=240, capture_output=True
        )

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A plain `prefect` command, from another folder: the profile that `make up` selected says where the server is."""
        program = str(Path(sys.executable).with_name("prefect"))
        return subprocess.run(
            [program, "--no-prompt", *arguments], env=self.environment, cwd="/", capture_output=True, text=True, timeout=400
        )

    def start(self, flow: str, **overrides: Any) -> str:
        done = self.prefect("deployment", "run", f"{flow}/full", "-p", "preset=smoke", "-p", f"overrides={json.dumps(overrides)}")
        assert done.returncode == 0, done.stdout + done.stderr
        return next(line.split()[-1] for line in done.stdout.splitlines() if "UUID:" in line)

    def run(self, id: str) -> dict[str, Any]:
        return self.api.call("GET", f"/flow_runs/{id}")

    def wait(self, id: str, what: Callable[[dict[str, Any]], bool], seconds: float = 300) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not what(run := self.run(id)):
            assert time.monotonic() < deadline, run["state"]
            time.sleep(0.2)
        return run


def is_final(run: dict[str, Any]) -> bool:
    return run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("installed"))
    installation.services("up")
    try:
        yield installation
    finally:
        installation.services("down")


def test_a_deployment_run_shows_every_stage_cached_and_ends_well(installed: Installation, undisturbed: Storage):
    id = installed.start("pretrain", **{"storage.root": undisturbed.uri})
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    tasks: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while len(tasks) < 26 and time.monotonic() < deadline:  # the server writes task runs down some seconds after they ended
        time.sleep(0.5)
        found = installed.api.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [id]}}})
        tasks = [task for task in found if task["state"] and task["state"]["type"] == "COMPLETED"]
    assert len(tasks) == 26
    assert {task["state"]["name"] for task in tasks} == {"Cached"}
    assert all(task["name"].endswith(" cached") for task in tasks)


def test_a_wrong_value_makes_no_run_and_a_wrong_key_is_named_with_the_nearest(installed: Installation, undisturbed: Storage):
    refused = installed.prefect("deployment", "run", "train/full", "-p", "preset=smoek")
    assert refused.returncode == 1
    assert "'smoek' is not one of" in refused.stdout + refused.stderr
    run = installed.wait(installed.start("train", **{"storage.root": undisturbed.uri, "train.max_stepz": 5}), is_final)
    assert run["state"]["name"] == "Failed"
    assert "train.max_stepz is no setting; the nearest is train.max_steps" in run["state"]["message"]


def test_a_flow_that_gets_sigterm_checkpoints_awaits_retry_and_goes_on(installed: Installation, undisturbed: Storage):
    """A spot notice: the run is handed back to its pool, and a new process trains on from the checkpoint."""
    id = installed.start("train", **{"storage.root": undisturbed.uri, "train.max_steps": 400})

    def checkpointed(run: dict[str, Any]) -> bool:
        assert not is_final(run), run["state"]
        return any(entry.path.endswith("/WHOLE") for entry in undisturbed.list("artifacts/pretrain/"))

    run = installed.wait(id, checkpointed)
    first = int(run["infrastructure_pid"])
    os.kill(first, signal.SIGTERM)
    installed.wait(id, lambda run: run["state"]["name"] == "AwaitingRetry" or run["run_count"] > 1, 60)
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    assert run["run_count"] == 2
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    logs = installed.api.call("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [id]}}, "limit": 200})
    steps = [int(line["message"].split()[1]) for line in logs if line["message"].startswith("pretrain: ")]
    assert steps.count(1) <= 1, "training began again from its first step"
