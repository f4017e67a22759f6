"""What the training stages share: the child's spec, its result as an artifact, and pairs as token ids."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SerializeAsAny

from contract.config import Frozen
from contract.errors import ConfigError, InputError
from engine.launch import run_child
from engine.stage import Output
from store.artifact import Artifact
from store.digests import digest_of_file
from tasks.calibrate import place, steps_in
from tokens.encoder import Encoder
from tokens.trainer import END_ID, PAD_ID
from training.config import METHODS, AlignConfig, EngineName, FineTuneConfig
from training.loader import Ragged, write_ragged
from training.options import Place

SPLITS = ("train", "validation", "test")


class FineTuning(Frozen):
    """What every stage of align but PPO sees of the configuration."""

    engine: EngineName
    zero_stage: int
    method: SerializeAsAny[FineTuneConfig]
    """With the settings that a method adds: they are identity too."""


def fine_tuning(align: AlignConfig, method: FineTuneConfig) -> FineTuning:
    return FineTuning(engine=align.engine, zero_stage=align.zero_stage, method=method)


def check_ranks(batch_size: int, ranks: int, setting: str) -> None:
    if batch_size % ranks:
        raise ConfigError(f"run.ranks is {ranks} and a step has {batch_size} rows ({setting}); make the rows a multiple of the ranks")


def train(out: Output, kind: str, config: Frozen, where: Place, module: str = "training.child", **spec: Any) -> dict[str, Any]:
    """Run the child to its end and take its model, losses and figures into the output; what it returned.

    `spec` adds engine, zero_stage, data, batch_size, steps, unit and what else the kind needs (training/child.py).
    """
    folder = out.scratch / "result"
    whole = {
        "kind": kind,
        "config": config.model_dump(mode="json"),
        "place": asdict(where),
        "shape": None,
        "init": None,
        "end_id": END_ID,
        "pad_id": PAD_ID,
        "checkpoints": out.checkpoints.to_json(),
        "checkpoint_every": out.run.checkpoint_every_steps,
        "config_digest": out.fingerprint,
        "out": str(folder),
        **{name: str(value) if isinstance(value, Path) else value for name, value in spec.items()},
    }
    out.execution |= where.execution_class(version("torch"))
    out.adopted += out.checkpoints.is_there()
    run_child(module, whole, out, where.ranks, where.threads, can_resume=True)
    for path in sorted((folder / "model").iterdir()):
        out.file(f"model/{path.name}", path)
    out.file("losses.jsonl", folder / "losses.jsonl")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    out.json("validation.json", result.get("validation", []))
    out.figures |= result
    if result.get("skipped_steps"):
        out.warn(f"{kind} skipped {result['skipped_steps']} steps (not finite, or a spike); losses.jsonl names them")
    return result


def digest_of_folder(folder: str | None) -> dict[str, str]:
    """Digests of a model folder's files by name, for a stage that starts from one."""
    if folder is None:
        return {}
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".json", ".safetensors"))
    if {path.suffix for path in files} != {".json", ".safetensors"}:
        raise InputError(
            f"train.init_from {folder} holds no config.json and model.safetensors; name the folder of a model "
            "(.bin, .pt and .pth are not read: they are pickles, which run code when they are read)"
        )
    return {path.name: digest_of_file(path) for path in files}


def write_pairs(folder: Path, table: pa.Table, tokenizer: Artifact, responses: list[str], context: int, most_new: int = 0) -> pa.Table:
    """Encode prompts and responses for the child; the table without the rows that do not fit.

    A prompt is encode(prompt), a response encode(response) and the end token. A row longer than the context (with `most_new` ids to
    come, for prompts alone) is left out whole: a cut answer would teach not to end.
    """
    encoder = Encoder(tokenizer.read("tokenizer.json"))
    columns = {name: encoder.encode(table[name]) for name in ["prompt", *responses]}
    lengths = {name: pc.list_value_length(ids).to_numpy(zero_copy_only=False) for name, ids in columns.items()}
    prompt_lengths = lengths["prompt"] - 1  # its end token is not part of the prompt
    longest = prompt_lengths + (np.max([lengths[name] for name in responses], axis=0) if responses else most_new)
    fits = (longest <= context) & (prompt_lengths > 0)
    kept = table.filter(pa.array(fits))
    if not len(kept):
        raise InputError(f"none of {len(table):,} pairs fits the model's context of {context} tokens; raise model.context")
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in columns.items():
        lists = ids.filter(pa.array(fits)).to_pylist()
        write_ragged(folder, name, [row[:-1] for row in lists] if name == "prompt" else lists)
    np.save(folder / "split.npy", np.array([SPLITS.index(split) for split in kept["split"].to_pylist()], np.int8))
    return kept


def context_of(model: Artifact) -> int:
    return int(model.json("model/config.json")["max_position_embeddings"])


def pair_figures(out: Output, table: pa.Table, kept: pa.Table) -> None:
    """How many pairs of each split were used, and how many did not fit the context."""
    used = kept["split"].to_pylist()
    out.figures["rows"] = {split: used.count(split) for split in SPLITS}
    out.figures["rows_too_long"] = len(table) - len(kept)
    if len(table) > 1.2 * len(kept):
        out.warn(f"{len(table) - len(kept):,} of {len(table):,} pairs are longer than the model's context and were left out")


def fine_tune(
    out: Output, config: FineTuning, base: Artifact, pairs: Artifact, tokenizer: Artifact, calibration: Artifact | None
) -> pa.Table:
    """Train what the stage is for from the model of `base`; the rows of the pairs that fit its context."""
    kind, where = out.attempt.stage, place(out.run, calibration)
    check_ranks(config.method.batch_size, where.ranks, f"align.{kind}.batch_size")
    answers = ["response"] if kind == "sft" else ["chosen", "rejected"]
    table, data = pairs.table("sft.parquet" if kind == "sft" else "preferences.parquet"), out.scratch / "pairs"
    kept = write_pairs(data, table, tokenizer, answers, context_of(base))
    pair_figures(out, table, kept)
    method = config.method
    tokens = method.batch_size * sum(typical_width(data, name) for name in answers) * METHODS[kind].passes
    steps = method.max_steps or steps_in(method.seconds, tokens, 1, calibration, f"align.{kind}.max_steps")
    sizes: dict[str, Any] = {"batch_size": method.batch_size, "steps": steps, "unit": "steps"}
    train(out, kind, method, where, engine=config.engine, zero_stage=config.zero_stage, init=base.folder("model"), data=data, **sizes)
    return kept


def typical_width(data: Path, response: str | None = None) -> float:
    """The length to which sequences of a batch are padded, about: that which 19 of 20 do not exceed."""
    lengths = Ragged(data, "prompt").lengths() + (Ragged(data, response).lengths() if response else 0)
    return float(np.quantile(lengths, 0.95))
