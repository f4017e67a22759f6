"""Prepares a rank before it has a model: its threads, its process group, and the signal to stop.

Any launcher that sets RANK and WORLD_SIZE will do (engine/ranks.py, torchrun). With BESSEMER_RENDEZVOUS, a path for a file that
does not exist yet, the ranks of one machine meet there and no port is needed; else MASTER_ADDR and MASTER_PORT are used.
"""

import os
import signal
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Rank:
    index: int
    ranks: int


def prepare(threads: int, seed: int, device: str) -> None:
    """Set the threads, and make a repeated run give the same results to the bit."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # else a pass over every new tensor


def join(needs_group: bool, device: str) -> Rank:
    """This process's rank, with a process group where there are others (or where DeepSpeed wants one of one rank)."""
    index, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 and not needs_group:
        return Rank(0, 1)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    meeting = os.environ.get("BESSEMER_RENDEZVOUS")
    if ranks == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    elif meeting:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: the host's name need not resolve
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=index, world_size=ranks, timeout=timedelta(minutes=30))
    else:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return Rank(index, ranks)


class StopSignal:
    """Notes a SIGTERM; the loop asks for it after each step."""

    def __init__(self) -> None:
        self.is_set = False
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, signum: int, frame: object) -> None:
        self.is_set = True

    def __call__(self) -> bool:
        return self.is_set
