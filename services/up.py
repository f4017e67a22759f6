"""`make up`: starts server, worker and reports, selects the profile and deploys the flows. What runs already is reused."""

import contextlib
import errno
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from contract.errors import InputError, PipelineError
from services import background, password, profiles
from services.code_version import code_digest
from services.paths_and_ports import LOOPBACK, POOL, Clone, one_at_a_time, say, ui
from services.prefect_api import GPU_QUEUES, Api

SETTLE_S = 90  # a training step and its checkpoint; later flows are killed, and resume from the checkpoint before
START_S = 120  # a new database takes 8 s on two quiet cores


def up(port: int | None = None) -> str:
    """Start what does not run yet; returns the API address of the server."""
    clone = Clone.from_environment(port)
    with one_at_a_time(clone):
        refuse_mixture(clone)
        api = clone.api(external_server(clone)) if clone.external else Api(own_server(clone), password.draw(clone.password_file))
        if not clone.external:
            select_profile(clone, api.url)
        start_worker(clone, api)
        start_reports(clone, api)
        if not clone.external:
            resume_pools(api)
        clone.remember(api_url=api.url, external=clone.external is not None, prefect_home=str(clone.prefect_home))
        deploy(clone, api)
    return api.url


def resume_pools(api: Api) -> None:
    """Resume paused pools: a killed `make down`, or one of another clone with the same database, leaves them paused for ever."""
    for pool in api.pools():
        if pool["is_paused"]:
            api.pause(pool["name"], False)
            say("pool", f"{pool['name']} was paused, it goes on")


def refuse_mixture(clone: Clone) -> None:
    """Raise InputError if this clone's services already run with another server: it has one set, and must not use halves of two."""
    state = clone.state()
    if background.running(clone.server_pid) is None and background.running(clone.worker_pid) is None:
        return
    known = state.get("api_url")
    wanted = clone.external or (clone.api_url(clone.port) if clone.port else known)
    if known and wanted != known:
        raise InputError(f"the services of this clone use {known}, not {wanted}; stop them first: make down")


def external_server(clone: Clone) -> str:
    assert clone.external is not None
    if not Api(clone.external).is_healthy():
        raise InputError(f"PREFECT_API_URL is {clone.external}, where no Prefect server answers; start it, or unset PREFECT_API_URL")
    say("server", f"{clone.external} (PREFECT_API_URL)")
    return clone.external


def own_server(clone: Clone) -> str:
    process = background.running(clone.server_pid)
    if process is not None:
        url = clone.state().get("api_url") or clone.api_url(clone.port or 4200)
        wait_for_server(clone, process, Api(url))
        refuse_another_password(clone, url)
        say("server", f"runs at {ui(url)}")
        return url
    port = clone.port or 4200
    refuse_taken(clone.host, port, "BESSEMER_PORT")
    url = clone.api_url(port)
    start = time.monotonic()
    command = background.prefect("server", "start", "--host", clone.host, "--port", str(port))
    log = clone.folder / "server.log"
    password.private_folder(clone.folder)
    password.private_folder(clone.server_home)
    log.write_bytes(b"")
    process = background.start(command, clone.server_pid, log, clone.server_environment(url), clone.home)
    clone.remember(api_url=url, external=False, prefect_home=str(clone.prefect_home))
    wait_for_server(clone, process, Api(url))
    say("server", f"started at {ui(url)} in {time.monotonic() - start:.0f} s, log {log}")
    say("login", f"the UI asks for a password: the line in {clone.password_file}")
    return url


def refuse_another_password(clone: Clone, url: str) -> None:
    """Raise InputError if our server runs without a password, as an earlier version started it, or with another one than ours."""
    stranger, owner = Api(url, "nobody:nothing"), Api(url, password.draw(clone.password_file))
    if stranger.lets_us_in() or not owner.lets_us_in():
        raise InputError(f"the server at {ui(url)} was started without the password in {clone.password_file}: make down, then make up")


def refuse_taken(host: str, port: int, variable: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return
        except PermissionError:
            raise InputError(f"port {port} needs root; choose another one: {variable}=4201 make up") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(f"BESSEMER_HOST is {host}, which is no address of this machine; 0.0.0.0 is all of them") from None
    url = f"http://127.0.0.1:{port}/api"
    is_server = variable == "BESSEMER_PORT" and Api(url).is_healthy()
    use = f", or use the Prefect server that answers there: PREFECT_API_URL={url} make up" if is_server else ""
    raise InputError(f"port {port} on {host} is taken by {holder(port)}; choose another one: {variable}={port + 1} make up{use}")


def holder(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def wait_for_server(clone: Clone, process: psutil.Process, api: Api) -> None:
    deadline = time.monotonic() + START_S
    while not api.is_healthy():
        if not background.is_alive(process) or time.monotonic() > deadline:
            log = clone.folder / "server.log"
            background.stop(process, 5)
            raise PipelineError(f"the Prefect server did not start; the end of {log}:\n{background.last_lines(log)}")
        time.sleep(0.1)


def select_profile(clone: Clone, api_url: str) -> None:
    """In the Prefect home of this `make up`. An earlier one may have had another home: `make down` goes back in each."""
    path = profiles.profiles_file(clone.prefect_home)
    secret = password.draw(clone.password_file)
    if profiles.is_selected(path, api_url, secret):
        return
    selected = clone.selected_profiles()
    former = profiles.select(path, api_url, secret, selected.get(str(path)))
    clone.remember(selected_profiles=selected | {str(path): former})
    back = f"prefect profile use {former['active']}" if former["active"] else f"removing `active` from {path}"
    say("profile", f"{profiles.NAME} made and selected, so `prefect` talks to this server; back: make down, or {back}")


def start_worker(clone: Clone, api: Api) -> None:
    if background.running(clone.worker_pid) is not None:
        say("worker", f"runs, pool {POOL}")
        return
    variables = clone.child_environment(api.url)
    api.make_pool(POOL)
    log, since = clone.folder / "worker.log", time.time()
    log.write_bytes(b"")
    command = [sys.executable, str(worker_program()), "--pool", POOL, "--name", clone.worker_name, "--grace", str(SETTLE_S)]
    if not clone.external:
        command.append("--alone")
    process = background.start(command, clone.worker_pid, log, variables, clone.home)
    background.wait_until(lambda: not background.is_alive(process) or api.has_worker(POOL, clone.worker_name, since), START_S)
    if not background.is_alive(process):
        raise PipelineError(f"the worker did not start; the end of {log}:\n{background.last_lines(log)}")
    say("worker", f"started, pool {POOL}, log {log}")


def start_reports(clone: Clone, api: Api) -> None:
    """Start the small server of the reports. If its default port is taken, it takes any free one: reports must not stop anybody's work."""
    if background.running(clone.reports_pid) is not None:
        say("reports", f"at {clone.state()['reports_url']}")
        return
    port = clone.reports_port or (clone.port or 4200) % 65535 + 1
    try:
        refuse_taken(LOOPBACK, port, "BESSEMER_REPORTS_PORT")
    except InputError:
        if clone.reports_port:
            raise
        with socket.socket() as any_free:
            any_free.bind(("127.0.0.1", 0))
            port = any_free.getsockname()[1]
    log, url = clone.folder / "reports.log", f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "services.report_server", str(port)]
    log.write_bytes(b"")
    process = background.start(command, clone.reports_pid, log, clone.child_environment(api.url), clone.home)
    if not background.wait_until(lambda: not background.is_alive(process) or answers(port), START_S) or not background.is_alive(process):
        background.stop(process, 5)
        raise PipelineError(f"the reports are not served; the end of {log}:\n{background.last_lines(log)}")
    clone.remember(reports_url=url)
    say("reports", f"at {url}, log {log}")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def worker_program() -> Path:
    return Path(__file__).parents[1] / "deployments" / "worker.py"


def deploy(clone: Clone, api: Api) -> None:
    """Deploy the flows, unless the deployments carry the digest of this code. The server stores the parameters' schema with them."""
    wanted = yaml.safe_load((clone.home / "prefect.yaml").read_text())["deployments"]
    digest = code_digest(clone.home)
    names = {each["name"] for each in wanted}
    known = api.call("POST", "/deployments/filter", {"deployments": {"name": {"any_": sorted(names)}}}) or []
    there = {(each["entrypoint"], each["name"]) for each in known if each["version"] == digest}
    if there >= {(each["entrypoint"], each["name"]) for each in wanted}:
        say("flows", "deployed already")
        return
    for pool in {each["work_pool"]["name"] for each in wanted if "work_queue_name" in each["work_pool"]}:
        api.make_pool(pool, GPU_QUEUES)  # nothing takes runs there until a GPU machine comes
    variables = {**clone.child_environment(api.url), "BESSEMER_VERSION": digest}
    del variables["BESSEMER_HOME"]  # `pull` keeps the placeholder, so that each worker takes its own clone
    quietly(background.prefect("--no-prompt", "deploy", "--all"), variables, clone.home, "prefect.yaml could not be deployed")
    say("flows", "deployed: " + " ".join(f"{each['entrypoint'].rpartition(':')[2]}/{each['name']}" for each in wanted))


def quietly(command: list[str], variables: dict[str, str], cwd: Path, sentence: str) -> None:
    done = subprocess.run(command, env=variables, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        output = "\n".join("  " + line for line in (done.stdout + done.stderr).splitlines()[-15:])
        raise PipelineError(f"{sentence}; `{' '.join(command[1:])}` ended with {done.returncode}:\n{output}")
