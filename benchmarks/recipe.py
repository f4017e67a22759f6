"""Recipes for the laptop's pretraining at equal time: bits per byte of the validation blocks, several seeds, losers kept.

    .venv/bin/python benchmarks/recipe.py --root DIR --seconds 60 --seeds 1 2 3 [--only NAME …]

Each recipe is the preset with some settings changed; they run one after the other on all cores, and calibrate gives each as many steps
as its seconds hold. Prints Markdown; artifacts stay in the root, so a stopped run goes on.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from bessemer.config import load, parse_set
from engine.runner import PlanRunner
from engine.stage import Engine
from flows.train import body
from store.artifact import Artifact

PROJECT = Path(__file__).parents[1]


def shaped(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> list[str]:
    """The settings of a model of that shape, its keys and values in one head."""
    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_layers": num_layers, "num_heads": num_heads}
    return [f"model.{name}={value}" for name, value in (sizes | {"num_kv_heads": 1}).items()]


RECIPES: dict[str, list[str]] = {
    "the preset": [],
    "64 wide": shaped(64, 176, 3, 2),
    "128 wide, 4 layers": shaped(128, 352, 4, 2),
    "192 wide, 4 layers": shaped(192, 512, 4, 3),
    "3 layers of 256": ["model.num_layers=3", "model.intermediate_size=256"],
    "one table for both ends": ["model.tie_embeddings=true"],
    "one head of keys and values": ["model.num_kv_heads=1"],
    "vocabulary 2,048": ["tokenizer.vocab_size=2048"],
    "vocabulary 8,192": ["tokenizer.vocab_size=8192"],
    "steps of 1,024 tokens": ["train.global_batch_tokens=1024", "train.warmup_steps=80"],
    "steps of 4,096 tokens": ["train.global_batch_tokens=4096"],
    "AdamW 3e-3": ["train.optimizer=adamw", "train.learning_rate=0.003", "train.embedding_learning_rate=null"],
    "Muon 0.02": ["train.learning_rate=0.02"],
    "embeddings 0.01": ["train.embedding_learning_rate=0.01"],
    "longer momenta": ["train.beta1=0.9", "train.momentum=0.95"],
    "8.5M tokens to draw from": ["mix.total_tokens=8500000"],
}
ALWAYS = [
    "train.validation_every=1000000",
    "train.validation_blocks=100000",
    "align.methods=[]",
    "align.export=pretrain",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    common = [*ALWAYS, f"train.seconds={given.seconds}", f"storage.root={given.root.resolve().as_uri()}", *given.set]
    work = [(name, seed) for seed in given.seeds for name in given.only]
    found = [measure(common + RECIPES[name] + [f"train.seed={seed}"]) for name, seed in work]
    print(table(work, found))
    return 0


def run(flow: str, settings: list[str]) -> None:
    words = [word for text in settings for word in ("--set", text)]
    subprocess.run([sys.executable, "-m", "flows", "run", flow, "--preset", "laptop", *words], cwd=PROJECT, check=True, stdout=sys.stderr)


def pretrained(settings: list[str]) -> tuple[Artifact, Artifact]:
    """The model that a run of the preset with these settings has made, and its blocks."""
    config = load("laptop", dict(parse_set(text) for text in settings))
    runner = PlanRunner(Engine(config.store(), config, config.run, None, "laptop"))  # type: ignore[arg-type]
    artifacts = {planned.stage.name: planned.reuse for planned in (body(runner, config), runner.plans)[1]}
    base, blocks = artifacts["pretrain"], artifacts["mix"]
    if base is None or blocks is None:
        sys.exit(f"{config.store().uri} has no finished run of the laptop preset with these settings; run it there first")
    return base, blocks


def measure(settings: list[str]) -> dict[str, float]:
    run("curate", settings)
    run("train", settings)
    base, blocks = pretrained(settings)
    held = blocks.figures["validation"].values()
    bytes_per_token = sum(row["blocks"] * row["bytes_per_token"] for row in held) / sum(row["blocks"] for row in held)
    return {
        "bits_per_byte": base.figures["validation_loss"] / math.log(2) / bytes_per_token,
        "parameters": base.figures["parameters"],
        "tokens": base.figures["tokens"],
    }


def table(work: list[tuple[str, int]], found: list[dict[str, float]]) -> str:
    lines = ["| recipe | parameters | tokens seen | bits per byte: median [least, most] of the seeds |", "|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in work):
        rows = [row for (other, _), row in zip(work, found, strict=True) if other == name]
        bits = [row["bits_per_byte"] for row in rows]
        spread = f"{statistics.median(bits):.3f} [{min(bits):.3f}, {max(bits):.3f}]"
        lines.append(f"| {name} | {rows[0]['parameters']:,} | {statistics.median(row['tokens'] for row in rows):,.0f} | {spread} |")
    return (
        "\n".join(lines)
        + "\n\n```json\n"
        + json.dumps([{**row, "recipe": n, "seed": s} for (n, s), row in zip(work, found, strict=True)])
        + "\n```"
    )


if __name__ == "__main__":
    sys.exit(main())
