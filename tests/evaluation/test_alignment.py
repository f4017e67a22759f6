from collections.abc import Iterator

import numpy as np
import pytest
import torch

from contract.errors import InputError
from evaluation.alignment import gain_figures, preference_figures, respond, response_figures, rewards
from evaluation.config import EvaluateConfig
from models.transformer import ScalarModel, Shape, Transformer, initialise
from tests.rounding import in_float64

SHAPE = Shape(vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, context=48)
CONFIG = EvaluateConfig(max_new_tokens=10)
END, PAD = 0, 1


@pytest.fixture(scope="module", autouse=True)
def wide() -> Iterator[None]:
    """Here two ways to one figure are compared."""
    with in_float64():
        yield


def model(seed: int, scale: float = 20.0) -> Transformer:
    made = Transformer(SHAPE)
    initialise(made, seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)  # freshly drawn weights are near uniform: KL would vanish
    return made.double().eval()


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 40, rng.integers(1, 12)).tolist() for _ in range(count)]


def test_kl_is_the_sum_over_the_vocabulary_at_every_position_of_the_response() -> None:
    policy, reference = model(1), model(2)
    asked = prompts(70)  # more than one batch
    made = respond(policy, reference, asked, CONFIG, END, PAD)
    for i in (0, 13, 63, 64, 69):
        whole = made.tokens[i] + ([END] if made.ended[i] else [])
        want = 0.0
        for k in range(len(whole)):
            history = torch.tensor([asked[i] + whole[:k]])
            with torch.no_grad():
                p = policy(history)[0, -1].log_softmax(0)
                q = reference(history)[0, -1].log_softmax(0)
            want += float((p.exp() * (p - q)).sum())
        assert made.kl_nats[i] == pytest.approx(want, rel=1e-10)
        assert made.scored_tokens[i] == len(whole)


def test_a_model_is_no_distance_from_itself_and_answers_itself() -> None:
    policy, asked = model(1), prompts(5)
    first, second = (respond(policy, policy, asked, CONFIG, END, PAD) for _ in range(2))
    assert first.tokens == second.tokens and first.kl_nats == [0.0] * 5


def test_gain_is_paired_and_length_stands_beside_it() -> None:
    policy, reference = model(1), model(2)
    asked = prompts(40)
    before, after = (respond(net, reference, asked, CONFIG, END, PAD) for net in (reference, policy))
    groups = [f"g{i // 2}" for i in range(40)]
    gold = np.random.default_rng(1).random(40)
    gain = gain_figures(before, after, gold, gold + 0.1, groups)
    assert gain["gold"]["mean"] == pytest.approx(0.1) and gain["gold"]["se"] == pytest.approx(0, abs=1e-12)
    assert gain["gold"]["clusters"] == 20
    change = np.mean([len(a) - len(b) for a, b in zip(after.tokens, before.tokens, strict=True)])
    assert gain["tokens"]["mean"] == pytest.approx(change)
    figures = response_figures(after, gold, groups)
    assert figures["kl_per_token"] == pytest.approx(sum(after.kl_nats) / sum(after.scored_tokens))
    assert figures["kl_per_response"] > figures["kl_per_token"] > 0


def test_rewards_do_not_depend_on_the_batch() -> None:
    scalar = ScalarModel.from_transformer(model(1, 3.0), seed=4).eval()
    sequences = prompts(30)
    alone = [float(scalar.reward(torch.tensor([s]), torch.ones(1, len(s))).detach()) for s in sequences]
    for batch_tokens in (1, 40, 10_000):
        assert rewards(scalar, sequences, PAD, batch_tokens) == pytest.approx(alone, rel=1e-10)


def test_accuracy_counts_ties_half_and_shows_the_length_bias() -> None:
    chosen, rejected = np.array([2.0, 1.0, 0.0, 5.0]), np.array([1.0, 1.0, 3.0, 1.0])
    lengths = np.array([[3, 9], [3, 9], [9, 3], [4, 4]])
    figures = preference_figures(chosen, rejected, lengths, ["cut", "cut", "other", "other"], ["p", "q", "p", "q"])
    assert list(figures) == ["cut", "other", "all"]
    assert [figures[kind]["accuracy"]["mean"] for kind in figures] == [0.75, 0.5, 0.625]
    assert [figures[kind]["shorter_is_right"]["mean"] for kind in figures] == [1.0, 0.25, 0.625]
    assert figures["all"]["accuracy"]["clusters"] == 2 and figures["all"]["pairs"] == 4


def test_no_test_pairs_is_a_sentence() -> None:
    with pytest.raises(InputError, match="no test pairs"):
        preference_figures(np.array([]), np.array([]), np.zeros((0, 2)), [], [])
