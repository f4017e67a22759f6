"""Server, worker and profile, started and ended for real on a free port, with a Prefect home and a project of the test's own."""

import contextlib
import json
import logging
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets import Subprotocol
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect as websocket

from contract.errors import InputError
from services import background, password, profiles
from services import paths_and_ports as services_of
from services.down import restore_profiles
from services.prefect_api import GONE, Api

ROOT = Path(__file__).parents[2]

FLOW = """
import logging
import os
import time
from dataclasses import replace
from enum import Enum

from prefect import flow


class Preset(str, Enum):
    smoke = "smoke"


@flow
def toy(preset: Preset = Preset.smoke, seconds: float = 0, fail: bool = False, root: str = ""):
    logging.getLogger("bessemer").setLevel(logging.INFO)
    logging.getLogger("bessemer.toy").info("a line of the run")
    time.sleep(seconds)
    if fail:
        raise ValueError("told to fail")
    if root:
        stages_that_warn(root)


def stages_that_warn(root: str):
    from store.root import open_root
    from engine.parts import stop_ray
    from engine.prefect_runner import PrefectJournal, PrefectRunner
    from tests.engine import toy

    os.environ["TOY_SAY"] = "part-00003.parquet"
    run = PrefectRunner(replace(toy.engine(open_root(root), workers=2), journal=PrefectJournal()))
    run(toy.squares, numbers=run(toy.numbers))
    stop_ray()
    run(toy.ranks)
"""
PREFECT_YAML = """
name: toy
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ $BESSEMER_HOME }}"
deployments:
  - name: full
    entrypoint: flows/toy.py:toy
    version: "{{ $BESSEMER_VERSION }}"
    tags: [bessemer]
    work_pool:
      name: cpu
"""
FOREIGN = {"Origin": "https://example.invalid", "Content-Type": "text/plain"}
"""What a browser sends for a page of another site, without asking the server first."""
FORMER = """active = "mine"

[profiles.mine]
PREFECT_API_URL = "http://example.invalid/api"
PREFECT_API_KEY = "k"
"""

SECOND = """active = "other"

[profiles.other]
PREFECT_API_URL = "http://example.invalid/other"
"""


class Clone:
    """A project folder and a Prefect home of its own, and the commands that a person gives in it."""

    def __init__(self, folder: Path) -> None:
        self.home, self.prefect_home, self.port = folder / "clone", folder / "prefect", free_port()
        self.second_home = folder / "second-prefect"
        (self.home / "flows").mkdir(parents=True)
        (self.home / "flows" / "toy.py").write_text(FLOW)
        (self.home / "prefect.yaml").write_text(PREFECT_YAML)
        self.prefect_home.mkdir()
        (self.prefect_home / "profiles.toml").write_text(FORMER)
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.variables |= {"BESSEMER_HOME": str(self.home), "PREFECT_HOME": str(self.prefect_home), "BESSEMER_PORT": str(self.port)}
        self.variables |= {"PYTHONPATH": str(ROOT)}

    def call(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        everything = {**self.variables, **variables}
        return subprocess.run(
            [sys.executable, "-m", *command], env=everything, cwd="/", capture_output=True, text=True, timeout=180, umask=0
        )

    def popen(self, *command: str) -> "subprocess.Popen[str]":
        command = (sys.executable, "-m", *command)
        return subprocess.Popen(command, env=self.variables, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def flows(self) -> list[psutil.Process]:
        return [process for process in self.processes() if "PREFECT__FLOW_RUN_ID" in process.environ()]

    def up(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.call("services", "up", **variables)

    @property
    def password_file(self) -> Path:
        return self.home / ".cache" / "services" / "password"

    @property
    def api(self) -> Api:
        """With the password, once `make up` has drawn one."""
        return Api(f"http://127.0.0.1:{self.port}/api", self.password_file.read_text().strip() if self.password_file.exists() else None)

    def pids(self) -> list[str]:
        return [(self.home / ".cache" / "services" / name).read_text() for name in ("server.pid", "worker.pid", "reports.pid")]

    def profiles(self) -> dict[str, object]:
        return tomllib.loads((self.prefect_home / "profiles.toml").read_text())

    def processes(self) -> list[psutil.Process]:
        """All that carry this clone's name in their environment, whoever started them."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("BESSEMER_HOME") == str(self.home) and background.is_alive(process):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def start_run(self, seconds: float) -> str:
        """A run whose process is at work; its id."""
        deployment = self.api.call("GET", "/deployments/name/toy/full")["id"]
        body = {"parameters": {"seconds": seconds}, "state": {"type": "SCHEDULED"}}
        run: str = self.api.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]
        assert background.wait_until(lambda: self.state(run) == "RUNNING", 60), self.state(run)
        return run

    def state(self, run: str) -> str:
        return str(self.api.call("GET", f"/flow_runs/{run}")["state"]["type"])


def plant(client: httpx.Client, path: Path) -> int:
    """Make a deployment with a shell command as its pull step, and a run of it; the status of the last answer."""

    def post(where: str, body: dict[str, Any]) -> httpx.Response:
        return client.post(where, content=json.dumps(body), headers={"Content-Type": "application/json"} if client.auth else {})

    flow = post("/flows/", {"name": "planted"}).json().get("id", str(uuid.uuid4()))
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {path}"}}
    planted = {"name": "planted", "flow_id": flow, "work_pool_name": "cpu", "entrypoint": "x.py:x", "pull_steps": [step]}
    deployment = post("/deployments/", planted).json().get("id", str(uuid.uuid4()))
    return post(f"/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}}).status_code


@contextlib.contextmanager
def open_to_all_up_to(folder: Path) -> Iterator[None]:
    """Let other users enter the folders above: pytest's own are closed, and would hide what the project's leave open."""
    above = {each: each.stat().st_mode for each in folder.parents if each.stat().st_mode & 0o001 == 0}
    for each in above:
        each.chmod(0o755)
    try:
        yield
    finally:
        for each, mode in above.items():
            each.chmod(mode)


def command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error, OSError):
        return process.cmdline()
    return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    made = Clone(tmp_path_factory.mktemp("services"))
    started = made.up()
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        made.call("services", "down")
        for process in made.processes():
            process.kill()


@pytest.mark.e2e
class TestServices:
    """In the order of a day: each test goes on from where the one before left the services."""

    def test_up_selects_a_profile_beside_those_that_are_there(self, clone: Clone) -> None:
        assert clone.api.is_healthy()
        known = clone.profiles()
        assert known["active"] == "bessemer"
        assert known["profiles"]["mine"]["PREFECT_API_KEY"] == "k"  # type: ignore[index]
        assert known["profiles"]["bessemer"]["PREFECT_API_URL"] == clone.api.url  # type: ignore[index]
        listed = clone.call("prefect", "deployment", "ls")
        assert listed.returncode == 0 and "toy/full" in listed.stdout, listed.stderr

    def test_a_second_up_reuses_what_runs(self, clone: Clone) -> None:
        before, start = clone.pids(), time.monotonic()
        again = clone.up()
        assert again.returncode == 0, again.stderr
        assert clone.pids() == before
        assert "deployed already" in again.stdout
        assert time.monotonic() - start < 10

    def test_a_second_up_with_another_prefect_home_selects_the_profile_there_too(self, clone: Clone) -> None:
        """What becomes of both is seen after `make down`."""
        clone.second_home.mkdir()
        (clone.second_home / "profiles.toml").write_text(SECOND)
        again = clone.up(PREFECT_HOME=str(clone.second_home))
        assert again.returncode == 0, again.stderr
        assert tomllib.loads((clone.second_home / "profiles.toml").read_text())["active"] == "bessemer"
        assert clone.profiles()["active"] == "bessemer"
        listed = clone.call("prefect", "deployment", "ls", PREFECT_HOME=str(clone.second_home))
        assert listed.returncode == 0 and "toy/full" in listed.stdout, listed.stderr

    @pytest.mark.parametrize("which", [0, 2])
    def test_server_and_reports_listen_on_loopback_only(self, clone: Clone, which: int) -> None:
        server = psutil.Process(int(clone.pids()[which].split()[0]))
        listening = [each.laddr.ip for each in server.net_connections() if each.status == psutil.CONN_LISTEN]
        assert listening and set(listening) == {"127.0.0.1"}

    def test_another_user_of_this_machine_reads_neither_password_nor_history(self, clone: Clone) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can act as another user")
        secret = clone.password_file.read_text().strip()
        kept = [clone.password_file, clone.prefect_home / "profiles.toml", clone.home / ".prefect" / "prefect.db"]
        kept += [clone.home / ".cache" / "services" / name for name in ("state.json", "profiles.toml", "server.log", "worker.log")]
        assert all(path.exists() for path in kept)
        look = "import sys\nfor path in sys.argv[1:]: print(open(path, 'rb').read())"
        with open_to_all_up_to(clone.home):
            for path in [clone.home / "prefect.yaml", *kept]:
                done = subprocess.run(["/usr/bin/python3", "-c", look, path], user=65534, group=65534, extra_groups=[], capture_output=True)
                if path.name == "prefect.yaml":
                    assert done.returncode == 0, "the folders above the clone hide all of it: this test shows nothing"
                else:
                    assert b"PermissionError" in done.stderr and not done.stdout, path
        word = secret.partition(":")[2]
        assert not [line for process in psutil.process_iter() for line in command_line(process) if word in line]
        assert not [path for path in (clone.home / ".cache" / "services").glob("*.log") if word in path.read_text()]

    def test_the_server_answers_nobody_without_the_password(self, clone: Clone) -> None:
        """Every call that its own description names, as a page of another site sends it without asking first."""
        paths = clone.api.call("GET", "/openapi.json")["paths"]
        calls = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        assert len(calls) > 150 and ("POST", "/deployments/") in calls
        with httpx.Client(base_url=clone.api.url, trust_env=False, headers=FOREIGN) as client:
            answered = [call for call in calls if client.request(*call, content=b"{}").status_code != 401]
            assert {path for _, path in answered} <= {"/health", "/ready"}
            for wrong in ("Basic", "Basic Ojo=", f"Bearer {clone.password_file.read_text().strip()}"):
                assert client.post("/flows/filter", json={}, headers={"Authorization": wrong}).status_code == 401

    def test_the_servers_own_metrics_are_for_a_scraper_with_the_password(self, clone: Clone) -> None:
        """As Prometheus asks: user and password apart (basic_auth), the password as a file holds it that `cut` made."""
        command = f"cut -d: -f2- {clone.password_file}"
        secret = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.strip()
        with httpx.Client(base_url=clone.api.url, trust_env=False) as client:
            assert [client.get("/metrics").status_code, client.get("/metrics", auth=("bessemer", "guessed")).status_code] == [401, 401]
            answer = client.get("/metrics", auth=("bessemer", secret))
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
        families = {family.name for family in text_string_to_metric_families(answer.text)}
        assert "process_resident_memory_bytes" in families, families

    @pytest.mark.parametrize(
        "path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled", "work_pools/cpu/workers/connect"]
    )
    def test_nor_does_a_websocket(self, clone: Clone, path: str) -> None:
        url = f"ws://127.0.0.1:{clone.port}/api/{path}"
        with pytest.raises(WebSocketException), websocket(url, proxy=None) as plain:
            plain.recv(timeout=10)
        with websocket(url, subprotocols=[Subprotocol("prefect")], proxy=None) as socket:
            socket.send('{"type": "auth", "token": "bessemer:guessed"}')
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=10)

    def test_a_web_page_cannot_run_a_shell_and_the_owner_can(self, clone: Clone, tmp_path: Path) -> None:
        """The same calls, by a page and by a client that has the password. The second proves that the first would have worked."""
        page, owner = tmp_path / "page", tmp_path / "owner"
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        with httpx.Client(base_url=clone.api.url, trust_env=False, headers=FOREIGN) as client:
            assert plant(client, page) == 401
            asked = client.options("/deployments/", headers=preflight)
            assert asked.status_code == 400 and "access-control-allow-origin" not in asked.headers
        user, _, secret = clone.password_file.read_text().strip().partition(":")
        with httpx.Client(base_url=clone.api.url, trust_env=False, auth=(user, secret)) as client:
            assert plant(client, owner) == 201
            ours = client.options("/deployments/", headers=preflight | {"Origin": f"http://localhost:{clone.port}"})
            assert ours.headers["access-control-allow-origin"] == f"http://localhost:{clone.port}"
        assert background.wait_until(owner.exists, 60)
        assert not page.exists()

    def test_a_run_goes_through_the_worker_and_its_lines_are_shown(self, clone: Clone) -> None:
        run = clone.call("services.watch", "toy/full", "preset=smoke")
        assert run.returncode == 0, run.stdout + run.stderr
        assert "a line of the run" in run.stdout.splitlines()
        assert run.stdout.splitlines()[-1] == f"UI      http://127.0.0.1:{clone.port}"

    def test_a_run_that_is_killed_is_watched_over_its_crash_to_its_end(self, clone: Clone) -> None:
        """Its worker takes it up again 45 s later; `--watch` of Prefect ends at the crash."""
        watch = clone.popen("services.watch", "toy/full", "seconds=6")
        assert background.wait_until(lambda: bool(clone.flows()), 60)
        clone.flows()[0].kill()
        said, _ = watch.communicate(timeout=180)
        assert watch.returncode == 0, said
        assert said.count("it crashed, and is taken up again from its last checkpoint") == 1
        assert "a line of the run" in said.splitlines() and "the run ended Completed" in said

    def test_a_paused_pool_is_said_and_the_next_up_lets_it_go_on(self, clone: Clone) -> None:
        clone.api.pause("cpu", True)
        refused = clone.call("services.watch", "toy/full")
        assert refused.returncode == 1 and "is paused, no run of it starts" in refused.stderr
        assert "cpu was paused, it goes on" in clone.up().stdout
        assert not clone.api.is_paused("cpu")

    def test_what_workers_of_ray_and_ranks_warn_of_stands_in_the_runs_log(self, clone: Clone, tmp_path: Path) -> None:
        done = clone.call("services.watch", "toy/full", f"root={(tmp_path / 'root').as_uri()}")
        assert done.returncode == 0, done.stdout + done.stderr
        run = clone.api.call("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
        warnings = {"logs": {"flow_run_id": {"any_": [run]}, "level": {"ge_": logging.WARNING}}}
        said = {line["message"] for line in clone.api.call("POST", "/logs/filter", warnings)}
        assert said >= {"squares: a worker says: half of this is guessed", "ranks: mind this"}

    def test_a_failed_run_gives_its_reason_and_a_bad_status(self, clone: Clone) -> None:
        run = clone.call("services.watch", "toy/full", "fail=true")
        assert run.returncode == 1
        assert "ValueError: told to fail" in run.stdout

    def test_another_clone_refuses_the_taken_port_and_changes_nothing(self, clone: Clone, tmp_path: Path) -> None:
        other = Clone(tmp_path)
        refused = other.up(BESSEMER_PORT=str(clone.port))
        assert refused.returncode == 2
        assert (
            f"port {clone.port} on 127.0.0.1 is taken by" in refused.stderr and f"BESSEMER_PORT={clone.port + 1} make up" in refused.stderr
        )
        assert (other.prefect_home / "profiles.toml").read_text() == FORMER

    def test_this_clone_refuses_a_second_port(self, clone: Clone) -> None:
        refused = clone.up(BESSEMER_PORT=str(free_port()))
        assert refused.returncode == 2 and "make down" in refused.stderr

    def test_worker_and_flow_killed_together_do_not_stay_running(self, clone: Clone) -> None:
        run = clone.start_run(seconds=600)
        wrapper = psutil.Process(int(clone.pids()[1].split()[0]))
        worker, *flows = wrapper.children(recursive=True)
        for process in [wrapper, *flows]:
            process.kill()
        assert background.wait_until(lambda: not background.is_alive(worker), 10), "the worker outlived its wrapper"
        status = clone.call("services", "status").stdout
        assert "worker  down" in status and "reports at http://127.0.0.1:" in status
        refused = clone.call("services.watch", "toy/full")
        assert refused.returncode == 1 and "no worker takes runs" in refused.stderr
        assert clone.state(run) == "RUNNING"
        assert clone.up().returncode == 0
        state = clone.api.call("GET", f"/flow_runs/{run}")["state"]
        assert (state["type"], state["message"]) == ("CRASHED", GONE)

    def test_down_settles_the_active_run_and_leaves_nothing(self, clone: Clone) -> None:
        run, password_before = clone.start_run(seconds=600), clone.password_file.read_text().strip()
        ended = clone.call("services", "down")
        assert ended.returncode == 0, ended.stderr
        assert clone.processes() == []
        assert clone.profiles() == tomllib.loads(FORMER)
        assert (clone.second_home / "profiles.toml").read_text().strip() == SECOND.strip()
        assert not [file for file in clone.home.parent.rglob("profiles.toml") if password_before in file.read_text()]
        with sqlite3.connect(clone.home / ".prefect" / "prefect.db") as database:
            states = dict(database.execute("select replace(id, '-', ''), state_type from flow_run"))
            paused = database.execute("select is_paused from work_pool where name = 'cpu'").fetchone()
        assert states[run.replace("-", "")] == "CRASHED"
        assert paused == (0,), "another clone over this database would wait for ever"
        assert not (clone.home / ".cache" / "services" / "state.json").exists()


def test_a_host_that_is_no_address_is_refused(tmp_path: Path) -> None:
    refused = Clone(tmp_path).up(BESSEMER_HOST="here")
    assert refused.returncode == 2 and "BESSEMER_HOST is 'here', an IP address of this machine is expected" in refused.stderr
    (tmp_path / "second").mkdir()
    foreign = Clone(tmp_path / "second").up(BESSEMER_HOST="192.0.2.1")
    assert foreign.returncode == 2 and "BESSEMER_HOST is 192.0.2.1, which is no address of this machine" in foreign.stderr


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_password_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "password"
    assert password.draw(path) == password.draw(path) == password.read(path)
    path.chmod(mode)
    with pytest.raises(InputError, match="others can read the server's password"):
        password.draw(path)


def test_a_port_that_is_no_number_is_refused(tmp_path: Path) -> None:
    refused = Clone(tmp_path).up(BESSEMER_PORT="http")
    assert refused.returncode == 2 and "BESSEMER_PORT is 'http'" in refused.stderr


def test_a_server_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    refused = Clone(tmp_path).up(PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api")
    assert refused.returncode == 2 and "no Prefect server answers" in refused.stderr


@pytest.mark.parametrize("before", [FORMER, "", '[profiles.mine]\nPREFECT_API_URL = "x"\n', None])
def test_profile_goes_back_to_what_it_was(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "profiles.toml"
    if before is not None:
        path.write_text(before)
    former = profiles.select(path, "http://127.0.0.1:1/api", "me:pw", None)
    assert profiles.is_selected(path, "http://127.0.0.1:1/api", "me:pw")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    profiles.restore(path, former)
    assert path.exists() == (before is not None)
    after = profiles.load(path)
    assert {"profiles": {}, **after} == {"profiles": {}, **tomllib.loads(before or "")}


def test_down_goes_back_in_every_home_also_of_an_earlier_version_and_names_a_file_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BESSEMER_HOME", str(tmp_path / "clone"))
    paths = [tmp_path / name / "profiles.toml" for name in ("earlier", "broken", "later")]
    formers = []
    for path in paths:
        path.parent.mkdir()
        path.write_text(FORMER)
        formers.append(profiles.select(path, "http://127.0.0.1:1/api", "me:pw", None))
    clone = services_of.Clone.from_environment()
    by_path = {str(path): former for path, former in zip(paths[1:], formers[1:], strict=True)}
    clone.remember(profile=formers[0], profiles_file=str(paths[0]), selected_profiles=by_path)
    paths[1].write_text("no toml [")
    restore_profiles(clone)
    assert [path.read_text() == FORMER for path in paths] == [True, False, True]
    assert f"bessemer stays in {paths[1]}" in capsys.readouterr().out


def test_a_profile_chosen_by_hand_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text(FORMER)
    former = profiles.select(path, "http://127.0.0.1:1/api", "me:pw", None)
    path.write_text(path.read_text().replace('active = "bessemer"', 'active = "other"'))
    assert profiles.restore(path, former) == "other"


def test_background_process_ends_on_sigterm_though_its_starter_ignores_sigint(tmp_path: Path) -> None:
    """What `cmd &` in a script does to SIGINT is not handed down."""
    program = "import signal, time; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True); time.sleep(60)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = background.start([sys.executable, "-c", program], tmp_path / "pid", tmp_path / "log", dict(os.environ), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert background.running(tmp_path / "pid") == process
    assert background.wait_until(lambda: (tmp_path / "log").read_text() == "True\n", 10)
    assert background.stop(process, 5)
    assert background.running(tmp_path / "pid") is None


def test_pid_file_of_another_process_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(f"{os.getpid()} {psutil.Process().create_time() - 100}\n")
    assert background.running(tmp_path / "pid") is None
