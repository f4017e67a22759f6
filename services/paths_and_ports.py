"""The services of one clone: the paths of their pid files, logs and state, their ports, and the environment of their processes."""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import InputError
from services import profiles

POOL = "cpu"


@dataclass(frozen=True)
class Clone:
    """Where one clone's services live: everything that may differ for another clone, a test or another user."""

    home: Path
    folder: Path
    port: int | None
    reports_port: int | None
    external: str | None
    prefect_home: Path

    @classmethod
    def from_environment(cls, port: int | None = None) -> "Clone":
        home = Path(os.environ.get("BESSEMER_HOME") or Path(__file__).parents[1]).resolve()
        ports = port if port is not None else port_of("BESSEMER_PORT"), port_of("BESSEMER_REPORTS_PORT")
        external = (os.environ.get("PREFECT_API_URL") or "").rstrip("/") or None
        prefect_home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser().resolve()
        return cls(home, home / ".cache" / "services", *ports, external, prefect_home)

    @property
    def worker_name(self) -> str:
        """It names the machine and the clone, so that a restarted worker knows its own runs among those of others."""
        return f"{POOL}-{socket.gethostname()}-{hashlib.sha256(str(self.home).encode()).hexdigest()[:6]}"

    @property
    def server_pid(self) -> Path:
        return self.folder / "server.pid"

    @property
    def worker_pid(self) -> Path:
        return self.folder / "worker.pid"

    @property
    def reports_pid(self) -> Path:
        return self.folder / "reports.pid"

    def state(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def remember(self, **facts: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "state.json.part"
        temporary.write_text(json.dumps({**self.state(), **facts}, indent=1))
        temporary.replace(self.folder / "state.json")

    def child_environment(self, api_url: str) -> dict[str, str]:
        """For our server and worker, without the user's profiles: the active one may hold another database or a Cloud key."""
        ours = {} if self.external else {"PREFECT_PROFILES_PATH": str(self.own_profiles(api_url)), "PREFECT_PROFILE": profiles.NAME}
        return {
            "PREFECT_WORKER_QUERY_SECONDS": "1",  # 10 by default: ten seconds of waiting before every run
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",  # 2 by default: the delay of a line in the terminal and the UI
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",  # `prefect deployment run --watch` then shows the run's lines too
            "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
            "PYTHONUNBUFFERED": "1",
            "DO_NOT_TRACK": "1",
            **os.environ,
            "BESSEMER_HOME": str(self.home),
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_API_URL": api_url,
            **ours,
        }

    def own_profiles(self, api_url: str) -> Path:
        path = self.folder / "profiles.toml"
        profiles.save(path, {"active": profiles.NAME, "profiles": {profiles.NAME: {"PREFECT_API_URL": api_url}}})
        return path


def port_of(variable: str) -> int | None:
    """The port that a variable names."""
    given = os.environ.get(variable)
    if not given:
        return None
    if not given.isdecimal() or not 0 < int(given) < 65536:
        raise InputError(f"{variable} is {given!r}, a port from 1 to 65535 is expected")
    return int(given)


@contextlib.contextmanager
def one_at_a_time(clone: Clone) -> Iterator[None]:
    clone.folder.mkdir(parents=True, exist_ok=True)
    with open(clone.folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting", "another make up or make down of this clone is at work")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ui(api_url: str) -> str:
    return api_url.removesuffix("/api")


def say(what: str, fact: str) -> None:
    print(f"{what:<8}{fact}", flush=True)
