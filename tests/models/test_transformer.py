"""What the decoder promises beyond its formula: masks, positions, the scalar head, initial weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from models.config import ModelConfig
from models.conversion import save_folder
from models.shapes import Shape
from models.transformer import Cache, ScalarModel, Transformer, initialise
from tests.rounding import in_float64, rounding, through

SHAPE = Shape(61, 48, 80, 2, 6, 2, 32)
PAD = 1


def model_of(shape: Shape = SHAPE, seed: int = 1) -> Transformer:
    model = Transformer(shape)
    initialise(model, seed)
    return model


def equal(found: torch.Tensor, want: torch.Tensor) -> None:
    assert found.dtype == want.dtype == torch.float64
    torch.testing.assert_close(found, want, rtol=0, atol=rounding(through(SHAPE), want, torch.float64))


def tokens_of(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(2, SHAPE.vocab_size, (rows, columns), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_real_logit_and_makes_no_nan(side: str) -> None:
    model, tokens = model_of().double(), tokens_of(1, 9)
    padding = torch.full((1, 6), PAD)
    parts = (padding, tokens) if side == "left" else (tokens, padding)
    padded = torch.cat(parts, 1)
    mask = torch.cat([torch.ones_like(x) if x is tokens else torch.zeros_like(x) for x in parts], 1)

    logits = model(padded, mask)
    logits.logsumexp(-1).sum().backward()

    equal(logits[mask.bool()], model(tokens)[0])
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_no_position_sees_a_later_token() -> None:
    model, tokens = model_of(), tokens_of(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % SHAPE.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


@pytest.mark.parametrize("cuts", [(1,) * 14, (5, 9), (8, 1, 5)])
def test_logits_through_the_cache_equal_logits_at_once(cuts: tuple[int, ...]) -> None:
    model, tokens = model_of().double(), tokens_of(3, 14)
    cache = Cache(SHAPE, 3, 14, model.model.embed_tokens.weight)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in tokens.split(list(cuts), 1)]
        equal(torch.cat(pieces, 1), model(tokens))


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(tied: bool) -> None:
    shape = Shape(61, 48, 80, 3, 6, 2, 32, tie_embeddings=tied)
    assert shape.num_parameters() == sum(parameter.numel() for parameter in Transformer(shape).parameters())


def test_flops_are_six_a_matrix_weight_and_token_at_length_zero() -> None:
    shape = Shape(61, 48, 80, 3, 6, 2, 32, tie_embeddings=False)
    model = Transformer(shape)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in name)
    assert shape.flops_per_token(0) == 6 * matrices


def test_initial_weights_follow_the_seed_and_the_stated_spread() -> None:
    shape = Shape(500, 128, 256, 4, 4, 2, 32)
    first, again, other = (model_of(shape, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert first["model.embed_tokens.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert first["model.layers.2.mlp.down_proj.weight"].std().item() == pytest.approx(0.02 / 8**0.5, rel=0.02)
    assert torch.equal(first["model.layers.0.input_layernorm.weight"], torch.ones(128))


def test_reward_is_read_at_the_last_real_token_as_transformers_reads_it(tmp_path: Path) -> None:
    scalar = ScalarModel.from_transformer(model_of(), seed=3).double()
    tokens, mask = tokens_of(3, 10), torch.ones(3, 10, dtype=torch.long)
    tokens[1, 6:], mask[1, 6:] = PAD, 0
    save_folder(scalar, tmp_path, pad_id=PAD)
    with torch.no_grad():
        rewards = scalar.reward(tokens, mask)
        equal(rewards, scalar(tokens)[torch.arange(3), mask.sum(1) - 1])
        with in_float64():
            theirs = LlamaForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
            equal(rewards, theirs(tokens, attention_mask=mask).logits[:, 0])
    assert len(rewards.unique()) == 3


def test_scalar_model_copies_the_trunk() -> None:
    model = model_of()
    scalar = ScalarModel.from_transformer(model, seed=3)
    assert torch.equal(scalar.model.embed_tokens.weight, model.model.embed_tokens.weight)
    with torch.no_grad():
        scalar.model.embed_tokens.weight.zero_()
    assert model.model.embed_tokens.weight.abs().sum() > 0


def test_config_refuses_heads_that_do_not_fit_and_names_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"num_heads 5 must be a multiple of num_kv_heads 2"):
        ModelConfig(hidden_size=80, num_heads=5, num_kv_heads=2)
    with pytest.raises(ValueError, match=r"hidden_size 100 over num_heads 3"):
        ModelConfig(hidden_size=100)


@pytest.mark.slow
def test_decoder_and_generation_import_with_torch_alone() -> None:
    """They run on a bare GPU box: nothing beyond torch and NumPy may come in."""
    code = (
        "import sys\nimport models.generation, models.transformer\n"
        "print(sorted({'pydantic', 'safetensors', 'transformers', 'pyarrow', 'tokenizers'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
