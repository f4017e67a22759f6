"""A checkpoint as a folder of four files: weights and optimizer state by parameter name, counters as JSON, and no pickle.

    model.safetensors       master weights, fp32
    optimizer.safetensors   <parameter>/<key>
    extra.safetensors       what a loop keeps in addition (PPO: the best policy so far)
    state.json              step, data_offset, RNG states, loss window, history, execution class, config digest

Tensors are stored by name, so it loads under any ZeRO stage and any number of ranks. Whole or absent: the store publishes the folder at
once.
"""

import json
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Store(Protocol):
    """Where checkpoints are kept (store.checkpoints.Checkpoints, or anything alike)."""

    def save(self, step: int, folder: Path) -> None: ...
    def latest(self) -> tuple[int, Path] | None: ...
    def prune(self, keep_last: int, keep_every: int) -> None: ...


@dataclass
class Snapshot:
    """The whole state of a run at the start of `state["step"]`."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    extra: dict[str, Tensor] = field(default_factory=dict)


def write(folder: Path, snapshot: Snapshot) -> None:
    from safetensors.torch import save_file  # here, so that the loop imports with torch and NumPy alone

    folder.mkdir(parents=True)
    save_file(snapshot.weights, folder / "model.safetensors")
    save_file(snapshot.optimizer, folder / "optimizer.safetensors")
    if snapshot.extra:
        save_file(snapshot.extra, folder / "extra.safetensors")
    (folder / "state.json").write_text(json.dumps(snapshot.state | {"rng": rng_state()}))


def read(folder: Path) -> Snapshot:
    from safetensors.torch import load_file

    state = json.loads((folder / "state.json").read_text())
    extra = load_file(folder / "extra.safetensors") if (folder / "extra.safetensors").exists() else {}
    return Snapshot(load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors"), state, extra)


def rng_state() -> dict[str, str]:
    """torch's streams as hexadecimal. Orders and samples have generators of their own, seeded by step."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: bytes(state.tolist()).hex() for name, state in states.items()}


def set_rng_state(states: dict[str, str]) -> None:
    tensors = {name: torch.tensor(list(bytes.fromhex(value)), dtype=torch.uint8) for name, value in states.items()}
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


class Saver:
    """Saves and finds checkpoints; the upload runs beside the training, one at a time.

    Every rank has one. All must call together where the snapshot is made; only rank 0 writes.
    """

    def __init__(self, store: Store, scratch: Path, is_writer: bool, keep_last: int = 2, keep_every: int = 0) -> None:
        self._store, self._scratch, self._is_writer = store, scratch, is_writer
        self._keep = (keep_last, keep_every)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def latest(self) -> Snapshot | None:
        found = self._store.latest()
        return None if found is None else read(found[1])

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Write the folder here and now, then publish it in the background. Raises what an earlier publication raised."""
        self.join()
        if self._is_writer:
            folder = self._scratch / f"checkpoint-{step:09d}"
            shutil.rmtree(folder, ignore_errors=True)
            write(folder, snapshot)
            self._thread = threading.Thread(target=self._publish, args=(step, folder), name="checkpoint")
            self._thread.start()

    def _publish(self, step: int, folder: Path) -> None:
        try:
            self._store.save(step, folder)
            self._store.prune(*self._keep)
        except BaseException as error:
            self._error = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
