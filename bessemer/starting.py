"""`make up`: server, worker, reports, profile and deployments, each only where it does not run yet."""

import contextlib
import hashlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from bessemer import processes, profiles
from bessemer.api import GPU_QUEUES, Api
from bessemer.place import POOL, Place, one_at_a_time, say, ui
from contract.errors import InputError, PipelineError

SETTLE_S = 90  # a training step and its checkpoint; after that flows are killed, and resume from the checkpoint before
START_S = 120  # a new database takes 8 s on two quiet cores


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
