"""Sampling: against a loop without a cache, against transformers, and against the distribution itself."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.conversion import save_folder
from models.generation import choose, generate, left_pad
from models.shapes import Shape
from models.transformer import Transformer, initialise
from tests.rounding import in_float64, rounding

SHAPE = Shape(61, 48, 80, 2, 6, 2, 64)
END, PAD = 0, 1
PROMPTS = [[5, 9, 7], [11], [3, 8, 22, 41, 17, 30, 2], [60, 59], [4, 4, 4, 4]]


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Weights large enough that texts differ by prompt and some end early; in float64, where rounding turns no choice of a token."""
    model = Transformer(SHAPE)
    initialise(model, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    return model.double()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greedy_without_cache(model: Transformer, prompt: list[int], max_new_tokens: int, end_id: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] == end_id:
            break
    return tokens[len(prompt) :]


def rows_of(generated) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(generated.tokens_BR, generated.mask_BR, strict=True)]


@pytest.fixture(scope="module")
def early_end(model: Transformer) -> int:
    """A token that some rows reach soon and others do not: so that stopping is tested on real texts."""
    texts = [greedy_without_cache(model, prompt, 20, -1) for prompt in PROMPTS]
    return next(t for t in texts[0][1:6] if t not in texts[2])


def test_cached_greedy_in_a_batch_equals_uncached_one_by_one(model: Transformer, early_end: int) -> None:
    generated = generate(model, PROMPTS, 20, early_end, PAD, temperature=0)
    want = [greedy_without_cache(model, prompt, 20, early_end) for prompt in PROMPTS]
    assert rows_of(generated) == want
    assert len({len(row) for row in want}) > 1  # some ended early
    assert generated.responses(early_end) == [row[:-1] if row[-1] == early_end else row for row in want]


def test_greedy_equals_transformers_generate(model: Transformer, early_end: int, tmp_path: Path) -> None:
    save_folder(model, tmp_path, end_id=early_end, pad_id=PAD)
    tokens, mask = left_pad(PROMPTS, PAD)
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": early_end, "pad_token_id": PAD}
    with in_float64():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
        want = theirs.generate(tokens, attention_mask=mask.long(), **settings)
    assert torch.equal(generate(model, PROMPTS, 20, early_end, PAD, temperature=0).sequences_BT, want)


def test_rows_do_not_depend_on_the_rest_of_the_batch(model: Transformer, early_end: int) -> None:
    together = generate(model, PROMPTS, 20, early_end, PAD, generator=seeded())
    first_two = generate(model, PROMPTS[:2], 20, early_end, PAD, generator=seeded())
    assert rows_of(together)[:2] == rows_of(first_two)
    greedy = rows_of(generate(model, PROMPTS, 20, early_end, PAD, temperature=0))
    assert greedy[::-1] == rows_of(generate(model, PROMPTS[::-1], 20, early_end, PAD, temperature=0))


def test_rows_end_where_is_done_says_and_others_go_on(model: Transformer) -> None:
    whole = rows_of(generate(model, PROMPTS, 20, -1, PAD, temperature=0))
    stopped = rows_of(generate(model, PROMPTS, 20, -1, PAD, temperature=0, is_done=lambda row: sum(row) > 300))
    want = [row[: 1 + next((i for i in range(20) if sum(row[: i + 1]) > 300), 19)] for row in whole]
    assert stopped == want
    assert len({len(row) for row in want}) > 1


def test_seed_decides_the_sample(model: Transformer) -> None:
    first, again, other = (rows_of(generate(model, PROMPTS, 12, END, PAD, generator=seeded(seed))) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(("temperature", "top_k"), [(0, 0), (0.7, 5), (1.0, 0)])
def test_log_probs_are_the_full_softmax_at_temperature_one(model: Transformer, early_end: int, temperature: float, top_k: int) -> None:
    generated = generate(model, PROMPTS, 20, early_end, PAD, temperature, top_k, seeded())
    for prompt, row, mask, log_probs in zip(PROMPTS, generated.tokens_BR, generated.mask_BR, generated.log_probs_BR, strict=True):
        response = row[mask].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response]))[0, len(prompt) - 1 : -1]
        want = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        # In float32: the logit, the largest, distance from it, exponential, logarithm and result; the sum errs by a share of itself.
        bound = rounding(6, float(logits.abs().max()) + math.log(SHAPE.vocab_size)) + rounding(SHAPE.vocab_size, 1)
        torch.testing.assert_close(log_probs[mask].double(), want, rtol=0, atol=bound)
        assert not log_probs[~mask].any()
        assert (row[~mask] == PAD).all()


def test_sequences_are_left_padded_prompts_and_responses(model: Transformer, early_end: int) -> None:
    generated = generate(model, PROMPTS, 20, early_end, PAD, temperature=0)
    for prompt, response, row, mask in zip(PROMPTS, rows_of(generated), generated.sequences_BT, generated.sequence_mask_BT, strict=True):
        assert row[mask].tolist() == prompt + response


def test_draws_follow_the_distribution() -> None:
    """One draw for each of many evenly spaced numbers: the frequencies are the probabilities, up to the spacing."""
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0])
    draws = (torch.arange(20_000) + 0.5) / 20_000
    for temperature, top_k in ((1.0, 0), (0.5, 0), (1.0, 3), (2.0, 1)):
        chosen = choose(logits.expand(20_000, 5), temperature, top_k, draws)
        kept = logits.where(logits >= logits.topk(top_k or 5).values[-1], -torch.inf)
        torch.testing.assert_close(chosen.bincount(minlength=5) / 20_000, (kept / temperature).softmax(0), rtol=0, atol=1e-4)


def test_draw_at_the_edges_stays_in_the_vocabulary_and_never_takes_what_is_impossible() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for draw in (0.0, 1 - 2**-24):
        assert choose(logits, 1.0, 0, torch.tensor([draw])).item() in (1, 2)


@pytest.mark.parametrize(
    ("prompts", "new", "temperature", "said"),
    [
        ([], 4, 0, "at least one token"),
        ([[]], 4, 0, "at least one token"),
        ([[2] * 60], 5, 0, "60 tokens and 5 new"),
        ([[2]], 4, 1.0, "seeded"),
    ],
)
def test_what_cannot_be_generated_is_refused(model: Transformer, prompts: list, new: int, temperature: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate(model, prompts, new, END, PAD, temperature)
