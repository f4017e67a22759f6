"""The NumPy oracle against torch's autograd and against transformers' Llama."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from models import reference
from models.conversion import save_folder
from models.shapes import Shape
from models.transformer import Transformer, initialise
from tests.rounding import in_float64, rounding, through

SHAPES = {
    "tied, grouped": Shape(61, 48, 80, 2, 6, 2, 32),
    "untied, grouped": Shape(61, 48, 80, 2, 4, 1, 32, tie_embeddings=False),
    "untied, no groups": Shape(61, 32, 48, 1, 4, 4, 32, rope_theta=500.0, norm_eps=1e-6, tie_embeddings=False),
}


def random_model(shape: Shape) -> Transformer:
    """Weights far from the start of training: norms that are not 1, logits that are not near 0."""
    model = Transformer(shape)
    initialise(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5).add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(shape.vocab_size, (3, 18), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[1, 9:] = reference.IGNORED
    return tokens[:, :-1], targets


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_loss_and_every_gradient_equal_torch_autograd(shape: Shape) -> None:
    model = random_model(shape).double()
    tokens, targets = batch(shape)
    loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=reference.IGNORED)
    loss.backward()
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}

    own_loss, gradients = reference.loss_and_gradients(weights, shape, tokens.numpy(), targets.numpy())

    assert own_loss == pytest.approx(loss.item(), abs=1e-12)
    assert gradients.keys() == weights.keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert np.abs(parameter.grad.numpy()).max() > 1e-6, name  # a gradient of zeros would agree with anything
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_of_oracle_and_torch_equal_transformers(shape: Shape, tmp_path) -> None:
    model = random_model(shape).double()
    save_folder(model, tmp_path)
    tokens, _ = batch(shape)
    with torch.no_grad():
        ours = model(tokens).numpy()
        with in_float64():
            want = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)(tokens).logits.numpy()
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}

    assert np.abs(want).max() > 1
    atol = rounding(through(shape), want, torch.float64)
    np.testing.assert_allclose(ours, want, rtol=0, atol=atol)
    np.testing.assert_allclose(reference.forward(weights, shape, tokens.numpy()), want, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_in_float32_are_those_in_float64_but_for_rounding(shape: Shape, tmp_path) -> None:
    """Ours and transformers': float32 has code of its own, in the norms and the angles."""
    model, (tokens, _) = random_model(shape), batch(shape)
    save_folder(model, tmp_path)
    with torch.no_grad():
        found = model(tokens), LlamaForCausalLM.from_pretrained(tmp_path)(tokens).logits
        want = model.double()(tokens)
    for logits in found:
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), want, rtol=0, atol=rounding(through(shape), want))


def test_oracle_gradient_equals_a_finite_difference() -> None:
    """The one check that does not rest on torch: the slope of the loss along a random direction."""
    shape = SHAPES["tied, grouped"]
    tokens, targets = (x.numpy() for x in batch(shape))
    weights = {name: p.detach().numpy().astype(np.float64) for name, p in random_model(shape).named_parameters()}
    rng = np.random.default_rng(4)
    direction = {name: rng.standard_normal(value.shape) / 100 for name, value in weights.items()}

    def loss_at(step: float) -> float:
        moved = {name: value + step * direction[name] for name, value in weights.items()}
        return reference.loss_and_gradients(moved, shape, tokens, targets)[0]

    _, gradients = reference.loss_and_gradients(weights, shape, tokens, targets)
    slope = sum(float((gradients[name] * direction[name]).sum()) for name in weights)
    assert slope == pytest.approx((loss_at(1e-5) - loss_at(-1e-5)) / 2e-5, rel=1e-5)
