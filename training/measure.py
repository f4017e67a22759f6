"""The main of a measuring rank: `python -m training.measure spec.json`. What a training step costs here, in a few seconds.

Trains a drawn model on drawn tokens and writes {"seconds": {rows: …}} into spec["out"]/result.json: the median step of each number of
rows. Nothing else of a run depends on a clock; what is made of these figures is fixed before training starts.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.transformer import Shape, Transformer, initialise
from training.child import main, make_engine
from training.config import TrainConfig
from training.engine_plain import Batch, Engine
from training.guard import Guard
from training.loop import cut
from training.objectives import next_token_nats
from training.options import Place, micro_size
from training.process_group import join, prepare

LEAST_STEPS = 2


def measure(spec: dict[str, Any]) -> None:
    place, config = Place(**spec["place"]), TrainConfig.model_validate(spec["config"])
    prepare(place.threads, config.seed, place.device)
    rank = join(needs_group=config.engine == "deepspeed", device=place.device)
    model = Transformer(Shape(**spec["shape"]))
    initialise(model, config.seed)
    sizes = [(rows, micro_size(rows // rank.ranks, place.micro_batch_size)) for rows in spec["rows"]]
    num_micro = spec["rows"][0] // rank.ranks // sizes[0][1]
    engine = make_engine(config.engine, model, config.recipe(), place, config.zero_stage, num_micro, rank)
    seconds = {rows: _median_step(engine, _batches(engine, rows, size, spec), spec["seconds"]) for rows, size in sizes}
    if rank.index == 0:
        (Path(spec["out"]) / "result.json").write_text(json.dumps({"seconds": seconds}))


def _batches(engine: Engine, rows: int, size: int, spec: dict[str, Any]) -> list[Batch]:
    """This rank's micro batches of a step of so many rows."""
    shape, share = spec["shape"], rows // engine.ranks
    ids = torch.randint(0, shape["vocab_size"], (share, shape["context"] + 1), generator=torch.Generator().manual_seed(engine.rank))
    scale = torch.tensor(1 / (rows * shape["context"]), device=engine.device)
    return [{"tokens": ids[part].to(engine.device), "scale": scale} for part in cut(torch.arange(share).numpy(), size)]


def _loss(model: Any, batch: Batch) -> Tensor:
    return next_token_nats(model, batch["tokens"]) * batch["scale"]


def _median_step(engine: Engine, batches: list[Batch], limit: float) -> float:
    """Seconds of the median step, over at least LEAST_STEPS and about `limit` seconds; a first one (allocation, compiling) is left out."""
    guard = Guard(0.0, engine.device)
    took: list[float] = []
    begun = last = float("nan")
    while len(took) < LEAST_STEPS or not engine.any(last - begun > limit):
        stepped = engine.step(batches, _loss, 0.0, guard)
        float(stepped.loss)  # on a GPU: until it is done
        now = time.monotonic()
        if begun == begun:
            took.append(now - last)
        else:
            begun = now
        last = now
    return statistics.median(took)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], lambda spec, report: measure(spec)))
