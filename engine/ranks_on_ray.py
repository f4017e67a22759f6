"""Starts the ranks of a training stage on the machines of a Ray cluster: run.nodes of them, the flow's own machine first.

Ray only finds the machines and carries messages. Ranks on this machine are children of the flow as always; ranks of another machine are
children of an actor there. Ray ends the actor when the flow's process is gone, and the kernel ends a rank whose parent is gone, so nothing
outlives a killed flow. The ranks find each other at this machine's address, by torchrun's variables. Rank 0 is here; it writes the
checkpoints and the model.

Why not Ray Train: it has its own protocol for checkpoints, reports and restarts, and a single machine uses ours.
"""

import contextlib
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from contract.config import RunOptions
from contract.errors import ConfigError
from engine.parts import refuse_unshared, start_ray
from engine.ranks import Children, MoreMachines, free_port, start_ranks
from engine.stage import Output

LOOK_S = 0.3
CHUNK_BYTES = 64 * 2**20  # of one message: a data folder of any size needs little memory
START_S = 120
COME_LOOK_S = 3
COME_S = 3600  # the longest wait for a machine of the pool: spot may not deliver, and a set-up takes ten minutes
FORWARDED = ("DS_ACCELERATOR", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY")
"""Environment variables of ours that a rank on another machine needs too."""


def start_on_cluster(module: str, spec: dict[str, Any], folder: Path, ranks: int, threads: int, out: Output) -> Children:
    """Start the ranks, an equal share on each machine. Raises ConfigError if the cluster has too few."""
    start_ray(out.run, for_others=True)
    borrowed = ExitStack()
    try:
        found = ray.nodes() if out.run.ray_address else borrowed.enter_context(of_the_pool(out.run, ranks // out.run.nodes))
        refuse_unshared(out.attempt.storage.uri)
        children = start_everywhere(found, module, spec, folder, ranks, threads, out.run)
    except BaseException:
        borrowed.close()
        raise
    children.borrowed = borrowed
    return children


@contextlib.contextmanager
def of_the_pool(run: RunOptions, each: int) -> Iterator[list[dict[str, Any]]]:
    """Let machines of the pool join this machine's Ray, which is the head; yields the nodes once enough have joined."""
    if MoreMachines.gather is None:
        raise ConfigError(
            f"run.nodes is {run.nodes}, which needs a Ray cluster: set run.ray_address to its head, HOST:6379, or run it under Prefect, "
            "where machines of the run's pool make one."
        )
    context = ray.get_runtime_context()
    former = {node["NodeID"] for node in ray.nodes()} - {context.get_node_id()}  # of an earlier launch, about to leave
    with MoreMachines.gather(context.gcs_address, run.nodes - 1) as look:
        deadline = time.monotonic() + COME_S
        while True:
            found = [node for node in ray.nodes() if node["NodeID"] not in former]
            if len(fit(found, run, each)) >= run.nodes or time.monotonic() > deadline:
                break
            look()
            time.sleep(COME_LOOK_S)
        yield found


def start_everywhere(
    found: list[dict[str, Any]], module: str, spec: dict[str, Any], folder: Path, ranks: int, threads: int, run: RunOptions
) -> Children:
    each = ranks // run.nodes
    here, *others = choose(found, ray.get_runtime_context().get_node_id(), run, each)
    address = here["NodeManagerAddress"]
    variables = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(free_port(address)),
        "OMP_NUM_THREADS": str(threads),
        **{name: os.environ[name] for name in FORWARDED if name in os.environ},
    }
    children = start_ranks(module, spec, folder, range(each), variables | interface(address))
    try:
        for index, other in enumerate(others, start=1):
            machine = RemoteMachine(other, range(index * each, (index + 1) * each), children.lines, folder, run)
            children.machines.append(machine)
            machine.start(module, spec, variables)
            children.processes += machine.processes
            children.stderr += machine.stderr
    except BaseException:
        children.end()
        raise
    return children


def fit(found: list[dict[str, Any]], run: RunOptions, each: int) -> list[dict[str, Any]]:
    gpus = each if run.device.startswith("cuda") else 0
    return [node for node in found if node["Alive"] and node["Resources"].get("GPU", 0) >= gpus]


def choose(found: list[dict[str, Any]], own: str, run: RunOptions, each: int) -> list[dict[str, Any]]:
    """This machine and run.nodes - 1 others, in the order of their addresses."""
    able = fit(found, run, each)
    here = [node for node in able if node["NodeID"] == own]
    others = sorted((node for node in able if node["NodeID"] != own), key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))
    if not here or len(others) < run.nodes - 1:
        kind = f"machines with {each} GPUs" if run.device.startswith("cuda") else "machines"
        where = f"at {run.ray_address}" if run.ray_address else f"of the pool's machines, after {COME_S / 60:.0f} minutes,"
        raise ConfigError(
            f"run.nodes is {run.nodes}, but the Ray cluster {where} has {len(here) + len(others)} {kind}"
            f"{'' if here else ' and this one is not among them'}. Join more by `ray start --address`, or lower run.nodes and run.ranks."
        )
    return here + others[: run.nodes - 1]


def interface(address: str) -> dict[str, str]:
    """Name the network interface of this address. Otherwise gloo and NCCL guess it from the host name, which need not resolve."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


class Rank:
    """One rank on another machine, as far as this process knows it."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        return self.status

    def wait(self) -> int:
        self._ended.wait()
        assert self.status is not None
        return self.status

    def end(self, status: int) -> None:
        if self.status is None:
            self.status = status
        self._ended.set()


class RemoteMachine:
    """The ranks of one other machine: their actor, and a thread that carries lines here and signals there."""

    def __init__(self, node: dict[str, Any], ranks: range, lines: "queue.Queue[str | None]", folder: Path, run: RunOptions) -> None:
        self.ranks, self.address = ranks, node["NodeManagerAddress"]
        self.processes = [Rank() for _ in ranks]
        self.stderr = [folder / f"rank-{rank}.err" for rank in ranks]
        self.lost: str | None = None
        self._lines, self._open = lines, len(ranks)
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # a signal handler may put into this kind
        self._thread: threading.Thread | None = None
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpus = len(ranks) if run.device.startswith("cuda") else 0
        self._actor: Any = ray.remote(RanksActor).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=place).remote()

    def start(self, module: str, spec: dict[str, Any], variables: dict[str, str]) -> None:
        """Start the ranks there. The spec's files and folders are copied first, each under its key."""
        there = {key: send(self._actor, key, Path(value)) for key, value in spec.items() if is_existing_path(value)}
        call = self._actor.start.remote(module, spec | there, self.ranks, variables, self.address)
        ray.get(call, timeout=START_S)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def signal(self, number: int) -> None:
        self._signals.put(number)

    def end(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # then the actor is gone, and its ranks with it
            ray.get(self._actor.end.remote(), timeout=20)
        ray.kill(self._actor)
        if self._thread is not None:
            self._thread.join()
        self._close("was ended with its machine's actor")

    def _follow(self) -> None:
        try:
            while self._open or any(process.poll() is None for process in self.processes):
                while not self._signals.empty():
                    ray.get(self._actor.signal.remote(self._signals.get()))
                lines, statuses, errors = ray.get(self._actor.look.remote())
                for process, status, path, text in zip(self.processes, statuses, self.stderr, errors, strict=True):
                    if status is not None and process.poll() is None:
                        path.write_text(text)
                        process.end(status)
                for line in lines:
                    self._open -= line is None
                    self._lines.put(line)
                time.sleep(LOOK_S)
        except ray.exceptions.RayError as error:
            self.lost = f"{self.address} left the Ray cluster ({str(error).strip().splitlines()[0]})"
            self._close(self.lost)

    def _close(self, why: str) -> None:
        """Mark these ranks as ended, so that nobody waits for them any longer."""
        for process, path in zip(self.processes, self.stderr, strict=True):
            if process.poll() is None:
                path.write_text(why)
            process.end(1)
        for _ in range(self._open):
            self._lines.put(None)
        self._open = 0


def is_existing_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/") and Path(value).exists()


def send(actor: Any, key: str, path: Path) -> str:
    """Copy a file or folder to the actor's machine, one message at a time; returns its path there."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    where: str = ray.get(actor.receive.remote(key, b"") if path.is_file() else actor.make.remote(key))
    for file in files:
        name = str(Path(key) / file.relative_to(path)) if path.is_dir() else key
        with open(file, "rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                ray.get(actor.receive.remote(name, chunk))
    return where


class RanksActor:
    """The actor on another machine: it starts the ranks as its children, and hands on what they write.

    Every method is short and runs in the actor's only thread. That thread is the ranks' parent: when it ends, the kernel ends them.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bessemer-ranks-"))
        self.children: Children | None = None

    def make(self, key: str) -> str:
        (self.folder / key).mkdir(parents=True, exist_ok=True)
        return str(self.folder / key)

    def receive(self, name: str, chunk: bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(chunk)
        return str(path)

    def start(self, module: str, spec: dict[str, Any], ranks: range, variables: dict[str, str], address: str) -> None:
        self.children = start_ranks(module, spec, self.folder, ranks, variables | interface(address))

    def look(self) -> tuple[list[str | None], list[int | None], list[str]]:
        """The lines since the last look, each rank's status, and the stderr of each rank that has ended."""
        assert self.children is not None
        statuses = [process.poll() for process in self.children.processes]
        lines: list[str | None] = []
        while not self.children.lines.empty():
            lines.append(self.children.lines.get())
        errors = [
            "" if status is None else path.read_text(errors="replace")[-4000:]
            for status, path in zip(statuses, self.children.stderr, strict=True)
        ]
        return lines, statuses, errors

    def signal(self, number: int) -> None:
        if self.children is not None:
            self.children.signal(number)

    def end(self) -> None:
        if self.children is not None:
            self.children.end()
        shutil.rmtree(self.folder, ignore_errors=True)
