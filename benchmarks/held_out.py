"""The laptop's base model against the bigram on two kinds of text that neither has seen, and how much of the distance the split makes.

    .venv/bin/python benchmarks/held_out.py --root DIR [--set KEY=VALUE …]

DIR has a finished laptop run with these settings. Both know the blocks that training saw. They are asked about the validation blocks,
whose groups (a package, say) were held out whole, and about as many blocks of the training mixture that training did not come to: text of
the groups that it did see, as a split by document would leave it. Prints Markdown.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from recipe import pretrained

from bessemer.config import load, parse_set
from evaluation.baselines import bigram, block_pairs
from models.conversion import load_folder
from store.artifact import Artifact
from training.loader import global_batch

ROWS = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    settings = [f"storage.root={given.root.resolve().as_uri()}", *given.set]
    base, blocks = pretrained(settings)
    seed = load("laptop", dict(parse_set(text) for text in settings)).train.seed
    context = int(blocks.figures["context"])
    mixture = np.concatenate([ids_of(blocks, name, context) for name in blocks.names()])
    seen = global_batch(seed, 0, len(mixture), min(len(mixture), int(base.figures["tokens"]) // context))
    held = ids_of(blocks, "validation.parquet", context)
    unseen = np.setdiff1d(np.arange(len(mixture)), seen)
    if not len(unseen):
        sys.exit("training saw every block of the mixture; give the run a larger mix.total_tokens, or fewer steps")
    unseen = np.random.default_rng(seed).permutation(unseen)[: len(held)]
    model = load_folder(base.folder("model"))
    print(f"{len(seen) * context:,} tokens seen, model of {base.figures['parameters']:,} parameters\n")
    print("| text | blocks | bigram, nats a token | model | |\n|---|---|---|---|---|")
    pairs = bigram(*block_pairs(mixture[np.sort(seen)]), model.shape.vocab_size)
    for name, rows in {"groups held out": held, "groups trained on": mixture[unseen]}.items():
        other, own = pairs.nats(*block_pairs(rows)).mean(), model_nats(model, rows)
        print(f"| {name} | {len(rows):,} | {other:.3f} | {own:.3f} | {100 * (own / other - 1):+.1f} % |")
    return 0


def ids_of(blocks: Artifact, name: str, context: int) -> np.ndarray:
    """(n, context + 1) ids of one file of blocks."""
    return blocks.table(name, ["tokens"])["tokens"].combine_chunks().flatten().to_numpy().reshape(-1, context + 1).astype(np.int64)


@torch.no_grad()
def model_nats(model: torch.nn.Module, rows: np.ndarray) -> float:
    """Mean nats of the targets of the blocks."""
    ids = [torch.from_numpy(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
    total = sum(float(model(part[:, :-1], targets_BT=part[:, 1:])) for part in ids)
    return total / rows[:, 1:].size


if __name__ == "__main__":
    sys.exit(main())
