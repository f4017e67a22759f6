"""Ray, as a stage starts it on one machine: what it listens on, what its processes know, and who is let in."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from contract.errors import ConfigError
from flows.lend_machine import shared_token

ROOT = Path(__file__).parents[2]
SECRETS = {
    "PREFECT_API_AUTH_STRING": "bessemer:planted-password",
    "PREFECT_SERVER_API_AUTH_STRING": "bessemer:planted-password",
    "PREFECT_API_KEY": "planted-key",
}
HEAD = """
import json, os, sys
from pathlib import Path
from contract.config import RunOptions
from contract.environment_variables import prepare_environment
prepare_environment()
from engine.parts import start_ray, stop_ray
start_ray(RunOptions(workers=2, memory_bytes=2**28))
import ray, ray.data
ray.data.from_items(list(range(8)), override_num_blocks=4).map(lambda row: row).take_all()
kept = os.environ["PREFECT_API_AUTH_STRING"]
print(json.dumps({"address": ray.get_runtime_context().gcs_address, "token": os.environ["RAY_AUTH_TOKEN"], "kept": kept}), flush=True)
sys.stdin.read()
stop_ray()
"""
JOIN = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print("JOINED", ray.get(ray.remote(lambda: 42).remote()))
"""
REACH = """
import socket, sys
for port in sys.argv[2:]:
    with socket.socket() as probe:
        probe.settimeout(5)
        print(port, probe.connect_ex((sys.argv[1], int(port))))
"""
GUESSABLE = hashlib.sha256(b"ray ").hexdigest()
"""What was the token on every machine whose server had no password."""


@contextmanager
def head() -> Iterator[tuple[dict[str, Any], list[psutil.Process]]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | SECRETS | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = next(line for line in process.stdout if line.startswith("{"))
        me = psutil.Process(process.pid)
        yield json.loads(line), [me, *me.children(recursive=True)]
    finally:
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[tuple[dict[str, Any], list[psutil.Process]]]:
    with head() as found:
        yield found


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    found = set()
    for process in processes[:1] + processes[0].children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # Ray ends idle workers
            laddrs = [each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
            found |= {(laddr.ip.removeprefix("::ffff:"), laddr.port) for laddr in laddrs}
    return found


@contextmanager
def other_machine() -> Iterator[tuple[list[str], str]]:
    """A network of its own with one cable to this machine: how to run a command there, and this machine's address as seen from there."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root makes a network namespace, by iproute2")
    name, third = f"b{os.getpid() % 100000}", os.getpid() % 250
    ours, theirs = f"198.18.{third}.1", f"198.18.{third}.2"

    def ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine does not let us make a network namespace: {done.stderr.strip()}")

    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
        ip("link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}n", "netns", name)
        ip("addr", "add", f"{ours}/30", "dev", f"{name}h")
        ip("link", "set", f"{name}h", "up")
        ip("-n", name, "addr", "add", f"{theirs}/30", "dev", f"{name}n")
        ip("-n", name, "link", "set", f"{name}n", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield ["ip", "netns", "exec", name], ours


def join(address: str, before: list[str], seconds: int = 60, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    quick = {"RAY_gcs_rpc_server_connect_timeout_s": "3", "RAY_gcs_rpc_server_reconnect_timeout_s": "3", "HOME": "/nonexistent"}
    command = [*before, "timeout", str(seconds), sys.executable, "-c", JOIN, address]
    return subprocess.run(command, env=kept | quick | variables, cwd="/", capture_output=True, text=True)


@pytest.mark.slow
def test_every_process_of_ray_listens_on_loopback_only(ray_here: tuple[dict[str, Any], list[psutil.Process]]) -> None:
    found = listening(ray_here[1])
    assert len(found) > 4 and {address for address, _ in found} == {"127.0.0.1"}


@pytest.mark.slow
def test_the_processes_of_ray_do_not_have_the_servers_password(ray_here: tuple[dict[str, Any], list[psutil.Process]]) -> None:
    facts, (_, *below) = ray_here
    assert facts["kept"] == SECRETS["PREFECT_API_AUTH_STRING"], "the flow itself needs it"
    assert len(below) > 3
    assert not [process for process in below if set(SECRETS) & set(process.environ())]


@pytest.mark.slow
def test_another_user_here_cannot_join_by_guessing(ray_here: tuple[dict[str, Any], list[psutil.Process]]) -> None:
    facts, processes = ray_here
    assert re.fullmatch("[0-9a-f]{64}", facts["token"]) and facts["token"] != GUESSABLE
    assert not [process for process in processes for argument in process.cmdline() if facts["token"] in argument]
    here = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray would look for 127.0.0.1 at this machine's address
    allowed = join(facts["address"], [], **here, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=facts["token"])
    assert "JOINED 42" in allowed.stdout, allowed.stderr[-2000:]
    tries = [{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": GUESSABLE}, {"RAY_AUTH_MODE": "disabled"}]
    with ThreadPoolExecutor() as both:
        for refused in both.map(lambda variables: join(facts["address"], [], 20, **here, **variables), tries):
            assert refused.returncode != 0 and "JOINED" not in refused.stdout
            assert "InvalidAuthToken" in refused.stderr, refused.stderr[-2000:]


@pytest.mark.slow
def test_another_machine_reaches_nothing(ray_here: tuple[dict[str, Any], list[psutil.Process]]) -> None:
    facts, processes = ray_here
    with other_machine() as (there, address), socket.create_server(("0.0.0.0", 0)) as open_to_all:
        control, ports = open_to_all.getsockname()[1], sorted(port for _, port in listening(processes))
        command = [*there, sys.executable, "-c", REACH, address, *map(str, [control, *ports])]
        answers = dict(line.split() for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
        assert answers.pop(str(control)) == "0", "the other machine does not reach this one at all: this test shows nothing"
        assert len(answers) == len(ports) and "0" not in answers.values()
        port = facts["address"].rpartition(":")[2]
        guessed = join(f"{address}:{port}", there, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=GUESSABLE)
        assert guessed.returncode != 0 and "JOINED" not in guessed.stdout


@pytest.mark.slow
def test_each_run_draws_a_token(ray_here: tuple[dict[str, Any], list[psutil.Process]]) -> None:
    with head() as (facts, _):
        assert facts["token"] != ray_here[0]["token"]


def test_several_machines_need_the_servers_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="by the Prefect server's password, and this server has none"):
        shared_token("a")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:pw")
    assert shared_token("a") == shared_token("a") != shared_token("b")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:other")
    assert len({shared_token("a"), GUESSABLE}) == 2
