"""Ranks over two Ray nodes, which are processes of this machine: the same losses, the same end, and nothing left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from contract.config import RunOptions
from contract.errors import ConfigError
from engine.ranks_on_ray import choose, of_the_pool
from tests.e2e.installation import on_demand

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import small

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("ray_driver.py")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with one more node; both die with this process."""
    before = signal.getsignal(signal.SIGTERM)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False})
    made.add_node(num_cpus=1, object_store_memory=2**27)
    yield made
    made.shutdown()
    signal.signal(signal.SIGTERM, before)  # Ray puts its own there


class Driver:
    """The flow's side of a launch, in a process of its own."""

    def __init__(self, folder: Path, name: str, nodes: int, address: str) -> None:
        spec = folder / "spec.json"
        if not spec.exists():
            spec.write_text(json.dumps(small.spec(folder, "pretrain", max_steps=400, validation_every=100) | {"checkpoint_every": 1000}))
        command = [sys.executable, str(DRIVER), str(spec), str(folder / f"root-{name}"), str(folder / name), str(nodes), address]
        variables = small.environment(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", BESSEMER_CACHE=str(folder))
        self.process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, cwd=folder)
        self.watch = threading.Timer(240, self.process.kill)  # one that hangs fails its test instead of holding it
        self.watch.start()

    def close(self) -> None:
        self.watch.cancel()
        self.process.kill()
        self.process.wait()

    def until(self, step: int) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("step ") and int(line.split()[1]) >= step:
                return
        raise AssertionError("it ended before that step")

    def end(self, within_s: float = 120) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=within_s)
        return self.process.returncode, said

    def ranks(self) -> list[psutil.Process]:
        """Its ranks on all nodes: those that meet at the port that its own child was given."""
        port = next(found for child in psutil.Process(self.process.pid).children() if (found := meeting(child)))
        return [process for process in psutil.process_iter() if meeting(process) == port]


def meeting(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("MASTER_PORT") if "training.child" in process.cmdline() else None
    return None


def wait_until(claim: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.1)
    return claim()


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


Drive = Callable[[str, int], Driver]


@pytest.fixture
def drive(cluster: Cluster, tmp_path: Path) -> Iterator[Drive]:
    """Starts a launch under a name on so many nodes; none outlives the test."""
    started: list[Driver] = []

    def start(name: str, nodes: int) -> Driver:
        started.append(Driver(tmp_path, name, nodes, cluster.address))
        return started[-1]

    yield start
    for driver in started:
        driver.close()


@pytest.mark.e2e
@on_demand
def test_stopped_on_two_nodes_and_gone_on_it_has_the_losses_of_one_machine(drive: Drive, tmp_path: Path):
    """SIGTERM to the flow reaches the rank of the other node; both checkpoint, and the next launch goes on to the same end."""
    first = drive("two", 2)
    first.until(3)
    ranks = first.ranks()
    parents = {rank.ppid() for rank in ranks}
    assert len(ranks) == 2 and len(parents - {first.process.pid}) == 1, "one is the flow's child, the other an actor's"
    first.process.send_signal(signal.SIGTERM)
    assert first.end()[0] == 75
    assert gone(ranks)
    found = small.checkpoints(tmp_path / "root-two").latest()
    assert found is not None and 3 <= found[0] < 400
    again = drive("two", 2)
    again.until(1)
    assert again.end()[0] == 0
    assert drive("one", 1).end()[0] == 0
    one, two = ((tmp_path / name / "losses.jsonl").read_text() for name in ("one", "two"))
    assert [json.loads(line)["loss"] for line in two.splitlines()] == [json.loads(line)["loss"] for line in one.splitlines()]
    assert (tmp_path / "one" / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.e2e
@on_demand
def test_a_killed_flow_leaves_no_rank_on_any_node(drive: Drive):
    driver = drive("killed", 2)
    driver.until(2)
    ranks = driver.ranks()
    driver.process.kill()
    driver.process.wait()
    assert len(ranks) == 2
    assert wait_until(lambda: gone(ranks), 30), "a rank outlived its flow"


@pytest.mark.e2e
@on_demand
def test_a_rank_that_dies_elsewhere_ends_the_stage_with_its_signal(drive: Drive):
    driver = drive("failed", 2)
    driver.until(2)
    ranks = driver.ranks()
    (other,) = [rank for rank in ranks if rank.ppid() != driver.process.pid]
    os.kill(other.pid, signal.SIGKILL)
    status, said = driver.end()
    assert status == 1 and "StageFailed: pretrain: rank 1 was ended by SIGKILL" in said
    assert gone(ranks)


@pytest.mark.e2e
@on_demand
def test_a_root_that_another_machine_does_not_have_is_refused(cluster: Cluster, drive: Drive):
    other = cluster.add_node(num_cpus=1, object_store_memory=2**27, node_ip_address="127.0.0.2")
    try:
        status, said = drive("far", 2).end()
    finally:
        cluster.remove_node(other)
    assert status == 2 and "ConfigError: the Ray cluster at run.ray_address has other machines (127.0.0.2), which do not have" in said


def test_a_cluster_that_is_too_small_is_named_with_what_it_has():
    def node(name: str, gpus: int, alive: bool = True) -> dict:
        return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": alive, "Resources": {"CPU": 1, "GPU": gpus}}

    found = [node("3", 8), node("1", 8), node("2", 0), node("4", 8, alive=False)]
    run = RunOptions(ranks=16, nodes=2, ray_address="10.0.0.1:6379", device="cuda")
    assert [each["NodeID"] for each in choose(found, "3", run, 8)] == ["3", "1"]
    more = RunOptions(ranks=24, nodes=3, ray_address="10.0.0.1:6379", device="cuda")
    with pytest.raises(ConfigError, match=r"run.nodes is 3, but the Ray cluster at 10.0.0.1:6379 has 2 machines with 8 GPUs\. Join more"):
        choose(found, "3", more, 8)
    with pytest.raises(ConfigError, match="this one is not among them"):
        choose(found, "2", run, 8)


def test_nodes_want_an_equal_share():
    with pytest.raises(ValueError, match="to a multiple of the nodes"):
        RunOptions(ranks=3, nodes=2, ray_address="auto")


def test_without_a_cluster_and_without_a_pool_it_is_said_where_nodes_come_from():
    with (
        pytest.raises(ConfigError, match=r"set run\.ray_address to its head.* or run it under Prefect"),
        of_the_pool(RunOptions(ranks=2, nodes=2), 1),
    ):
        pass
