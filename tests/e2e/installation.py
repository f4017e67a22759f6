"""This project as `make up` installs it, with a server, a worker and a Prefect home of the tests' own."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from services import background
from services.prefect_api import Api
from store.storage import Storage
from tests.services.test_services import free_port

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".git", ".venv", ".cache", ".prefect", "runs", "build"}
on_demand = pytest.mark.on_demand
"""What would make `make test` longer than a person waits (tests/conftest.py)."""
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED42",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+that/nobody/may/ever/see00",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "HF_TOKEN": "hf_planted_token",
    "PREFECT_API_KEY": "pnu_planted_key",
    "PIP_EXTRA_INDEX_URL": "https://me:planted-url-password@127.0.0.1:9/simple",
}
"""Secrets such as machines have them in the environment, for whole runs."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


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
        self.environment |= PLANTED
        self.url = f"http://127.0.0.1:{port}/api"

    @property
    def ui(self) -> str:
        return self.url.removesuffix("/api")

    @property
    def password(self) -> str:
        return (self.home / ".cache" / "services" / "password").read_text().strip()

    @property
    def api(self) -> Api:
        return Api(self.url, self.password)

    @property
    def client_environment(self) -> dict[str, str]:
        """For a worker of its own beside the installation's, as it would run on another machine."""
        return self.environment | {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self.password}

    def services(self, verb: str) -> None:
        subprocess.run([sys.executable, "-m", "services", verb], env=self.environment, check=True, timeout=240, capture_output=True)

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A plain `prefect` command, from another folder: the profile that `make up` selected says where the server is."""
        program = str(Path(sys.executable).with_name("prefect"))
        return subprocess.run(
            [program, "--no-prompt", *arguments], env=self.environment, cwd="/", capture_output=True, text=True, timeout=400
        )

    def bessemer(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows", *arguments]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120)

    def start(self, flow: str, deployment: str = "full", preset: str = "smoke", **overrides: Any) -> str:
        parameters = ["-p", f"preset={preset}", "-p", f"overrides={json.dumps(overrides)}"]
        done = self.prefect("deployment", "run", f"{flow}/{deployment}", *parameters)
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

    def pretrains(self, storage: Storage, steps: int) -> str:
        """A run that is pretraining for so many steps, of which a checkpoint is there; its id."""

        def checkpoints() -> set[str]:
            return {entry.path for entry in storage.list("artifacts/pretrain/") if entry.path.endswith("/WHOLE")}

        before = checkpoints()
        id = self.start("train", **where(storage), **{"train.max_steps": steps})

        def checkpointed(run: dict[str, Any]) -> bool:
            assert not is_final(run), run["state"]
            return bool(checkpoints() - before)

        self.wait(id, checkpointed)
        return id

    def tasks(self, id: str, attempt: int | None = None) -> list[tuple[str, str]]:
        """(name, state) of the run's task runs that have ended, in their order; of all its attempts or of one."""
        found = self.api.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [id]}}, "sort": "ID_DESC"})
        ended = [task for task in found if task["state"] and task["state"]["type"] in FINAL]
        wanted = [task for task in ended if attempt in (None, task["flow_run_run_count"])]
        return [(task["name"], task["state"]["name"]) for task in sorted(wanted, key=lambda task: task["created"])]

    def shows(self, id: str, attempt: int, states: dict[str, str]) -> None:
        """See these states of an attempt's stages; the server writes task runs down some seconds after they ended."""

        def shown() -> dict[str, str]:
            return {name.split()[0]: state for name, state in self.tasks(id, attempt)}

        assert background.wait_until(lambda: states.items() <= shown().items(), 60), shown()

    def lines(self, id: str) -> list[str]:
        """What the run's log holds, as the UI shows it."""
        found: list[dict[str, Any]] = []
        while True:
            body = {"logs": {"flow_run_id": {"any_": [id]}}, "limit": 200, "offset": len(found), "sort": "TIMESTAMP_ASC"}
            page = self.api.call("POST", "/logs/filter", body)
            found += page
            if len(page) < 200:
                return [line["message"] for line in found]

    def resumed(self, id: str, stage: str) -> list[int]:
        """After how many steps each attempt of the run took the stage's training up again."""
        said = (re.search(rf"^{stage}: goes on from its checkpoint after (\d+) of", line) for line in self.lines(id))
        return [int(match[1]) for match in said if match]

    def children(self, parent: str) -> dict[str, dict[str, Any]]:
        """The runs that this one has sent to their pools, by flow."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [parent]}}, "sort": "ID_DESC"}
        found = self.api.call("POST", "/flow_runs/filter", body)
        return {self.api.call("GET", f"/flows/{run['flow_id']}")["name"]: run for run in found}

    def processes(self) -> list[tuple[psutil.Process, list[str]]]:
        """All that this installation runs, with their command lines, whoever started them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("BESSEMER_HOME") == str(self.home) and background.is_alive(process):
                    found.append((process, process.cmdline()))
        return found

    def worker_family(self) -> list[psutil.Process]:
        """The worker's wrapper, the worker, and all that flows have started below it."""
        wrapper = psutil.Process(int((self.home / ".cache" / "services" / "worker.pid").read_text().split()[0]))
        return [wrapper, *wrapper.children(recursive=True)]

    def working(self) -> list[psutil.Process]:
        """Flow processes and their children."""
        return [process for process, line in self.processes() if {"prefect.engine", "training.child"} & set(line)]


def where(storage: Storage) -> dict[str, str]:
    """The settings that lead to a root."""
    endpoint = getattr(storage, "endpoint_url", None)
    return {"storage.root": storage.uri} | ({"storage.endpoint_url": endpoint} if endpoint else {})


def copied(storage: Storage, to: Storage, *without: str) -> Storage:
    """A root's files, but for those of some stages, which then must run."""
    left_out = tuple(f"artifacts/{stage}/" for stage in without)
    for entry in storage.list(""):
        if not entry.path.startswith(left_out):
            to.write(entry.path, storage.read(entry.path))
    return to


def at_work(program: str, variable: str, value: str) -> psutil.Process | None:
    """A process that has this in its command line and in its environment, found fast.

    KenLM's stands still from then on: a small text keeps it for a blink, and what stands still has to end like the rest.
    """
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, psutil.Error):
            if program.encode() in (place / "cmdline").read_bytes():
                process = psutil.Process(int(place.name))
                if process.environ().get(variable) == value:
                    if program == "lmplz":
                        process.suspend()
                    if background.is_alive(process):
                        return process
    return None


def is_final(run: dict[str, Any]) -> bool:
    return run["state"]["type"] in FINAL
