"""PPO's pieces against their definitions, and that it does what it is for."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers

sys.path.insert(0, str(Path(__file__).parent))
import small

from models.transformer import ScalarModel
from training.checkpoint_folder import Saver
from training.engine_plain import PlainEngine
from training.loader import Ragged
from training.metrics import Report
from training.options import Place, Recipe, Schedule, Skipping
from training.ppo_loop import (
    ActorCritic,
    Answers,
    PpoLoop,
    PpoPlan,
    PpoProgress,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    token_rewards,
)


@settings(max_examples=25, deadline=None)
@given(seed=integers(0, 2**31), start=integers(0, 3), length=integers(1, 6), gamma=floats(0, 1), lam=floats(0, 1))
def test_gae_is_the_discounted_sum_of_temporal_differences(seed: int, start: int, length: int, gamma: float, lam: float):
    """A_t = sum over k of (gamma lam)^k delta_{t+k}, written out, for answers that start and end anywhere in the row."""
    rng = np.random.default_rng(seed)
    rewards, values, mask = rng.normal(size=10), rng.normal(size=10), np.zeros(10)
    mask[start : start + length] = 1
    rewards, values = rewards * mask, values * mask
    want = np.zeros(10)
    for t in range(start, start + length):
        for k in range(start + length - t):
            following = values[t + k + 1] if t + k + 1 < start + length else 0.0
            want[t] += (gamma * lam) ** k * (rewards[t + k] + gamma * following - values[t + k])
    tensors = [torch.from_numpy(x)[None] for x in (rewards, values, mask)]
    advantages, returns = gae(*tensors, gamma, lam)
    assert np.allclose(advantages[0].numpy(), want, 1e-12, 1e-12) and np.allclose(returns[0].numpy(), want + values, 1e-12, 1e-12)


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    rewards, values, mask = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 0.25, 4.0]]), torch.ones(1, 3)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert returns.tolist() == [[3.0, 3.0, 2.0]] and advantages.tolist() == [[2.5, 2.75, -2.0]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "want"),
    [(1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6), (1.0, 3.0, -3.0)],
)
def test_the_policy_loss_takes_the_worse_of_ratio_and_clipped_ratio(ratio: float, advantage: float, want: float):
    loss = clipped_policy_loss(*(torch.tensor([x], dtype=torch.float64) for x in (np.log(ratio), 0, advantage)), 0.2)
    assert float(loss) == pytest.approx(want, rel=1e-12)


def test_the_value_loss_takes_the_worse_of_value_and_held_value():
    values, old, returns = torch.tensor([[1.0, 0.1], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert clipped_value_loss(values, old, returns, 0.2).tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 0.9**2])


def test_the_score_falls_on_the_last_real_token_and_kl_on_each():
    answers = Answers(np.arange(2), [], [], torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 5), torch.tensor([6, 4]))
    rewards = token_rewards(torch.tensor([10.0, 20.0]), torch.ones(2, 5), answers, 0.5)
    assert rewards.tolist() == [[-0.5, -0.5, -0.5, -0.5, 9.5], [-0.5, -0.5, 19.5, -0.5, -0.5]]


class LikesSeven(ScalarModel):
    """A reward model that counts the tokens 7."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return (tokens == 7).float().cumsum(1)


def count_sevens(rows: np.ndarray, responses: list[list[int]], ended: list[bool]) -> np.ndarray:
    return np.array([float(ids.count(7)) for ids in responses])


def run_ppo(folder: Path, iterations: int, max_kl_per_token: float) -> tuple[PpoLoop, PpoProgress]:
    small.write_data(folder, "ppo")
    plan = PpoPlan(
        seed=1, iterations=iterations, batch_size=16, minibatches=1, epochs=3, micro_size=16, max_new_tokens=8, temperature=1.0, clip=0.2,
        value_clip=0.2, value_coefficient=0.1, kl_coefficient=0.0, gamma=1.0, gae_lambda=0.95, value_iterations=1, peak=0.01,
        schedule=Schedule(iterations, decay_fraction=0.0), skipping=Skipping(), validation_every=4, validation_prompts=5,
        max_kl_per_token=max_kl_per_token, patience=0, checkpoint_every=100, end_id=0, pad_id=1,
        identity={"config_digest": "", "execution": {}},
    )  # fmt: skip
    engine = PlainEngine(ActorCritic(small.model()), Recipe(learning_rate=0.01, weight_decay=0.0), Place())
    saver = Saver(small.checkpoints(folder / "root"), folder, is_writer=True)
    report, prompts = Report(None, lambda: 0.0, iterations, "iterations"), Ragged(folder, "prompt")
    judge = LikesSeven(small.SHAPE)
    loop = PpoLoop(engine, small.model(), judge, prompts, np.arange(20), np.arange(20, 25), plan, saver, report, count_sevens)
    return loop, loop.run()


def test_ppo_raises_a_score_that_can_be_raised(tmp_path: Path):
    loop, progress = run_ppo(tmp_path, 12, max_kl_per_token=9.0)
    assert progress.best is not None and progress.best["step"] > 0
    assert progress.validation[-1]["gold"] > progress.validation[0]["gold"] + 1.0
    names = {f"policy.{name}" for name in small.model().state_dict()}
    assert set(loop.best_weights) == names, "the value head is no part of the policy"


def test_a_policy_too_far_from_the_reference_is_not_chosen(tmp_path: Path):
    loop, progress = run_ppo(tmp_path, 8, max_kl_per_token=0.0)
    assert progress.validation[-1]["gold"] > progress.validation[0]["gold"], "it did get better"
    assert progress.best is not None and progress.best["step"] == 0
    start = small.model().state_dict()
    assert all(torch.equal(loop.best_weights[f"policy.{name}"], start[name]) for name in start)
