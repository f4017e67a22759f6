"""Model folders: round trip, transformers' own folders, and what is refused."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from contract.errors import InputError
from models.conversion import load_folder, save_folder
from models.shapes import Shape
from models.transformer import ScalarModel, Transformer, initialise
from tests.rounding import in_float64, rounding, through


def model_of(tied: bool = True) -> Transformer:
    model = Transformer(Shape(61, 48, 80, 2, 6, 2, 32, rope_theta=5000.0, norm_eps=1e-6, tie_embeddings=tied))
    initialise(model, 1)
    return model


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_loads_as_it_was(tied: bool, tmp_path: Path) -> None:
    model = model_of(tied)
    save_folder(model, tmp_path)
    loaded = load_folder(tmp_path)
    assert loaded.shape == model.shape
    assert isinstance(loaded, Transformer)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_scalar_model_loads_as_one(tmp_path: Path) -> None:
    scalar = ScalarModel.from_transformer(model_of(), seed=2)
    save_folder(scalar, tmp_path)
    loaded = load_folder(tmp_path)
    assert isinstance(loaded, ScalarModel)
    assert torch.equal(loaded.score.weight, scalar.score.weight)


def test_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_folder(model_of(), tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_bfloat16_weights_are_saved_in_float32(tmp_path: Path) -> None:
    save_folder(model_of().bfloat16(), tmp_path)
    assert {p.dtype for p in load_folder(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize("tied", [True, False])
def test_folder_written_by_transformers_loads_sharded_or_not(tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": 700.0, "rope_type": "default"},
    )
    llama = LlamaForCausalLM(config).eval()
    tokens = torch.arange(20)[None]
    for name, size in (("whole", "1GB"), ("shards", "20KB")):
        llama.save_pretrained(tmp_path / name, max_shard_size=size)
        ours = load_folder(tmp_path / name)
        with torch.no_grad(), in_float64():
            want = LlamaForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64)(tokens).logits
            torch.testing.assert_close(ours.double()(tokens), want, rtol=0, atol=rounding(through(ours.shape), want, torch.float64))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert ours.shape.rope_theta == 700.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type is 'llama3'"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..* has shape none"),
        ({"vocab_size": 60}, r"embed_tokens\.weight has shape \(61, 48\), config\.json says \(60, 48\)"),
    ],
)
def test_folder_that_is_no_plain_llama_is_refused_by_name(changes: dict, said: str, tmp_path: Path) -> None:
    save_folder(model_of(), tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=said):
        load_folder(tmp_path)


def test_missing_and_cut_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        load_folder(tmp_path)
    save_folder(model_of(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_folder(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_folder(tmp_path)


class Hostile:
    """A pickle of it leaves a file where it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_pickle_is_not_read_whatever_its_name(tmp_path: Path) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    save_folder(model_of(), folder)
    pickled = pickle.dumps(Hostile(trace))
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):  # beside the weights: passed over
        (folder / name).write_bytes(pickled)
    load_folder(folder)
    (folder / "model.safetensors").write_bytes(pickled)
    with pytest.raises(InputError, match=r"model\.safetensors: .*a folder of a model holds config\.json and model\.safetensors"):
        load_folder(folder)
    assert not trace.exists()
    pickle.loads(pickled)
    assert trace.exists(), "this pickle does what it is to do"


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "deeper/model.safetensors", "..", "pytorch_model.bin"])
def test_an_index_that_names_what_is_no_safetensors_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    """digest_of_folder would not see it, so the artifact would bear the name of other weights."""
    folder = tmp_path / "model"
    save_folder(model_of(), folder)
    (folder / "deeper").mkdir()
    for place in (folder / "deeper", tmp_path):
        (place / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(InputError, match=rf"weight_map names {re.escape(name)}, which is no safetensors file of this folder"):
        load_folder(folder)
