"""pretrain: packed blocks to a language model, in a process of its own, resumed from its last checkpoint."""

import json
from dataclasses import asdict
from pathlib import Path

from contract.config import Frozen
from contract.errors import ConfigError, InputError
from contract.ledger import Ledger
from engine.stage import Output, stage
from models.config import ModelConfig
from store.artifact import Artifact
from store.storage import Storage
from tasks.calibrate import place, steps_in
from tasks.training_stages import check_ranks, digest_of_folder, train
from tokens.encoder import Encoder
from training.config import TrainConfig
from training.loader import write_blocks


class Pretraining(Frozen):
    train: TrainConfig
    model: ModelConfig


def _external(config: Pretraining, storage: Storage) -> dict[str, str]:
    """What lies in `init_from`."""
    return digest_of_folder(config.train.init_from)


@stage(version=1, config=lambda c: Pretraining(train=c.train, model=c.model), external=_external, exclusive=True)
def pretrain(blocks: Artifact, tokenizer: Artifact, config: Pretraining, out: Output, calibration: Artifact | None = None) -> Ledger:
    """model/ (config.json, model.safetensors), losses.jsonl (a line a step), validation.json (a look each).

    A step takes global_batch_tokens / context blocks; which ones is a pure function of the seed and the step.
    Raises ConfigError where batch, context and ranks do not fit, InputError where `init_from` is of another vocabulary.
    """
    context, settings = config.model.context, config.train
    if settings.global_batch_tokens % context:
        raise ConfigError(
            f"train.global_batch_tokens {settings.global_batch_tokens} is no multiple of model.context {context}; make it one"
        )
    batch_size = settings.global_batch_tokens // context
    where = place(out.run, calibration, is_long=True)
    check_ranks(batch_size, where.ranks, "train.global_batch_tokens / model.context")
    vocab_size = Encoder(tokenizer.read("tokenizer.json")).vocab_size
    data = out.scratch / "blocks"
    data.mkdir()
    num_blocks = write_blocks(data / "train.npy", [blocks.path(name) for name in blocks.names()], vocab_size)
    held = [blocks.path(name) for name in blocks.names("validation.parquet")]
    num_held = write_blocks(data / "validation.npy", held, vocab_size) if held else 0
    shape = config.model.shape(vocab_size)
    steps = settings.max_steps or steps_in(settings.seconds, settings.global_batch_tokens, 1, calibration, "train.max_steps")
    out.figures |= {
        "parameters": shape.num_parameters(),
        "blocks": num_blocks,
        "validation_blocks": min(num_held, settings.validation_blocks),
        "epochs": round(steps * batch_size / num_blocks, 4),
    }
    _warn_of_repeats(blocks, out)
    train(
        out,
        "pretrain",
        settings,
        where,
        engine=settings.engine,
        zero_stage=settings.zero_stage,
        shape=asdict(shape),
        init=_init(settings, vocab_size, context),
        data=data,
        batch_size=batch_size,
        steps=steps,
        unit="steps",
    )
    return Ledger()


def _warn_of_repeats(blocks: Artifact, out: Output) -> None:
    """Say so where the steps go through a domain more often than the mixture may: its text comes several times in the blocks already."""
    most = blocks.manifest["identity"]["config"].get("mix", {}).get("max_epochs")
    times = {domain: row["epochs"] * max(1.0, out.figures["epochs"]) for domain, row in blocks.figures.get("domains", {}).items()}
    often = {domain: count for domain, count in times.items() if most is not None and count > most * (1 + 1e-9)}
    if often:
        said = ", ".join(f"{domain} {count:.1f} times" for domain, count in sorted(often.items()))
        out.warn(f"the steps go through {said}, over mix.max_epochs ({most:g}): give more text, or fewer steps (train.max_steps)")
    out.figures["text_epochs"] = {domain: round(count, 4) for domain, count in times.items()}


def _init(settings: TrainConfig, vocab_size: int, context: int) -> str | None:
    """The folder to start from, held to the tokenizer and the blocks."""
    if settings.init_from is None:
        return None
    path = Path(settings.init_from) / "config.json"
    from models.conversion import shape_of  # loads torch, which only a run that trains needs

    found = shape_of(json.loads(path.read_text()), path)
    if found.vocab_size != vocab_size or found.context < context:
        raise InputError(
            f"train.init_from {settings.init_from} has a vocabulary of {found.vocab_size:,} and a context of {found.context:,}; "
            f"the tokenizer has {vocab_size:,} entries and blocks have {context:,} tokens. Use the tokenizer it was trained with"
        )
    return str(Path(settings.init_from).absolute())
