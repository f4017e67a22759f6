"""Model folders: config.json and model.safetensors as transformers' Llama reads and writes them.

Every parameter already has Llama's name (models/transformer.py), so saving is a dump and loading checks names and shapes.
A folder that transformers saved (one safetensors file or sharded) loads too, as long as it is a plain Llama.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from contract.errors import InputError
from models.transformer import ScalarModel, Shape, Transformer

LANGUAGE_MODEL = "LlamaForCausalLM"
SCALAR_MODEL = "LlamaForSequenceClassification"


def save_folder(model: Transformer | ScalarModel, folder: Path, end_id: int = 0, pad_id: int = 1) -> None:
    """Write config.json and model.safetensors (fp32, names sorted by safetensors): the same weights give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(model.shape, isinstance(model, ScalarModel), end_id, pad_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    weights = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def save_tokenizer(tokenizer_json: bytes, folder: Path, context: int, end_id: int = 0, pad_id: int = 1) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json: what AutoTokenizer and `generate` look for.

    `split_special_tokens`: a literal control token in a text stays text, as it did in training. `model_input_names` leaves
    token_type_ids out, which `generate` would refuse. Padding is on the left, where `generate` needs it. No length is among
    the generation settings: one there makes transformers warn at, or overrule, what the caller asks for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    special = {token["id"]: token["content"] for token in json.loads(tokenizer_json)["added_tokens"]}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[end_id],
        "eos_token": special[end_id],
        "pad_token": special[pad_id],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    generation_config = {"bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": pad_id, "do_sample": False}
    for name, value in (("tokenizer_config.json", tokenizer_config), ("generation_config.json", generation_config)):
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def load_folder(folder: Path) -> Transformer | ScalarModel:
    """The model of a folder, in fp32 on the CPU.

    Raises InputError, naming file and field, for a folder that is not a plain Llama or whose weights do not fit its config.
    """
    config = _read_json(folder / "config.json")
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in (LANGUAGE_MODEL, SCALAR_MODEL):
        raise InputError(f"{folder / 'config.json'}: architectures is {architecture}; {LANGUAGE_MODEL} or {SCALAR_MODEL} is read here")
    shape = shape_of(config, folder / "config.json")
    with torch.device("meta"):  # nothing is drawn that the file replaces
        model = Transformer(shape) if architecture == LANGUAGE_MODEL else ScalarModel(shape)
    weights = _read_weights(folder)
    if architecture == LANGUAGE_MODEL and shape.tie_embeddings:
        weights.pop("lm_head.weight", None)  # older files repeat the tied table
    _check_names(model, weights, folder)
    # Copies: what safetensors returns may be the file's own pages, and a trainer writes into its weights.
    model.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in weights.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def llama_config(shape: Shape, scalar: bool, end_id: int, pad_id: int) -> dict:
    """config.json of transformers' Llama. Keys of both its generations (`rope_theta`, `rope_parameters`) are written."""
    config = {
        "architectures": [SCALAR_MODEL if scalar else LANGUAGE_MODEL],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": end_id,
        "dtype": "float32",
        "eos_token_id": end_id,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pad_token_id": pad_id,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_embeddings,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
    if scalar:  # one label: id2label is what transformers counts
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return config


def shape_of(config: dict, path: Path) -> Shape:
    """The Shape of a Llama config.json. Raises InputError for what this decoder does not compute."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    refused = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "rope_type": rope.get("rope_type", "default") != "default",
    }
    for key, is_refused in refused.items():
        if is_refused:
            raise InputError(
                f"{path}: {key} is {config.get(key, rope.get(key))!r}, which this decoder does not compute; start from a plain Llama"
            )
    try:
        shape = Shape(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            context=config["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tie_embeddings=config.get("tie_word_embeddings", False),
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: {error} is missing or does not fit; it is not the config of a Llama") from error
    if config.get("head_dim") not in (None, shape.head_size):
        raise InputError(
            f"{path}: head_dim is {config['head_dim']}, hidden_size / num_attention_heads is {shape.head_size}; they must be equal here"
        )
    return shape


def _check_names(model: torch.nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{folder}: weight {name} has shape {found.get(name, 'none')}, config.json says {wanted.get(name, 'none')}; "
                "weights and config are not of one model"
            )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """From safetensors beside config.json alone: `train.init_from` has the digests of these, and a pickle runs code when it is read."""
    index = folder / "model.safetensors.index.json"
    shards = _read_json(index).get("weight_map", {}).values() if index.is_file() else ["model.safetensors"]
    weights: dict[str, torch.Tensor] = {}
    for name in sorted({str(shard) for shard in shards}):
        if "/" in name or not name.endswith(".safetensors"):
            raise InputError(f"{index}: weight_map names {name}, which is no safetensors file of this folder; save the model again")
        try:
            weights |= load_file(folder / name)
        except (FileNotFoundError, SafetensorError) as error:
            raise InputError(f"{folder / name}: {error}; a folder of a model holds config.json and model.safetensors") from error
    return weights


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; a folder of a model holds config.json and model.safetensors") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON ({error}); save the model again") from error
