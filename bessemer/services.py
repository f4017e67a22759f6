"""Server, worker and reports in the background, on loopback: what `make up`, `make down` and `make status` call.

    python -m bessemer.services up | down | status

Pid files and logs lie in .cache/services/ of the clone. The server's port is BESSEMER_PORT (4200), that of the reports
BESSEMER_REPORTS_PORT (the next one). Where PREFECT_API_URL is set, that server (or Prefect Cloud) is used and none is started.
Settings that the user has made in the environment win over ours.

`up` reuses what runs. `down` lets active runs say where they stopped (AwaitingRetry), so that the next `up` goes on with them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from bessemer import processes, profiles
from bessemer.api import GPU_QUEUES, LIVE, Api
from bessemer.environment import prepare_environment
from contract.errors import InputError, PipelineError, exit_code_of, said

POOL = "cpu"
SETTLE_S = 90  # a training step and its checkpoint; after that flows are killed, and resume from the checkpoint before
START_S = 120  # a new database takes 8 s on two quiet cores


@dataclass(frozen=True)
class Place:
    """One clone's services. Everything that another clone, a test or another user may choose differently."""

    home: Path
    folder: Path
    port: int | None
    reports_port: int | None
    external: str | None
    prefect_home: Path

    @classmethod
    def from_environment(cls, port: int | None = None) -> "Place":
        home = Path(os.environ.get("BESSEMER_HOME") or Path(__file__).parents[1]).resolve()
        ports = port if port is not None else port_of("BESSEMER_PORT"), port_of("BESSEMER_REPORTS_PORT")
        external = (os.environ.get("PREFECT_API_URL") or "").rstrip("/") or None
        prefect_home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser().resolve()
        return cls(home, home / ".cache" / "services", *ports, external, prefect_home)

    @property
    def worker_name(self) -> str:
        """Names the machine and the clone, so that a restart knows its own runs among those of other workers."""
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
        """Our own server and worker do not see the user's profiles: the one selected there may hold another database or a Cloud key."""
        ours = {} if self.external else {"PREFECT_PROFILES_PATH": str(self.own_profiles(api_url)), "PREFECT_PROFILE": profiles.NAME}
        return {
            "PREFECT_WORKER_QUERY_SECONDS": "1",  # 10 by default: ten seconds of waiting before every run
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",  # 2 by default: how old a line is when the terminal and the UI get it
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


# ---------------------------------------------------------------- up


def up(port: int | None = None) -> str:
    """Server, worker, reports, profile and deployments; returns the server's API address. What runs already is reused."""
    place = Place.from_environment(port)
    with one_at_a_time(place):
        refuse_mixture(place)
        api = Api(external_server(place) if place.external else own_server(place))
        if not place.external:
            select_profile(place, api.url)
        start_worker(place, api)
        start_reports(place, api)
        if not place.external:
            resume_pools(api)
        place.remember(api_url=api.url, external=place.external is not None, prefect_home=str(place.prefect_home))
        deploy(place, api)
    return api.url


def resume_pools(api: Api) -> None:
    """A `make down` that was killed, or another clone's over the same database, leaves pools paused: no run would ever start."""
    for pool in api.pools():
        if pool["is_paused"]:
            api.pause(pool["name"], False)
            say("pool", f"{pool['name']} was paused, it goes on")


def refuse_mixture(place: Place) -> None:
    """This clone has one set of services: asked for another one while the first runs, it says so instead of half-using both."""
    state = place.state()
    if processes.running(place.server_pid) is None and processes.running(place.worker_pid) is None:
        return
    known = state.get("api_url")
    wanted = place.external or (f"http://127.0.0.1:{place.port}/api" if place.port else known)
    if known and wanted != known:
        raise InputError(f"the services of this clone use {known}, not {wanted}; stop them first: make down")


def external_server(place: Place) -> str:
    assert place.external is not None
    if not Api(place.external).is_healthy():
        raise InputError(f"PREFECT_API_URL is {place.external}, where no Prefect server answers; start it, or unset PREFECT_API_URL")
    say("server", f"{place.external} (PREFECT_API_URL)")
    return place.external


def own_server(place: Place) -> str:
    process = processes.running(place.server_pid)
    if process is not None:
        url = place.state().get("api_url") or f"http://127.0.0.1:{place.port or 4200}/api"
        wait_for_server(place, process, Api(url))
        say("server", f"runs at {ui(url)}")
        return url
    port = place.port or 4200
    refuse_taken(port, "BESSEMER_PORT")
    url = f"http://127.0.0.1:{port}/api"
    start = time.monotonic()
    command = processes.prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    log = place.folder / "server.log"
    place.folder.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    process = processes.start(command, place.server_pid, log, place.child_environment(url), place.home)
    place.remember(api_url=url, external=False, prefect_home=str(place.prefect_home))
    wait_for_server(place, process, Api(url))
    say("server", f"started at {ui(url)} in {time.monotonic() - start:.0f} s, log {log}")
    return url


def refuse_taken(port: int, variable: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return
        except PermissionError:
            raise InputError(f"port {port} needs root; choose another one: {variable}=4201 make up") from None
        except OSError:
            pass
    url = f"http://127.0.0.1:{port}/api"
    is_server = variable == "BESSEMER_PORT" and Api(url).is_healthy()
    use = f", or use the Prefect server that answers there: PREFECT_API_URL={url} make up" if is_server else ""
    raise InputError(f"port {port} on 127.0.0.1 is taken by {holder(port)}; choose another one: {variable}={port + 1} make up{use}")


def holder(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def wait_for_server(place: Place, process: psutil.Process, api: Api) -> None:
    deadline = time.monotonic() + START_S
    while not api.is_healthy():
        if not processes.is_alive(process) or time.monotonic() > deadline:
            log = place.folder / "server.log"
            processes.stop(process, 5)
            raise PipelineError(f"the Prefect server did not start; the end of {log}:\n{processes.last_lines(log)}")
        time.sleep(0.1)


def select_profile(place: Place, api_url: str) -> None:
    path = profiles.profiles_file(place.prefect_home)
    active, server = profiles.selected(path)
    if (active, server) == (profiles.NAME, api_url):
        return
    former = profiles.select(path, api_url, place.state().get("profile"))
    place.remember(profile=former, profiles_file=str(path))
    back = f"prefect profile use {former['active']}" if former["active"] else f"removing `active` from {path}"
    say("profile", f"{profiles.NAME} made and selected, so `prefect` talks to this server; back: make down, or {back}")


def start_worker(place: Place, api: Api) -> None:
    if processes.running(place.worker_pid) is not None:
        say("worker", f"runs, pool {POOL}")
        return
    variables = place.child_environment(api.url)
    api.make_pool(POOL)
    log, since = place.folder / "worker.log", time.time()
    log.write_bytes(b"")
    command = [sys.executable, str(wrapper()), "--pool", POOL, "--name", place.worker_name, "--grace", str(SETTLE_S)]
    if not place.external:
        command.append("--alone")
    process = processes.start(command, place.worker_pid, log, variables, place.home)
    processes.wait_until(lambda: not processes.is_alive(process) or api.has_worker(POOL, place.worker_name, since), START_S)
    if not processes.is_alive(process):
        raise PipelineError(f"the worker did not start; the end of {log}:\n{processes.last_lines(log)}")
    say("worker", f"started, pool {POOL}, log {log}")


def start_reports(place: Place, api: Api) -> None:
    """The reports' own small server. A port that nobody asked for moves when it is taken: it must not keep anybody from working."""
    if processes.running(place.reports_pid) is not None:
        say("reports", f"at {place.state()['reports_url']}")
        return
    port = place.reports_port or (place.port or 4200) % 65535 + 1
    try:
        refuse_taken(port, "BESSEMER_REPORTS_PORT")
    except InputError:
        if place.reports_port:
            raise
        with socket.socket() as any_free:
            any_free.bind(("127.0.0.1", 0))
            port = any_free.getsockname()[1]
    log, url = place.folder / "reports.log", f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bessemer.reports", str(port)]
    log.write_bytes(b"")
    process = processes.start(command, place.reports_pid, log, place.child_environment(api.url), place.home)
    if not processes.wait_until(lambda: not processes.is_alive(process) or answers(port), START_S) or not processes.is_alive(process):
        processes.stop(process, 5)
        raise PipelineError(f"the reports are not served; the end of {log}:\n{processes.last_lines(log)}")
    place.remember(reports_url=url)
    say("reports", f"at {url}, log {log}")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wrapper() -> Path:
    return Path(__file__).parents[1] / "deployments" / "worker.py"


def deploy(place: Place, api: Api) -> None:
    """The parameters' schema is stored at deploy time, so deployments carry the digest of the code that they were made from."""
    wanted = yaml.safe_load((place.home / "prefect.yaml").read_text())["deployments"]
    digest = code_digest(place.home)
    names = {each["name"] for each in wanted}
    known = api.call("POST", "/deployments/filter", {"deployments": {"name": {"any_": sorted(names)}}}) or []
    there = {(each["entrypoint"], each["name"]) for each in known if each["version"] == digest}
    if there >= {(each["entrypoint"], each["name"]) for each in wanted}:
        say("flows", "deployed already")
        return
    for pool in {each["work_pool"]["name"] for each in wanted if "work_queue_name" in each["work_pool"]}:
        api.make_pool(pool, GPU_QUEUES)  # nothing takes runs there until a GPU machine comes
    variables = {**place.child_environment(api.url), "BESSEMER_VERSION": digest}
    del variables["BESSEMER_HOME"]  # `pull` keeps the placeholder, so that each worker takes its own clone
    quietly(processes.prefect("--no-prompt", "deploy", "--all"), variables, place.home, "prefect.yaml could not be deployed")
    say("flows", "deployed: " + " ".join(f"{each['entrypoint'].rpartition(':')[2]}/{each['name']}" for each in wanted))


def code_digest(home: Path) -> str:
    """Over what the deployments are made from: prefect.yaml, presets, and the code, since any of it may hold a parameter's type."""
    digest = hashlib.sha256()
    files = {home / "prefect.yaml", *home.glob("deployments/presets/*.yaml"), *home.glob("*/*.py")}
    for path in sorted(path for path in files if path.parent.name not in ("tests", "benchmarks")):
        digest.update(f"{path.relative_to(home)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def quietly(command: list[str], variables: dict[str, str], cwd: Path, sentence: str) -> None:
    done = subprocess.run(command, env=variables, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = "\n".join("  " + line for line in (done.stdout + done.stderr).splitlines()[-15:])
        raise PipelineError(f"{sentence}; `{' '.join(command[1:])}` ended with {done.returncode}:\n{said}")


# ---------------------------------------------------------------- down


def down() -> None:
    """Pause, let the flows say where they stopped, then worker, server and the former profile. In this order: the worker would
    kill its flows without a word, and a flow cannot report to a server that is gone."""
    place = Place.from_environment()
    with one_at_a_time(place):
        state = place.state()
        api = Api(state["api_url"]) if state.get("api_url") else None
        alone = api is not None and not state.get("external") and api.is_healthy()
        with paused(api) if api and alone else contextlib.nullcontext():
            stop_worker(place, api if alone or (api and api.is_healthy()) else None, bool(alone))
        if (reports := processes.running(place.reports_pid)) is not None:
            processes.stop(reports, 5)
        server = processes.running(place.server_pid)
        if server is not None:
            processes.stop(server, 15)
            say("server", "stopped")
        if "profile" in state:
            active = profiles.restore(Path(state["profiles_file"]), state["profile"])
            say("profile", f"{active or 'Prefect’s default'} is selected again")
        forget(place)
        if server is None and not state:
            say("server", "nothing runs")


@contextlib.contextmanager
def paused(api: Api) -> Iterator[None]:
    """No worker takes up again what is asked to stop."""
    pools = [pool["name"] for pool in api.pools() if not pool["is_paused"]]
    for pool in pools:
        api.pause(pool, True)
    try:
        yield
    finally:
        for pool in pools:
            api.pause(pool, False)


def stop_worker(place: Place, api: Api | None, alone: bool) -> None:
    worker = processes.running(place.worker_pid)
    flows = len(processes.flow_processes(place.worker_name))
    if worker is not None:
        if flows:
            say("runs", f"{flows} active: stopping, at most {SETTLE_S} s")
        processes.stop(worker, SETTLE_S + 30)
        say("worker", "stopped")
    processes.settle(place.worker_name, grace_s=15)  # of a worker that was killed before
    if api is not None:
        for name in api.reconcile(place.worker_name, alive=set(), alone=alone):
            say("runs", f"{name} is Crashed: its process did not say where it stopped; Retry continues it")


def forget(place: Place) -> None:
    for path in (place.server_pid, place.worker_pid, place.reports_pid, place.folder / "state.json"):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- asking


@dataclass(frozen=True)
class Status:
    api_url: str | None
    server_is_up: bool
    worker_is_up: bool
    active_runs: int

    @property
    def ui_url(self) -> str | None:
        return ui(self.api_url) if self.api_url else None


def services_status() -> Status:
    place = Place.from_environment()
    url = place.external or place.state().get("api_url")
    if url is None or not (api := Api(url)).is_healthy():
        return Status(url, False, False, 0)
    return Status(url, True, worker_is_up(api_url=url), len(api.runs(LIVE)))


def running_api() -> Api:
    """The server of this clone, or the one that PREFECT_API_URL names; PipelineError when none answers."""
    place = Place.from_environment()
    url = place.external or place.state().get("api_url")
    if url is None or not (api := Api(url)).is_healthy():
        raise PipelineError("no Prefect server of this clone runs; start it: make up")
    return api


def worker_is_up(pool: str = POOL, api_url: str | None = None) -> bool:
    """Whether a run in this pool would be taken. A worker of ours is judged by its process, others by their last heartbeat."""
    place = Place.from_environment()
    url = api_url or place.external or place.state().get("api_url")
    if url is None:
        return False
    try:
        workers = Api(url).workers(pool)
    except PipelineError:
        return False
    ours = processes.running(place.worker_pid) is not None
    return any(ours if worker["name"] == place.worker_name else True for worker in workers)


# ---------------------------------------------------------------- small parts


@contextlib.contextmanager
def one_at_a_time(place: Place) -> Iterator[None]:
    place.folder.mkdir(parents=True, exist_ok=True)
    with open(place.folder / "lock", "w") as lock:
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


def print_status() -> None:
    status = services_status()
    say("server", f"up at {status.ui_url}" if status.server_is_up else "down; start it: make up")
    if status.server_is_up:
        say("worker", f"up, pool {POOL}" if status.worker_is_up else f"down, so runs in pool {POOL} wait; start it: make up")
        say("runs", f"{status.active_runs} active")
    place = Place.from_environment()
    if processes.running(place.reports_pid) is not None:
        say("reports", f"at {place.state()['reports_url']}")


def main(arguments: list[str]) -> int:
    prepare_environment()
    verb, *rest = arguments or [""]
    try:
        verbs: dict[str, Callable[[], object]] = {"up": up, "down": down, "status": print_status}
        if verb not in verbs or rest:
            raise InputError("usage: python -m bessemer.services up | down | status")
        verbs[verb]()
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(said(error), file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
