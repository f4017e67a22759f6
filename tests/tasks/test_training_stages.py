"""The five training stages in a row, by the engine, on small real inputs; and what they refuse."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contract.config import Frozen, RunOptions
from contract.errors import ConfigError, InputError
from contract.ledger import Ledger
from contract.schemas import blocks_schema
from engine.stage import Engine, Output, Stage, stage
from evaluation.gold import MODEL, SETTINGS
from models.config import ModelConfig
from models.conversion import load_folder
from models.transformer import ScalarModel, Transformer
from store.artifact import Artifact
from store.storage import Storage
from tasks.dpo import dpo
from tasks.ppo import ppo
from tasks.pretrain import pretrain
from tasks.reward import reward
from tasks.sft import sft
from tokens.config import MixConfig, TokenizerConfig
from tokens.encoder import Encoder
from tokens.trainer import train
from training.config import AlignConfig, DpoConfig, FineTuneConfig, PpoConfig, TrainConfig

CONTEXT = 64
NOUNS, VERBS = ("list", "array", "frame", "tree", "number"), ("Return", "Sort", "Copy", "Check")
ARPA = """\\data\\
ngram 1=4
ngram 2=1

\\1-grams:
-1.0	<unk>	0
0	<s>	-0.3
-1.0	</s>	0
-0.6	the	-0.2

\\2-grams:
-0.4	<s> the

\\end\\
"""


class Notes:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.states: list[tuple[str, str]] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(f"{stage}: {text}")

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None:
        self.states.append((artifact.stage, state))


class Nothing(Frozen):
    pass


class Mixed(Frozen):
    mix: MixConfig = MixConfig()


def questions(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """A signature and its docstring; one in a hundred is too long for any context here."""
    rows = []
    for i in range(count):
        verb, noun, name = VERBS[rng.integers(4)], NOUNS[rng.integers(5)], NOUNS[rng.integers(5)]
        prompt = f"def {verb.lower()}_{noun}({name}):\n" * (60 if i % 100 == 99 else 1)
        split = ("train", "train", "train", "validation", "test")[i % 5]
        rows.append(
            {"prompt": prompt, "response": f"{verb} the {noun} of the {name}.", "names": [name], "split": split, "group": f"g{i // 2}"}
        )
    return rows


def inputs() -> list[Stage]:
    rows = questions(np.random.default_rng(3), 100)
    tokenizer_json = train([row["prompt"] + row["response"] for row in rows], TokenizerConfig(vocab_size=300))

    @stage(version=1, config=lambda c: Nothing())
    def tokenizer(config: Nothing, out: Output) -> Ledger:
        out.bytes("tokenizer.json", tokenizer_json)
        return Ledger()

    @stage(version=1, config=lambda c: Mixed())
    def blocks(config: Mixed, out: Output) -> Ledger:
        out.figures["domains"] = {"web": {"epochs": 4.2}, "books": {"epochs": 4.0}}
        ids = Encoder(tokenizer_json).encode(pa.array([row["response"] for row in rows * 8])).flatten().to_numpy()
        whole = ids[: len(ids) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
        for name, part in (("part-00000", whole[:20]), ("part-00001", whole[20:-4]), ("validation", whole[-4:])):
            tokens = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel(), pa.uint32()), CONTEXT + 1)
            empty: list[list[int]] = [[] for _ in part]
            columns = [tokens, pa.array(empty, pa.list_(pa.int32())), pa.array(empty, pa.list_(pa.binary(16)))]
            out.table(f"{name}.parquet", pa.table(columns, schema=blocks_schema(CONTEXT)))
        return Ledger()

    @stage(version=1, config=lambda c: Nothing())
    def pairs(config: Nothing, out: Output) -> Ledger:
        keep = {"sft": ["prompt", "response", "split", "group"], "prompts": ["prompt", "names", "split", "group"]}
        for name, columns in keep.items():
            out.table(f"{name}.parquet", pa.Table.from_pylist([{key: row[key] for key in columns} for row in rows]))
        wrong = [
            {**row, "chosen": row["response"], "rejected": rejected, "kind": kind}
            for row in rows
            for kind, rejected in (("shuffled", " ".join(sorted(row["response"].split()))), ("cut", row["response"][:9]))
        ]
        out.table("preferences.parquet", pa.Table.from_pylist(wrong).select(["prompt", "chosen", "rejected", "kind", "split", "group"]))
        out.bytes(f"gold/{MODEL}", ARPA.encode())
        out.json(f"gold/{SETTINGS}", {"middle": -1.0, "spread": 0.2, "docstrings": 1})
        return Ledger()

    return [tokenizer, blocks, pairs]


def config(**train: Any) -> SimpleNamespace:
    tune = FineTuneConfig(max_steps=6, batch_size=8, validation_every=3, learning_rate=0.01)
    align = AlignConfig(
        methods=("ppo", "dpo"),
        engine="plain",
        sft=tune,
        reward=tune,
        dpo=DpoConfig(max_steps=3, batch_size=8, validation_every=3),
        ppo=PpoConfig(iterations=2, batch_size=8, epochs=2, max_new_tokens=8, validation_every=1, validation_prompts=8),
    )
    settings = {
        "engine": "deepspeed",
        "max_steps": 8,
        "global_batch_tokens": 4 * CONTEXT,
        "learning_rate": 0.01,
        "validation_every": 4,
        **train,
    }
    model = ModelConfig(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1, context=CONTEXT)
    return SimpleNamespace(train=TrainConfig(**settings | train), model=model, align=align)


def engine(storage: Storage, config: SimpleNamespace, **run: Any) -> Engine:
    return Engine(storage, config, RunOptions(checkpoint_every_steps=2, **run), Notes(), "toy")


def call(engine: Engine, stage: Stage, **inputs: Artifact) -> Artifact:
    return engine.run(engine.plan(stage, inputs))


def prepared(engine: Engine) -> dict[str, Artifact]:
    return {made.name: call(engine, made) for made in inputs()}


@pytest.mark.slow
def test_all_stages_train_publish_and_are_cached(local: Storage):
    one = engine(local, config())
    given = prepared(one)
    shared = {"pairs": given["pairs"], "tokenizer": given["tokenizer"]}
    base = call(one, pretrain, blocks=given["blocks"], tokenizer=given["tokenizer"])
    (said,) = [text for text in one.journal.warnings if "max_epochs" in text]  # type: ignore[attr-defined]
    assert said.startswith("pretrain: the steps go through web 4.2 times, over mix.max_epochs (4): give more text, or fewer steps")
    assert base.figures["text_epochs"] == {"web": 4.2, "books": 4.0}
    tuned = call(one, sft, base=base, **shared)
    judge = call(one, reward, base=tuned, **shared)
    policy = call(one, ppo, base=tuned, reward=judge, **shared)
    direct = call(one, dpo, base=tuned, **shared)

    for artifact, kind in ((base, Transformer), (tuned, Transformer), (judge, ScalarModel), (policy, Transformer), (direct, Transformer)):
        assert type(load_folder(artifact.folder("model"))) is kind
        lines = [json.loads(line) for line in artifact.read("losses.jsonl").splitlines()]
        assert [line["step"] for line in lines] == list(range(len(lines))) and all(line["loss"] is not None for line in lines)
        assert {"step", "loss", "lr", "tokens"} <= set(lines[0]) and lines[-1]["tokens"] == artifact.figures["tokens"]
        assert [record.name for record in artifact.files.values() if not record.content] == [], "all of it is content: none holds a time"
        assert artifact.manifest["execution"]["ranks"] == 1
    assert base.figures["validation"][0]["loss"] > base.figures["validation_loss"] + 0.5, "it learns"
    assert tuned.figures["rows"] == {"train": 60, "validation": 20, "test": 19} and tuned.figures["rows_too_long"] == 1
    accuracy = judge.figures["accuracy"]
    assert set(accuracy) == {"shuffled", "cut", "all"} and accuracy["all"]["n"] == 38 and accuracy["all"]["clusters"] <= 19
    assert accuracy["cut"]["low"] <= accuracy["cut"]["mean"] <= accuracy["cut"]["high"]
    assert policy.figures["chosen_by"] == "gold" and [look["step"] for look in policy.figures["validation"]] == [0, 1, 2]
    assert {"reward", "gold", "kl_per_token", "length", "ended"} <= set(policy.figures["validation"][0])
    assert policy.figures["validation"][0]["kl_per_token"] == pytest.approx(0, abs=1e-6)

    again = engine(local, config())
    call(again, ppo, base=tuned, reward=judge, **shared)
    assert again.journal.states == [("ppo", "cached")]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_continued_pretraining_starts_from_the_folder_and_knows_its_bytes(local: Storage, tmp_path: Path):
    one = engine(local, config(engine="plain"))
    given = prepared(one)
    shared = {"blocks": given["blocks"], "tokenizer": given["tokenizer"]}
    first = call(one, pretrain, **shared)
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(first.read(f"model/{name}"))
    two = engine(local, config(engine="plain", init_from=str(folder)))
    second = call(two, pretrain, **shared)
    assert second.figures["validation"][0]["loss"] == pytest.approx(first.figures["validation_loss"], abs=1e-6)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert two.plan(pretrain, shared).fingerprint != second.fingerprint
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for held in (tmp_path, folder):
        with pytest.raises(InputError, match=r"no config\.json and model.safetensors; .*\.bin, .* are not read"):
            engine(local, config(init_from=str(held))).plan(pretrain, shared)


@pytest.mark.parametrize(
    ("change", "run", "sentence"),
    [
        ({"global_batch_tokens": CONTEXT + 1}, {}, "no multiple of model.context 64"),
        ({"global_batch_tokens": 3 * CONTEXT}, {"ranks": 2}, "run.ranks is 2 and a step has 3 rows"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(local: Storage, change: dict, run: dict, sentence: str):
    one = engine(local, config(**change), **run)
    given = prepared(one)
    with pytest.raises(ConfigError, match=sentence):
        call(one, pretrain, blocks=given["blocks"], tokenizer=given["tokenizer"])


def test_config_refuses_what_deepspeed_would_do_otherwise():
    with pytest.raises(ValueError, match="needs zero_stage 0 and grad_clip 0"):
        TrainConfig(engine="deepspeed", optimizer="muon")
    assert TrainConfig(engine="deepspeed", optimizer="muon", zero_stage=0, grad_clip=0.0).recipe().optimizer == "muon"
    with pytest.raises(ValueError, match="embedding_learning_rate has an effect under optimizer: muon only"):
        TrainConfig(embedding_learning_rate=0.1)
    with pytest.raises(ValueError, match=r"align.export is dpo, align.methods make ppo, pretrain, sft"):
        AlignConfig(methods=("ppo",), export="dpo")
