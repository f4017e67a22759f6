"""The services of one clone: the paths of their pid files, logs and state, their ports, and the environment of their processes."""

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contract.errors import InputError
from contract.own_folders import at_home, in_clone
from services import password, profiles
from services.prefect_api import Api

POOL = "cpu"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Clone:
    """Where one clone's services live: everything that may differ for another clone, a test or another user."""

    home: Path
    folder: Path
    server_home: Path
    """Where our server keeps its database: apart from the user's other projects, and where `make clean` does not remove it."""
    port: int | None
    reports_port: int | None
    external: str | None
    prefect_home: Path
    host: str = LOOPBACK

    @classmethod
    def from_environment(cls, port: int | None = None) -> "Clone":
        home = Path(os.environ.get("BESSEMER_HOME") or Path(__file__).parents[1]).resolve()
        ports = port if port is not None else port_of("BESSEMER_PORT"), port_of("BESSEMER_REPORTS_PORT")
        external = (os.environ.get("PREFECT_API_URL") or "").rstrip("/") or None
        given = os.environ.get("PREFECT_HOME")
        prefect_home = Path(os.path.expanduser(given)) if given else at_home(".prefect")  # noqa: PTH111 (Path's raises without a home)
        folders = in_clone(home, ".cache/services"), in_clone(home, ".prefect")
        return cls(home, *folders, *ports, external, prefect_home.resolve(), host_of("BESSEMER_HOST"))

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

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    def api_url(self, port: int) -> str:
        """Where our own processes reach the server: on loopback, unless it listens at one other address alone."""
        host = {"0.0.0.0": LOOPBACK, "::": "[::1]"}.get(self.host, f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{host}:{port}/api"

    def api(self, url: str) -> Api:
        """The server at this address, with the password if it is our own."""
        state = self.state()
        ours = state.get("api_url") == url and not state.get("external")
        return Api(url, password.read(self.password_file) if ours else None)

    def state(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def selected_profiles(self) -> dict[str, dict[str, Any]]:
        """What `profiles.restore` needs, by the profiles file in which `make up` selected ours."""
        state = self.state()
        earlier = {state["profiles_file"]: state["profile"]} if "profile" in state else {}  # written by a version that knew one home
        return earlier | state.get("selected_profiles", {})

    def remember(self, **facts: Any) -> None:
        password.private_folder(self.folder)
        temporary = self.folder / "state.json.part"
        temporary.write_text(json.dumps({**self.state(), **facts}, indent=1))
        temporary.replace(self.folder / "state.json")

    def child_environment(self, api_url: str) -> dict[str, str]:
        """For our server and worker, without the user's profiles: the active one may hold another database or a Cloud key."""
        ours = {} if self.external else self.own_settings(api_url)
        theirs = {name: value for name, value in os.environ.items() if self.external or name != "PREFECT_API_KEY"}  # that is for Cloud
        return {
            "PREFECT_WORKER_QUERY_SECONDS": "1",  # 10 by default: ten seconds of waiting before every run
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",  # 2 by default: the delay of a line in the terminal and the UI
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",  # `prefect deployment run --watch` then shows the run's lines too
            "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
            "PREFECT_SERVER_METRICS_ENABLED": "true",  # /api/metrics; not the clients': each would open a port on all addresses
            "PYTHONUNBUFFERED": "1",
            "DO_NOT_TRACK": "1",
            **theirs,
            "BESSEMER_HOME": str(self.home),
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_API_URL": api_url,
            **ours,
        }

    def own_settings(self, api_url: str) -> dict[str, str]:
        """For the clients of our own server."""
        return {
            "PREFECT_HOME": str(self.server_home),
            "PREFECT_PROFILES_PATH": str(self.own_profiles(api_url)),
            "PREFECT_PROFILE": profiles.NAME,
            "PREFECT_API_AUTH_STRING": password.draw(self.password_file),
        }

    def server_environment(self, api_url: str) -> dict[str, str]:
        """For the server itself. Only its own pages may ask it from a browser."""
        port = urlsplit(api_url).port
        hosts = dict.fromkeys([urlsplit(api_url).netloc, f"{LOOPBACK}:{port}", f"localhost:{port}"])
        relative = {} if self.host == LOOPBACK else {"PREFECT_UI_API_URL": "/api"}  # a browser elsewhere knows it by another name
        return {
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in hosts),
            **relative,
            **self.child_environment(api_url),
            "PREFECT_SERVER_API_AUTH_STRING": password.draw(self.password_file),
        }

    def own_profiles(self, api_url: str) -> Path:
        path = self.folder / "profiles.toml"
        profiles.save(path, {"active": profiles.NAME, "profiles": {profiles.NAME: {"PREFECT_API_URL": api_url}}})
        return path


def host_of(variable: str) -> str:
    """The address that a variable names, to listen on."""
    given = os.environ.get(variable) or LOOPBACK
    try:
        return str(ipaddress.ip_address(LOOPBACK if given == "localhost" else given.strip("[]")))
    except ValueError:
        raise InputError(f"{variable} is {given!r}, an IP address of this machine is expected, or 0.0.0.0 for all") from None


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
    password.private_folder(clone.folder)
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
