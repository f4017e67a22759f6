"""Starts the ranks of one launch as child processes of this one, collects their lines, and ends them so that none is left behind.

Ranks have torchrun's variables (RANK, WORLD_SIZE, …) and one process group of their own. Why not torchrun itself: it hides exit
status 75, gives ranks 30 s to checkpoint, and its workers outlive it when it is killed. `engine/launch.py` listens to them;
`engine/ranks_on_ray.py` starts those of other machines.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

Gather = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


PASSWORDS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_KEY", "RAY_AUTH_TOKEN")
"""What a flow's process has in its environment, and its children have no use for."""


class MoreMachines:
    """How ranks get more machines. A flow run in a pool sets both; anywhere else they are None.

    gather(address of Ray's head, how many) holds the machines for the length of a `with` block. It gives a call that raises if one of
    them has ended. token: what Ray asks of a machine that joins, and what these machines can make.
    """

    gather: Gather | None = None
    token: str | None = None


class Process(Protocol):
    """A rank, here or on another machine (subprocess.Popen)."""

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class Machine(Protocol):
    """The ranks of another machine."""

    lost: str | None
    """What was seen when the machine vanished."""

    def signal(self, number: int) -> None: ...
    def end(self) -> None: ...


@dataclass
class Children:
    """All ranks of one launch: one process group on this machine, one queue of their lines."""

    processes: list[Process]
    lines: "queue.Queue[str | None]"
    stderr: list[Path]
    group: int = 0
    readers: list[threading.Thread] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    borrowed: ExitStack = field(default_factory=ExitStack)
    """The pool's machines, which are given back at the end."""
    is_stopping: bool = False
    errors: list[tuple[str, str]] = field(default_factory=list)
    killed: list[int] | None = None
    """The ranks that a signal not of ours has ended, once that is known. The other ranks then only report that they miss them."""

    def signal(self, number: int) -> None:
        for machine in self.machines:
            machine.signal(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, number)

    def end(self) -> None:
        """End all ranks. When this returns, no process of the group is left."""
        if any(process.poll() is None for process in self.processes):
            self.signal(signal.SIGKILL)
        for machine in self.machines:
            machine.end()
        for process in self.processes:
            process.wait()
        self.signal(signal.SIGKILL)  # grandchildren, if any
        for reader in self.readers:
            reader.join()
        self.borrowed.close()


def start_ranks(module: str, spec: dict[str, Any], folder: Path, ranks: range, variables: dict[str, str]) -> Children:
    """Start these ranks as children of this process, with torchrun's variables."""
    (folder / "spec.json").write_text(json.dumps(spec))
    lines: queue.Queue[str | None] = queue.Queue()
    children = Children([], lines, [folder / f"rank-{rank}.err" for rank in ranks])
    for local, rank in enumerate(ranks):
        environment = without_passwords() | {
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "BESSEMER_PARENT": str(os.getpid()),
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads on a shared machine cost a factor of ten
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            **variables,
        }
        with open(children.stderr[local], "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(folder / "spec.json")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=children.group,
                text=True,
            )
        children.group = children.group or process.pid
        children.processes.append(process)
        assert process.stdout is not None
        children.readers.append(threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True))
        children.readers[-1].start()
    return children


def without_passwords() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in PASSWORDS}


def _pump(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    """Put every line into the queue, and None at the end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
