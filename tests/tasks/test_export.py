"""export on real artifacts, small ones: what a stranger loads, what is refused, and what the card says."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from contract.config import Frozen, RunOptions
from contract.errors import InputError, IntegrityError
from contract.ledger import Count, Ledger
from contract.schemas import blocks_schema
from engine.stage import Engine, Output, Stage, stage
from evaluation.claims import MAX_LOGIT_DIFFERENCE
from evaluation.config_export import ExportConfig
from filters.config import FiltersConfig
from models.conversion import load_folder, save_folder
from models.shapes import Shape
from models.transformer import ScalarModel, Transformer, initialise
from store.artifact import Artifact
from store.root import open_root
from store.storage import Storage
from tasks.export import FIXED_TEXTS, export, prompts
from tasks.export_check import load_by_transformers, same_greedy, verify
from tests.rounding import rounding
from tokens.config import TokenizerConfig
from tokens.trainer import train

CONTEXT = 64
CORPUS = [path.read_text() for path in sorted(Path(__file__).parents[2].glob("contract/*.py"))]
FIGURES = {
    "bits_per_byte": {"all": {"mean": 2.25, "low": 2.125, "high": 2.375, "se": 0.0625}, "domains": {"web": 2.5}},
    "documents": 1234,
    "samples": ["not for the card"],
}


class Nothing(Frozen):
    pass


class Quiet:
    """A journal for a run that nobody watches."""

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None: ...
    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


@pytest.fixture(scope="module")
def tokenizer_json() -> bytes:
    return train(CORPUS, TokenizerConfig(vocab_size=500))


def model_of(tokenizer_json: bytes, tied: bool = True) -> Transformer:
    """Weights large enough that texts differ by prompt."""
    vocab_size = Tokenizer.from_str(tokenizer_json.decode()).get_vocab_size()
    model = Transformer(Shape(vocab_size, 32, 64, 2, 4, 2, CONTEXT, tie_embeddings=tied))
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def upstream(tokenizer_json: bytes, trained: Transformer | ScalarModel) -> dict[str, Stage]:
    """Real stages that publish the five inputs."""

    @stage(version=1, config=lambda c: Nothing())
    def ppo(config: Nothing, out: Output) -> Ledger:
        save_folder(trained, out.scratch / "model")
        for path in sorted((out.scratch / "model").iterdir()):
            out.file(f"model/{path.name}", path)
        return Ledger()

    @stage(version=1, config=lambda c: Nothing())
    def train_tokenizer(config: Nothing, out: Output) -> Ledger:
        out.bytes("tokenizer.json", tokenizer_json)
        return Ledger()

    @stage(version=1, config=lambda c: Nothing())
    def ingest(config: Nothing, out: Output) -> Ledger:
        return Ledger(Count(1007, 1000, quarantined=7))

    @stage(version=1, config=lambda c: Nothing())
    def mix(config: Nothing, out: Output) -> Ledger:
        ids = Tokenizer.from_str(tokenizer_json.decode()).encode(" ".join(CORPUS)).ids
        rows = [ids[i : i + CONTEXT + 1] for i in range(0, 40 * 50, 40)]
        table = pa.table({"tokens": rows, "starts": [[0]] * 50, "documents": [[b"0" * 16]] * 50}, schema=blocks_schema(CONTEXT))
        out.table("validation.parquet", table)
        splits, licenses = ["train"] * 3 + ["test"], ["MIT", "MIT | <b>x</b>\nGPL", None, "secret"]
        domains = ["web", "web", "code", "code"]
        out.table("curated/part-00000.parquet", pa.table({"domain": domains, "license": licenses, "split": splits}))
        out.figures["domains"] = {"web": {"available": 5000, "weight": 1.0, "asked": 7500, "got": 7500, "epochs": 1.5}}
        return Ledger(Count(400, 380, dropped={"test_split": 20}), Count(9000, 8000, dropped={"remainder": 1000}))

    @stage(version=1, config=lambda c: Nothing())
    def evaluate(config: Nothing, out: Output) -> Ledger:
        out.figures |= FIGURES
        return Ledger()

    return {"model": ppo, "tokenizer": train_tokenizer, "documents": ingest, "blocks": mix, "evaluation": evaluate}


def run(storage: Storage, tokenizer_json: bytes, trained: Transformer | ScalarModel, filters: FiltersConfig | None = None) -> Artifact:
    config = SimpleNamespace(export=ExportConfig(name="pig-iron"), filters=filters or FiltersConfig())
    engine = Engine(storage, config, RunOptions(workers=1), Quiet(), "test")
    given = {role: engine.run(engine.plan(made, {})) for role, made in upstream(tokenizer_json, trained).items()}
    return engine.run(engine.plan(export, given))


@pytest.fixture(scope="module")
def exported(tokenizer_json: bytes, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    root = tmp_path_factory.mktemp("root")
    storage = open_root(root.as_uri())
    return run(storage, tokenizer_json, model_of(tokenizer_json))


def test_a_stranger_loads_the_folder_and_generates(exported: Artifact, tokenizer_json: bytes) -> None:
    folder = exported.folder("export")
    tokenizer, llama = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    text = "class Frozen(BaseModel):"
    made = llama.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8)
    assert tokenizer.decode(made[0]).startswith(text)
    assert made.shape[1] > len(tokenizer(text)["input_ids"])
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|endoftext|>", "<|pad|>")
    assert (llama.generation_config.eos_token_id, llama.generation_config.pad_token_id) == (0, 1)


def test_the_folder_holds_the_named_files_and_is_content(exported: Artifact) -> None:
    names = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert exported.names("") == [f"export/{name}" for name in names]
    assert all(exported.record(name).content for name in exported.names(""))


def test_the_check_is_in_the_figures(exported: Artifact) -> None:
    assert exported.figures["max_logit_difference"] <= MAX_LOGIT_DIFFERENCE
    assert exported.figures["greedy_prompts"] == 50
    assert exported.figures["greedy_tokens"] > 50
    assert exported.figures["exported"] == "ppo"


def test_the_same_inputs_give_the_same_digest(exported: Artifact, tokenizer_json: bytes, tmp_path: Path) -> None:
    again = run(open_root(tmp_path.as_uri()), tokenizer_json, model_of(tokenizer_json))
    assert again.digest == exported.digest


def test_it_exports_from_and_to_s3(s3: Storage, exported: Artifact, tokenizer_json: bytes) -> None:
    assert run(s3, tokenizer_json, model_of(tokenizer_json)).digest == exported.digest


def test_card_tells_data_figures_licences_and_limits(exported: Artifact) -> None:
    _, front, card = exported.read("export/README.md").decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "language": ["en"],
        "library_name": "transformers",
        "license": "other",
        "pipeline_tag": "text-generation",
    }
    assert "# pig-iron" in card
    assert "1,000 documents were read, 7 more could not be" in card
    assert "| web | 2 | 5,000 | 7,500 | 1.50 |" in card
    assert "| code | 1 | 0 | 0 | 0.00 |" in card
    assert "| all | 2.25 (2.125 to 2.375) |" in card
    assert "| domains / web | 2.5 |" in card
    assert "| documents | 1,234 |" in card
    assert "| MIT | 1 |" in card and "| not stated | 1 |" in card
    assert "MIT \\| &lt;b>x&lt;/b> GPL" in card  # a stranger's metadata stays in its cell
    assert "secret" not in card and "not for the card" not in card
    assert "lid.176" in card and "CC BY-SA 3.0" in card
    assert "optimised against a learned reward" in card
    assert "## Limits" in card


def test_card_names_the_language_model_only_where_a_rule_used_it(tokenizer_json: bytes, tmp_path: Path) -> None:
    domains = ("web", "books", "academic", "reference", "conversation", "code")
    select = {"default": {"min_language_probability": None}, "domains": {name: {"min_language_probability": None} for name in domains}}
    artifact = run(open_root(tmp_path.as_uri()), tokenizer_json, model_of(tokenizer_json), FiltersConfig.model_validate({"select": select}))
    card = artifact.read("export/README.md").decode()
    assert "lid.176" not in card and "language:" not in card


def test_a_reward_model_is_refused_by_name(tokenizer_json: bytes, tmp_path: Path) -> None:
    scalar = ScalarModel.from_transformer(model_of(tokenizer_json), seed=1)
    with pytest.raises(InputError, match=r"ppo@[0-9a-f]{12} holds a scalar model"):
        run(open_root(tmp_path.as_uri()), tokenizer_json, scalar)


@pytest.fixture
def folder(exported: Artifact, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported.folder("export"), tmp_path / "export"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"rms_norm_eps": 1e-2}, "logits differ"),
        ("config.json", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "rope_theta": 500.0}, "logits differ"),
        ("tokenizer_config.json", {"split_special_tokens": False}, "exported tokenizer makes"),
        ("tokenizer_config.json", {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, "token_type_ids"),
    ],
)
def test_a_folder_that_differs_from_the_model_is_not_published(
    file: str, changes: dict, said: str, exported: Artifact, folder: Path
) -> None:
    model = load_folder(exported.folder("export"))
    assert isinstance(model, Transformer)
    edit(folder / file, **changes)
    with pytest.raises(IntegrityError, match=said):
        verify(model, folder, list(FIXED_TEXTS))


def altered(exported: Artifact, folder: Path, change: Callable[[Transformer], None]) -> tuple[Transformer, Any, Any, list]:
    """The model; `folder` with changed weights as transformers loads it; and prompts."""
    model, other = load_folder(exported.folder("export")), load_folder(folder)
    assert isinstance(model, Transformer) and isinstance(other, Transformer)
    with torch.no_grad():
        change(other)
    save_folder(other, folder)
    llama, tokenizer = load_by_transformers(folder)
    return model, llama, tokenizer, [(text, tokenizer(text)["input_ids"]) for text in FIXED_TEXTS]


def test_continuations_that_part_are_an_error(exported: Artifact, folder: Path) -> None:
    def change(other: Transformer) -> None:
        other.model.layers[1].mlp.down_proj.weight.mul_(-1)

    with pytest.raises(IntegrityError, match="the exported folder writes"):
        same_greedy(*altered(exported, folder, change))


def test_continuations_that_part_at_a_tie_are_counted(exported: Artifact, folder: Path) -> None:
    """Two best logits within the tolerance, in one order in the model and in the other in the folder."""

    def change(other: Transformer) -> None:
        other.lm_head.weight[twin] *= (1 + step) / (1 - step)

    model = load_folder(exported.folder("export"))
    assert isinstance(model, Transformer)
    text = FIXED_TEXTS[0]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    best = int(logits.argmax())
    twin = (best + 1) % len(logits)
    apart = MAX_LOGIT_DIFFERENCE / 2
    assert 0 < rounding(2 * model.shape.hidden_size, logits[best]) < apart  # no processor's sums turn the two
    step = apart / float(logits[best])
    untied = Transformer(replace(model.shape, tie_embeddings=False))
    untied.load_state_dict(model.state_dict() | {"lm_head.weight": model.model.embed_tokens.weight.detach().clone()})
    with torch.no_grad():
        untied.lm_head.weight[twin] = untied.lm_head.weight[best] * (1 - step)
    save_folder(untied, folder)
    _, llama, tokenizer, _ = altered(exported, folder, change)
    figures = same_greedy(untied, llama, tokenizer, [(text, ids)])
    assert figures["greedy_ties"] == 1


def test_prompts_are_the_fixed_texts_and_beginnings_of_validation_blocks(exported: Artifact, tokenizer_json: bytes, tmp_path: Path) -> None:
    storage = open_root(tmp_path.as_uri())
    engine = Engine(storage, SimpleNamespace(), RunOptions(workers=1), Quiet(), "test")
    blocks = engine.run(engine.plan(upstream(tokenizer_json, model_of(tokenizer_json))["blocks"], {}))
    texts = prompts(tokenizer_json, blocks, 20)
    assert len(texts) == 20
    assert texts[: len(FIXED_TEXTS)] == list(FIXED_TEXTS)
    assert all(text in " ".join(CORPUS) for text in texts[len(FIXED_TEXTS) :])
