"""Losses against their closed forms, one sequence at a time and without padding."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small

from tests.rounding import in_float64
from training.loader import Blocks
from training.objectives import (
    DirectPreference,
    LanguageModelling,
    Pairs,
    RewardModelling,
    SupervisedFineTuning,
    bradley_terry,
    dpo_margin,
    wins,
)

CPU = torch.device("cpu")
EXACT = 1e-10
"""In float64."""


@pytest.fixture(scope="module", autouse=True)
def wide() -> Iterator[None]:
    """Here losses are compared with their formulas."""
    with in_float64():
        yield


def nats(model: torch.nn.Module, sequence: np.ndarray, start: int) -> float:
    """-log p of the ids from `start` on, each given all before it."""
    with torch.no_grad():
        log_probs = model(torch.from_numpy(sequence)[None])[0].log_softmax(-1)
    return -sum(float(log_probs[i - 1, int(sequence[i])]) for i in range(start, len(sequence)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    small.write_data(folder, "sft")
    return folder


def test_sft_is_the_mean_over_response_tokens_with_the_prompt_masked(pairs: Path):
    model, data = small.model(), Pairs(pairs, ["response"])
    objective = SupervisedFineTuning(data, 1, CPU, 10)
    rows = np.array([0, 7, 12, 3])
    want = sum(nats(model, data.sequence(row, 0), len(data.prompts[row])) for row in rows)
    weight = objective.weight(rows)
    assert weight == sum(len(data.responses[0][row]) for row in rows)
    parts = [objective.loss(model, objective.batch(part, weight)).item() for part in (rows[:1], rows[1:])]
    assert sum(parts) == pytest.approx(want / weight, rel=EXACT)


def test_language_modelling_never_predicts_the_first_id_of_a_block(tmp_path: Path):
    small.write_data(tmp_path, "pretrain")
    blocks, model = Blocks(tmp_path / "train.npy"), small.model()
    objective = LanguageModelling(blocks, Blocks(tmp_path / "validation.npy"), CPU, 3)
    rows = np.array([4, 9])
    want = sum(nats(model, blocks.take(rows)[i], 1) for i in range(2)) / (2 * small.SHAPE.context)
    assert objective.loss(model, objective.batch(rows, objective.weight(rows))).detach().item() == pytest.approx(want, rel=EXACT)
    held = objective.measure(model, objective.batch(objective.validation[:1], 1.0))
    assert held[0].detach().item() == pytest.approx(nats(model, Blocks(tmp_path / "validation.npy").take(np.array([0]))[0], 1), rel=EXACT)


def test_bradley_terry_is_minus_the_log_of_the_logistic():
    margins = torch.tensor([-30.0, -1.5, 0.0, 0.7, 40.0], dtype=torch.float64)
    want = [float(np.log1p(np.exp(-np.float64(m)))) for m in margins.tolist()]
    assert bradley_terry(margins).tolist() == pytest.approx(want, rel=EXACT)
    assert wins(margins).tolist() == [0, 0, 0.5, 1, 1]


def test_the_reward_model_is_read_at_the_last_real_token(pairs: Path):
    from models.transformer import ScalarModel, initialise

    model = ScalarModel(small.SHAPE)
    initialise(model, 4)
    data = Pairs(pairs, ["chosen", "rejected"])
    objective = RewardModelling(data, 1, CPU, 10)
    rows = np.array([2, 11, 5])
    want = [
        (model(torch.from_numpy(data.sequence(row, 0))[None])[0, -1] - model(torch.from_numpy(data.sequence(row, 1))[None])[0, -1]).item()
        for row in rows
    ]
    assert objective.margin(model, objective.batch(rows, 3.0)).tolist() == pytest.approx(want, rel=EXACT)


def test_dpo_is_its_formula_over_whole_sequences(pairs: Path):
    policy, reference, data = small.model(1), small.model(2), Pairs(pairs, ["chosen", "rejected"])
    objective = DirectPreference(data, 1, CPU, 10, reference, beta=0.3)
    rows = np.array([1, 8])
    total = 0.0
    for row in rows:
        start = len(data.prompts[row])
        ratio = [nats(reference, data.sequence(row, side), start) - nats(policy, data.sequence(row, side), start) for side in (0, 1)]
        total += np.log1p(np.exp(-0.3 * (ratio[0] - ratio[1])))
    assert objective.loss(policy, objective.batch(rows, 2.0)).item() == pytest.approx(total / 2, rel=EXACT)
    ones = torch.ones(1)
    assert float(dpo_margin(3 * ones, ones, ones, 2 * ones, 0.5)) == 1.5, "0.5 ((3 - 1) - (1 - 2))"


def test_dpo_starts_at_log_two_with_the_reference_as_policy(pairs: Path):
    data = Pairs(pairs, ["chosen", "rejected"])
    objective = DirectPreference(data, 1, CPU, 10, small.model(1), beta=0.1)
    rows = objective.rows[:6]
    assert objective.loss(small.model(1), objective.batch(rows, 6.0)).item() == pytest.approx(np.log(2), rel=EXACT)
