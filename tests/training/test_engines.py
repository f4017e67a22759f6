"""The plain engine is the oracle; DeepSpeed is held to it, stage by stage, and its private names by these tests."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import small

from tests.rounding import float64_by_default, rounding
from training.engine_deepspeed import DeepSpeedEngine
from training.engine_plain import Engine, PlainEngine, Stepped
from training.guard import Guard
from training.optimizers import MuonWithAdamW, muon_groups, orthogonal
from training.options import Place, Recipe

CPU = torch.device("cpu")
STAGES = (0, 1, 2, 3)
OF_A_LOSS = rounding(small.batch(0)[:, 1:].numel(), 1)
"""What a loss is off by in float32, as a share of it: a sum over the targets. What the steps before add is less: an error of a
gradient g turns AdamW's step by lr · error / g, which moves the loss by g times that: by lr · error, however small g is. So it is
with Muon along a singular direction."""
OF_A_LOSS_IN_BF16 = rounding(1, 1, torch.bfloat16)
"""The final states and the logits made of them round once each, at the size of a logit: below half the loss while little is learnt."""


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A process group of one rank, and afterwards the environment as it was."""
    before = dict(os.environ)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def plain(recipe: Recipe, dtype: str = "float32") -> PlainEngine:
    return PlainEngine(small.model(), recipe, Place(dtype=dtype))


def deepspeed(recipe: Recipe, stage: int = 1, dtype: str = "float32", parts: int = 2) -> DeepSpeedEngine:
    return DeepSpeedEngine(small.model(), recipe, Place(dtype=dtype), stage, parts)


def steps(engine: Engine, first: int, count: int, parts: int = 2) -> list[float]:
    guard = Guard(8.0, CPU)
    batches = [small.micro_batches(small.batch(i), parts) for i in range(first, first + count)]
    return [float(engine.step(batch, small.loss_of, 1.0, guard).loss) for batch in batches]


@pytest.mark.parametrize("stage", STAGES)
def test_both_engines_have_the_same_losses(stage: int):
    recipe = Recipe(learning_rate=0.01)
    assert steps(deepspeed(recipe, stage), 0, 8) == pytest.approx(steps(plain(recipe), 0, 8), rel=OF_A_LOSS)


@pytest.mark.parametrize(("stage", "dtype"), [*((stage, "float32") for stage in STAGES), (1, "bfloat16"), (3, "bfloat16")])
def test_a_checkpoint_by_name_goes_on_to_the_bit_and_moves_to_the_other_engine(stage: int, dtype: str):
    recipe = Recipe(learning_rate=0.01)
    first = deepspeed(recipe, stage, dtype)
    steps(first, 0, 3)
    weights, state = first.weights(), first.optimizer_state()
    want = steps(first, 3, 3)
    second = deepspeed(recipe, stage, dtype)
    second.load(weights, state)
    assert all(torch.equal(value, state[name]) for name, value in second.optimizer_state().items()) and state
    assert steps(second, 3, 3) == want
    other = plain(recipe)
    other.load(weights, state)
    assert steps(other, 3, 3) == pytest.approx(want, rel=OF_A_LOSS if dtype == "float32" else OF_A_LOSS_IN_BF16)
    third = deepspeed(recipe, stage, dtype)
    third.load(*(lambda e: (e.weights(), e.optimizer_state()))(loaded(other, weights, state)))
    assert steps(third, 3, 3) == want, "through the plain engine and back"


def loaded(engine: PlainEngine, weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> PlainEngine:
    engine.load(weights, state)
    return engine


ENGINES: dict[str, Callable[[], Engine]] = {
    "plain": lambda: plain(Recipe(learning_rate=0.01)),
    "plain muon": lambda: plain(Recipe("muon", 0.02, 0.01, grad_clip=0.0)),
    "deepspeed 0": lambda: deepspeed(Recipe(learning_rate=0.01), 0),
    "deepspeed 0 muon": lambda: deepspeed(Recipe("muon", 0.02, 0.01, grad_clip=0.0), 0),
    "deepspeed 1": lambda: deepspeed(Recipe(learning_rate=0.01), 1),
    "deepspeed 1 bf16": lambda: deepspeed(Recipe(learning_rate=0.01), 1, "bfloat16"),
    "deepspeed 3": lambda: deepspeed(Recipe(learning_rate=0.01), 3),
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("fault", ["loss", "gradient", "spike"])
def test_a_bad_step_changes_nothing(name: str, fault: str):
    engine, guard = ENGINES[name](), Guard(4.0, CPU)
    steps(engine, 0, 2)
    if fault == "spike":
        guard.load([1.0 + 0.01 * (i % 3) for i in range(64)])

    def bad(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = small.loss_of(model, batch)
        if fault == "loss":
            return loss * torch.nan
        # The square root's slope at 0 is infinite: the loss stays as it is, and its gradient is not finite.
        return loss + (loss - loss.detach()).sqrt() if fault == "gradient" else loss

    weights, state = engine.weights(), engine.optimizer_state()
    stepped = engine.step(small.micro_batches(small.batch(5), 2), bad, 1.0, guard)
    assert not bool(stepped.is_good)
    assert torch.isfinite(stepped.loss) == (fault != "loss")
    assert all(torch.equal(value, weights[key]) for key, value in engine.weights().items())
    assert all(torch.equal(value, state[key]) for key, value in engine.optimizer_state().items())
    good: Stepped = engine.step(small.micro_batches(small.batch(6), 2), small.loss_of, 1.0, Guard(0.0, CPU))
    assert bool(good.is_good) and not torch.equal(engine.weights()["model.norm.weight"], weights["model.norm.weight"])


def test_cutting_the_batch_into_micro_batches_changes_rounding_only():
    recipe = Recipe(learning_rate=0.01)
    with float64_by_default():
        cut, whole = (steps(plain(recipe), 0, 5, parts) for parts in (4, 1))
    assert cut == pytest.approx(whole, rel=1e-12)
    assert steps(deepspeed(recipe, 1, parts=4), 0, 5, parts=4) == pytest.approx(steps(plain(recipe), 0, 5, parts=1), rel=OF_A_LOSS)


def test_one_muon_step_is_the_same_in_both_engines_and_by_its_definition():
    recipe = Recipe("muon", 0.02, 0.01, grad_clip=0.0, weight_decay=0.1)
    ours, theirs = plain(recipe), deepspeed(recipe, 0)
    ours.optimizer.dtype = torch.bfloat16  # type: ignore[attr-defined]  # as DeepSpeed's, whatever the device
    before = ours.weights()
    steps(ours, 0, 1)
    steps(theirs, 0, 1)
    after, other = ours.weights(), theirs.weights()
    for name in after:
        assert torch.allclose(after[name], other[name], atol=1e-5, rtol=0), name
    model = small.model()
    for part in small.micro_batches(small.batch(0), 2):
        small.loss_of(model, part).backward()
    name = "model.layers.0.mlp.up_proj.weight"
    gradient = dict(model.named_parameters())[name].grad
    assert gradient is not None
    # lerp, as the sums must round alike: the iteration is in bf16, where a flipped bit of its start is a hundredth of the update.
    update = newton_schulz(gradient.lerp(torch.zeros_like(gradient).lerp(gradient, 1 - 0.95), 0.95)) * (48 / 32) ** 0.5
    want = before[name] * (1 - 0.02 * 0.1) - 0.02 * update.float()
    assert (after[name] - want).abs().max() < 1e-5


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """Jordan 2024, word for word, for a tall matrix."""
    x = matrix.bfloat16().T
    x = x / (x.norm(dim=(0, 1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        b = -4.7750 * a + 2.0315 * a @ a
        x = 3.4445 * x + b @ x
    return x.T


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_orthogonalises_hidden_matrices_alone(dtype: torch.dtype):
    singular = torch.linalg.svdvals(orthogonal(torch.randn(24, 40, generator=torch.Generator().manual_seed(1)), dtype).float())
    assert singular.min() > 0.4 and singular.max() < 1.6
    model = small.model()
    groups = muon_groups(model.named_parameters(), Recipe("muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("proj" in names[id(p)] for p in groups[0]["params"]) and len(groups[0]["params"]) == 14
    assert [names[id(p)] for p in groups[1]["params"]] == ["model.embed_tokens.weight"]
    assert sum(len(group["params"]) for group in MuonWithAdamW(groups).param_groups) == len(names)


def test_norms_and_embeddings_decay_as_said():
    """Vectors do not decay: with no gradient to follow, matrices shrink by lr · decay and vectors stay."""
    engine = plain(Recipe(learning_rate=0.1, weight_decay=0.5))
    before = engine.weights()
    zero = [{"tokens": small.batch(0), "scale": torch.tensor(0.0)}]
    engine.step(zero, small.loss_of, 0.5, Guard(0.0, CPU))
    after = engine.weights()
    matrix, vector = "model.layers.1.mlp.down_proj.weight", "model.norm.weight"
    assert torch.allclose(after[matrix], before[matrix] * (1 - 0.05 * 0.5))
    assert torch.equal(after[vector], before[vector])


def test_the_gradient_is_clipped_by_its_global_norm():
    with float64_by_default():
        engine, guard = plain(Recipe(learning_rate=0.01, grad_clip=0.5)), Guard(0.0, CPU)
        stepped = engine.step([{"tokens": small.batch(1), "scale": torch.tensor(1.0)}], small.loss_of, 1.0, guard)
    state = engine.optimizer_state()
    norm = torch.stack([value.double().norm() for key, value in state.items() if key.endswith("/exp_avg")]).norm()
    want = 0.1 * 0.5 / (1 + 1e-6 / float(stepped.grad_norm))  # what is added lest a norm of 0 divides
    assert float(stepped.grad_norm) > 0.5 and float(norm) == pytest.approx(want, rel=rounding(2, 1))  # the moments are given out in float32
