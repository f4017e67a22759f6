"""evaluate on real artifacts, small ones: what is scored, by whom, and that it is the same in every run."""

import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer

from contract.config import Frozen, RunOptions
from contract.errors import InputError
from contract.ledger import Ledger
from contract.schemas import TOKENS, document_id
from engine.installed_tools import tool
from engine.stage import Engine, Output, Stage, stage
from evaluation.config import EvaluateConfig
from evaluation.gold import Gold
from evaluation.items import ITEMS
from models.conversion import load_folder, save_folder
from models.shapes import Shape
from models.transformer import ScalarModel, Transformer, initialise
from store.artifact import Artifact
from store.root import open_root
from tasks.evaluate import evaluate
from tests.rounding import rounding, through
from tokens.config import TokenizerConfig
from tokens.trainer import train
from training.loader import global_batch

pytestmark = pytest.mark.slow

CONTEXT = 64
TEXTS = [path.read_text()[:1200] for path in sorted(Path(__file__).parents[2].glob("[cs]*/*.py")) if path.stat().st_size > 500]
CONFIG = EvaluateConfig(validation_tokens=1500, gold_prompts=12, max_new_tokens=8, samples=2, baseline_order=3, baseline_tokens=2000)


class Nothing(Frozen):
    pass


class Notes:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


def model_stage(name: str, seed: int, vocab_size: int, scalar: bool = False) -> Stage:
    def work(config: Nothing, out: Output) -> Ledger:
        shape = Shape(vocab_size, 32, 48, 2, 2, 1, CONTEXT)
        model = ScalarModel(shape) if scalar else Transformer(shape)
        initialise(model, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)  # far enough from uniform that two seeds differ
        save_folder(model, out.scratch / "model")
        for path in sorted((out.scratch / "model").iterdir()):
            out.file(f"model/{path.name}", path)
        out.figures["tokens"] = 3 * CONTEXT
        return Ledger()

    work.__name__ = name
    return stage(version=1, config=lambda c: Nothing())(work)


def input_stages() -> dict[str, Stage]:
    """Real stages that publish small inputs of the forms of the stages before evaluate."""
    tokenizer_json = train(TEXTS, TokenizerConfig(vocab_size=400))
    encoder = Tokenizer.from_str(tokenizer_json.decode())
    encoder.encode_special_tokens = True
    vocab_size = encoder.get_vocab_size()
    ids = [[*encoder.encode(text).ids, 0] for text in TEXTS]

    @stage(version=1, config=lambda c: Nothing())
    def tokenizer(config: Nothing, out: Output) -> Ledger:
        out.bytes("tokenizer.json", tokenizer_json)
        return Ledger()

    @stage(version=1, config=lambda c: Nothing())
    def tokens(config: Nothing, out: Output) -> Ledger:
        rows = [
            {
                "id": document_id("x", str(i)),
                "domain": "code" if i % 3 else "web",
                "split": "validation" if i % 2 else "train",
                "text_bytes": len(TEXTS[i].encode()),
                "num_tokens": len(row),
                "tokens": row,
            }
            for i, row in enumerate(ids)
        ]
        out.table("part-00000.parquet", pa.Table.from_pylist(rows[:7], TOKENS))
        out.table("part-00001.parquet", pa.Table.from_pylist(rows[7:], TOKENS))
        return Ledger()

    @stage(version=1, config=lambda c: Nothing())
    def blocks(config: Nothing, out: Output) -> Ledger:
        flat = np.concatenate([np.array(row, np.uint32) for row in ids])
        flat = flat[: len(flat) // (CONTEXT + 1) * (CONTEXT + 1)]
        table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(flat), CONTEXT + 1)})
        out.table("part-00000.parquet", table.slice(0, 4))
        out.table("part-00001.parquet", table.slice(4))
        out.figures["context"] = CONTEXT
        return Ledger()

    @stage(version=1, config=lambda c: Nothing())
    def items(config: Nothing, out: Output) -> Ledger:
        rows = [
            {
                "task": "continuation",
                "item": f"i{i}",
                "document": document_id("x", str(i // 2)),
                "group": "g",
                "domain": "web",
                "context": TEXTS[i][:80],
                "choices": [TEXTS[(i + k) % 10][90:120] for k in range(4)],
                "gold": 0,
            }
            for i in range(10)
        ]
        out.table("items.parquet", pa.Table.from_pylist(rows, ITEMS))
        return Ledger()

    @stage(version=1, config=lambda c: Nothing())
    def pairs(config: Nothing, out: Output) -> Ledger:
        sides = ["test"] * 20 + ["train"] * 5
        prompts = [
            {"prompt": f"def f{i}(a, b):", "names": ["a", "b"], "split": side, "group": f"g{i // 2}"} for i, side in enumerate(sides)
        ]
        preferences = [
            {
                "prompt": f"def f{i}(a, b):",
                "chosen": "Return the sum of a and b.",
                "rejected": "sum the b a" * (1 + i % 2),
                "kind": "shuffled" if i % 2 else "cut",
                "split": side,
                "group": f"g{i // 2}",
            }
            for i, side in enumerate(sides)
        ]
        out.table("prompts.parquet", pa.Table.from_pylist(prompts))
        out.table("preferences.parquet", pa.Table.from_pylist(preferences))
        arpa = out.scratch / "docstrings.arpa"
        text = "".join(" ".join(line.split()) + "\n" for line in TEXTS[0].splitlines() if line.strip())
        command = [str(tool("lmplz")), "-o", "3", "-S", "100M", "--discount_fallback", "--arpa", str(arpa)]
        subprocess.run(command, input=text.encode(), capture_output=True, check=True)
        out.file("gold/docstrings.arpa", arpa)
        out.json("gold/gold.json", {"middle": -2.0, "spread": 0.5})
        return Ledger()

    seeds = {"base": 1, "sft": 2, "ppo": 3, "dpo": 4}
    made = {"tokenizer": tokenizer, "tokens": tokens, "blocks": blocks, "items": items, "pairs": pairs}
    made |= {name: model_stage(name, seed, vocab_size) for name, seed in seeds.items()}
    return {**made, "reward": model_stage("reward", 5, vocab_size, scalar=True)}


class World:
    """A store with the inputs published, and an engine to run evaluate in."""

    def __init__(self, root: Path) -> None:
        self.storage, self.notes = open_root(str(root)), Notes()
        self.storage.probe()
        engine = self.engine(CONFIG)
        self.inputs = {role: engine.run(engine.plan(made, {})) for role, made in input_stages().items()}

    def engine(self, config: EvaluateConfig) -> Engine:
        whole = SimpleNamespace(evaluate=config, train=SimpleNamespace(seed=7))
        return Engine(self.storage, whole, RunOptions(workers=1), self.notes, "test")

    def run(self, *without: str, config: EvaluateConfig = CONFIG) -> Artifact:
        engine = self.engine(config)
        return engine.run(engine.plan(evaluate, {role: a for role, a in self.inputs.items() if role not in without}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def whole(world: World) -> Artifact:
    return world.run()


@pytest.fixture(scope="module")
def found(whole: Artifact) -> dict[str, Any]:
    return dict(whole.json("evaluation.json"))


@pytest.fixture(scope="module")
def alone(world: World) -> Artifact:
    """The pretrained model by itself, on the first document of each domain."""
    return world.run("sft", "pairs", "reward", "ppo", "dpo", config=EvaluateConfig(validation_tokens=1, samples=0, baselines=False))


def test_every_model_and_baseline_is_scored_on_the_same_documents(world: World, found: dict[str, Any]) -> None:
    bits = found["bits_per_byte"]
    assert list(bits["models"]) == ["base", "dpo", "ppo", "sft"] and list(bits["baselines"]) == ["bigram", "gzip", "kenlm"]
    rows = [row for name in world.inputs["tokens"].names() for row in world.inputs["tokens"].table(name).to_pylist()]
    rows = sorted((row for row in rows if row["split"] == "validation"), key=lambda row: row["id"])
    for domain in ("code", "web"):
        chosen, spent = [], 0
        for row in (row for row in rows if row["domain"] == domain):
            if spent < 1500:
                chosen.append(row)
                spent += row["num_tokens"]
        for scored in (*bits["models"].values(), bits["baselines"]["bigram"], bits["baselines"]["kenlm"]):
            cell = scored[domain]
            assert (cell["documents"], cell["tokens"], cell["bytes"]) == (len(chosen), spent, sum(row["text_bytes"] for row in chosen))
            assert cell["bits_per_byte"] == pytest.approx(cell["nats"] / math.log(2) / cell["bytes"])


def test_bits_per_byte_are_those_of_a_forward_pass_a_token(world: World, alone: Artifact) -> None:
    model = load_folder(world.inputs["base"].folder("model")).double()
    nats, longest, bound = 0.0, 0, 0.0
    rows = [row for name in world.inputs["tokens"].names() for row in world.inputs["tokens"].table(name).to_pylist()]
    cell = alone.json("evaluation.json")["bits_per_byte"]["models"]["base"]["web"]
    row = min((row for row in rows if row["split"] == "validation" and row["domain"] == "web"), key=lambda row: row["id"])
    for start in range(len(row["tokens"])):
        # as windows of 64 that move by 32: the token's history goes back to the start of the first window that holds it
        first = 0 if start < CONTEXT else min(CONTEXT + math.ceil((start + 1 - CONTEXT) / 32) * 32, len(row["tokens"])) - CONTEXT
        history = [0, *row["tokens"]][first : start + 1]
        longest = max(longest, len(history))
        with torch.no_grad():
            logits = model(torch.tensor([history]))[0, -1]
        nats -= float(logits.log_softmax(0)[row["tokens"][start]])
        bound += 2 * rounding(through(model.shape), logits)  # the stage scores in float32; in nats, of the target and of the others
    assert longest == CONTEXT and cell["nats"] == pytest.approx(nats, abs=bound)


def test_baselines_learn_from_the_blocks_that_training_saw(world: World, found: dict[str, Any]) -> None:
    assert found["bits_per_byte"]["baseline_tokens"] == 3 * CONTEXT  # what the base model's figures say
    count = sum(world.inputs["blocks"].rows(name) for name in world.inputs["blocks"].names())
    seen = np.concatenate([global_batch(7, step, count, 1) for step in range(3)])
    assert sorted(seen) == sorted(global_batch(7, 0, count, 3))


def test_gold_rewards_are_of_the_responses_that_are_published(world: World, whole: Artifact, found: dict[str, Any]) -> None:
    responses = whole.table("responses.parquet").to_pylist()
    gold = Gold.load(world.inputs["pairs"].folder("gold"))
    again = gold.score(
        [r["prompt"] for r in responses], [r["response"] for r in responses], [["a", "b"]] * 36, [r["ended"] for r in responses]
    )
    assert len(responses) == 3 * 12 and [r["gold"] for r in responses] == pytest.approx(again.tolist())
    for name in ("ppo", "dpo"):
        change = np.mean([r["gold"] for r in responses if r["model"] == name]) - np.mean(
            [r["gold"] for r in responses if r["model"] == "sft"]
        )
        gain = found["alignment"]["gains"][name]["gold"]
        assert gain["mean"] == pytest.approx(change) and gain["clusters"] == 6
    distance = {name: row["kl_per_token"] for name, row in found["alignment"]["models"].items()}
    assert distance["sft"] == pytest.approx(0, abs=1e-6) and distance["ppo"] > 0.01
    assert [len(sample["responses"]) for sample in found["alignment"]["samples"]] == [3, 3]


def test_reward_model_is_judged_on_test_pairs_by_kind(found: dict[str, Any]) -> None:
    kinds = found["reward_model"]
    assert {kind: row["pairs"] for kind, row in kinds.items()} == {"all": 20, "cut": 10, "shuffled": 10}
    assert kinds["shuffled"]["tokens_rejected"] > kinds["cut"]["tokens_rejected"]


def test_lm_eval_answers_every_item_for_every_model(whole: Artifact, found: dict[str, Any]) -> None:
    answers = whole.table("answers.parquet")
    assert len(answers) == 4 * 10
    for name, tasks in found["tasks"].items():
        right = [row["acc_norm"] for row in answers.to_pylist() if row["model"] == name]
        assert tasks["continuation"]["acc_norm"]["mean"] == pytest.approx(np.mean(right))
        assert tasks["continuation"]["documents"] == 5


def test_claims_are_judged_and_headlines_shown(whole: Artifact, found: dict[str, Any]) -> None:
    names = {claim["claim"].split()[0] for claim in found["claims"]}
    assert {"bits", "multiple", "reward", "ppo", "dpo"} <= names
    assert whole.figures["base_bits_per_byte"] == round(found["bits_per_byte"]["models"]["base"]["all"]["bits_per_byte"], 4)
    lost = [claim["claim"] for claim in found["claims"] if not claim["holds"]]
    assert any(claim.startswith("bits per byte at least 15 %") for claim in lost)  # weights are random
    assert whole.figures["claims_held"] == whole.figures["claims"] - len(lost)


def test_the_same_inputs_in_any_order_give_the_same_digest(world: World, whole: Artifact, tmp_path: Path) -> None:
    again = World(tmp_path)
    again.inputs = dict(reversed(again.inputs.items()))
    assert again.run().digest == whole.digest


def test_a_pretrained_model_alone_is_scored_alone(alone: Artifact) -> None:
    found = alone.json("evaluation.json")
    assert sorted(found) == ["bits_per_byte", "claims", "tasks"] and list(found["bits_per_byte"]["models"]) == ["base"]
    assert alone.names("") == ["answers.parquet", "evaluation.json"]


def test_what_cannot_be_scored_is_a_sentence(world: World) -> None:
    with pytest.raises(InputError, match="no test prompt fits 1 tokens"):
        world.run(config=CONFIG.model_copy(update={"max_new_tokens": 63, "baselines": False}))


def test_no_validation_text_is_the_users_to_repair(world: World) -> None:
    engine = world.engine(CONFIG)

    @stage(version=2, config=lambda c: Nothing())
    def tokens(config: Nothing, out: Output) -> Ledger:
        out.table("part-00000.parquet", TOKENS.empty_table())
        return Ledger()

    empty = engine.run(engine.plan(tokens, {}))
    with pytest.raises(InputError, match="no validation documents"):
        engine.run(engine.plan(evaluate, world.inputs | {"tokens": empty}))
