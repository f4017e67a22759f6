"""A tiny model with its data, and the child process that trains it, for the tests of this room."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.conversion import save_folder
from models.transformer import ScalarModel, Shape, Transformer, initialise
from store.attempt import Attempt
from store.checkpoints import Checkpoints
from store.root import open_root
from training.loader import write_ragged

torch.set_num_threads(1)  # two spinning threads a process, beside others, cost a factor of ten
ROOT = Path(__file__).parents[2]
SHAPE = Shape(vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1, context=32)


def model(seed: int = 1) -> Transformer:
    made = Transformer(SHAPE)
    initialise(made, seed)
    return made


def batch(step: int, rows: int = 4) -> Tensor:
    return torch.randint(0, SHAPE.vocab_size, (rows, 17), generator=torch.Generator().manual_seed(step))


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["tokens"][:, :-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten(), reduction="sum") * batch["scale"]


def micro_batches(tokens: Tensor, parts: int) -> list[dict[str, Tensor]]:
    scale = torch.tensor(1 / tokens[:, 1:].numel())
    return [{"tokens": part, "scale": scale} for part in tokens.chunk(parts)]


def text(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Ids that can be learnt: each follows from the one before, with noise."""
    ids = rng.integers(2, SHAPE.vocab_size, (rows, 1))
    for _ in range(width - 1):
        following = np.where(rng.random((rows, 1)) < 0.9, (ids[:, -1:] * 5 + 3) % 62 + 2, rng.integers(2, 64, (rows, 1)))
        ids = np.concatenate((ids, following), 1)
    return ids


def write_data(folder: Path, kind: str) -> None:
    """Blocks for pretraining; prompts and answers for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    if kind == "pretrain":
        np.save(folder / "train.npy", text(rng, 40, SHAPE.context + 1).astype(np.uint16))
        np.save(folder / "validation.npy", text(rng, 5, SHAPE.context + 1).astype(np.uint16))
        return
    count = 30
    np.save(folder / "split.npy", np.array([0] * 20 + [1] * 5 + [2] * 5, np.int8))
    prompts = [text(rng, 1, int(rng.integers(3, 8)))[0].tolist() for _ in range(count)]
    write_ragged(folder, "prompt", prompts)
    answers = [[*text(rng, 1, int(rng.integers(2, 9)))[0].tolist(), 0] for _ in range(count)]
    for name, lists in (("response", answers), ("chosen", answers), ("rejected", [rng.permutation(a).tolist() for a in answers])):
        write_ragged(folder, name, lists)


def spec(folder: Path, kind: str, engine: str = "plain", **config: Any) -> dict[str, Any]:
    """A child's spec over data and models that are made in the folder when they are not there."""
    data = folder / kind
    if not data.exists():
        write_data(data, kind)
        save_folder(model(), folder / "base")
        scalar = ScalarModel(SHAPE)
        initialise(scalar, 2)
        save_folder(scalar, folder / "reward")
    settings: dict[str, Any] = {"seed": 3, "learning_rate": 0.01, "warmup_steps": 2, **config}
    if kind == "pretrain":
        settings |= {"max_steps": 12, "validation_every": 6, "global_batch_tokens": 8 * SHAPE.context, **config}
    elif kind == "ppo":
        ppo = {"iterations": 7, "batch_size": 8, "minibatches": 2, "epochs": 2, "max_new_tokens": 8, "validation_every": 2}
        settings |= {"learning_rate": 1e-3, "warmup_steps": 0, **ppo, **config}
    else:
        settings |= {"max_steps": 8, "batch_size": 8, "validation_every": 3, **config}
    return {
        "kind": kind,
        "config": settings,
        "engine": engine,
        "zero_stage": 1,
        "place": {"device": "cpu", "dtype": "float32", "ranks": 1, "threads": 1, "micro_batch_size": None, "compile": False},
        "shape": SHAPE.__dict__,
        "init": None if kind == "pretrain" else str(folder / "base"),
        "reward_model": str(folder / "reward"),
        "data": str(data),
        "batch_size": 8,
        "end_id": 0,
        "pad_id": 1,
        "checkpoint_every": 2,
        "config_digest": "0" * 64,
        "steps": settings.get("max_steps") or settings["iterations"],
        "unit": "steps",
    }


def checkpoints(root: Path) -> Checkpoints:
    return Checkpoints(Attempt.new(open_root(root.as_uri()), "pretrain", "f" * 64, "basis"))


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(spec: dict[str, Any], root: Path, out: Path, ranks: int = 1, module: str = "training.child") -> list[subprocess.Popen]:
    """The ranks of one child, their JSON lines on stdout of rank 0."""
    out.mkdir(parents=True)
    path = out.parent / f"{out.name}.json"
    place = {**spec["place"], "ranks": ranks}
    path.write_text(json.dumps({**spec, "place": place, "checkpoints": checkpoints(root).to_json(), "out": str(out / "files")}))
    (out / "files").mkdir()
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, str(path)],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(ranks),
                BESSEMER_RENDEZVOUS=str(out / "rendezvous"),
            ),
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=open(out / f"rank-{rank}.err", "wb"),
            text=True,
        )
        for rank in range(ranks)
    ]


def finish(processes: list[subprocess.Popen], out: Path, want: int = 0) -> dict[str, Any]:
    """Wait for all ranks; their result."""
    for rank, process in enumerate(processes):
        process.communicate(timeout=120)
        assert process.returncode == want, (out / f"rank-{rank}.err").read_text()[-3000:]
    return result(out) if want == 0 else {}


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "files" / "result.json").read_text())


def train(spec: dict[str, Any], folder: Path, ranks: int = 1) -> dict[str, Any]:
    """An undisturbed run with a store of its own under the folder."""
    return finish(start(spec, folder / "root", folder / "run", ranks), folder / "run")


def signal_at(spec: dict[str, Any], folder: Path, step: int, number: int, ranks: int = 1) -> list[subprocess.Popen]:
    """Start it and send the signal to all ranks when the line of `step` appears."""
    processes = start(spec, folder / "root", folder / "killed", ranks)
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if json.loads(line).get("progress", [0])[0] >= step:
            break
    else:
        raise AssertionError((folder / "killed" / "rank-0.err").read_text()[-3000:])
    for process in processes:
        process.send_signal(number)
    for process in processes:
        process.wait(timeout=60)
    assert number != signal.SIGKILL or processes[0].returncode == -signal.SIGKILL
    return processes


def model_bytes(folder: Path, run: str = "run") -> bytes:
    return (folder / run / "files" / "model" / "model.safetensors").read_bytes()


def losses(folder: Path, run: str = "run") -> str:
    return (folder / run / "files" / "losses.jsonl").read_text()
