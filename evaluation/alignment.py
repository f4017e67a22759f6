"""What alignment changed: responses to held-out prompts, how far the model moved from where it started, and what the reward model knows.

Letters of shapes: B rows, T positions, R positions of responses (all rows together), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from contract.errors import InputError
from evaluation.config import EvaluateConfig
from evaluation.intervals import mean_interval, paired_interval, share_interval
from evaluation.passes import Each, batches
from models.generation import Generated, generate
from models.transformer import ScalarModel, Transformer

ROWS = 64
"""Prompts generated for together. Part of what a seed means: a row's random numbers depend on its place in its batch."""
KL_POSITIONS = 512
"""Positions whose whole distributions are in memory at once."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Responses:
    """One sampled response a prompt, without its end token; nats of KL from the reference summed over its tokens."""

    tokens: list[list[int]]
    ended: list[bool]
    kl_nats: list[float]
    scored_tokens: list[int]
    """Tokens that `kl_nats` is summed over: the response and its end token."""


def respond(
    model: Transformer,
    reference: Transformer,
    prompts: Sequence[list[int]],
    config: EvaluateConfig,
    end_id: int,
    pad_id: int,
    progress: Progress | None = None,
    each: Each = map,
) -> Responses:
    """Sample with equal random numbers for every model, and compare with `reference` at each position of the response.

    KL(model || reference) is exact at each position (a sum over the whole vocabulary), which has less variance than the log ratio
    of the token drawn; its mean over sampled positions is the KL a token.
    """

    def batch(start: int) -> tuple[Generated, list[float]]:
        asked = [list(prompt) for prompt in prompts[start : start + ROWS]]
        generator = torch.Generator().manual_seed(config.seed + start)
        drawn = generate(model, asked, config.max_new_tokens, end_id, pad_id, config.temperature, config.top_k, generator)
        return drawn, _kl(model, reference, drawn)

    made, done = Responses([], [], [], []), 0
    for drawn, kl_nats in each(batch, range(0, len(prompts), ROWS)):
        last = drawn.mask_BR.sum(1) - 1
        ends = drawn.tokens_BR.gather(1, last[:, None])[:, 0] == end_id
        made.tokens.extend(drawn.responses(end_id))
        made.ended.extend(ends.tolist())
        made.kl_nats.extend(kl_nats)
        made.scored_tokens.extend(drawn.mask_BR.sum(1).tolist())
        done += len(kl_nats)
        if progress is not None:
            progress(done, len(prompts))
    return made


@torch.inference_mode()
def _kl(model: Transformer, reference: Transformer, drawn: Generated) -> list[float]:
    """Nats by row: sum over the response's positions of KL(model || reference)."""
    width = drawn.sequences_BT.shape[1] - drawn.tokens_BR.shape[1]
    hidden = [net.hidden(drawn.sequences_BT[:, :-1], drawn.sequence_mask_BT[:, :-1])[:, width - 1 :] for net in (model, reference)]
    rows, _ = drawn.mask_BR.nonzero(as_tuple=True)
    ours, theirs = (h[drawn.mask_BR] for h in hidden)
    nats = []
    for start in range(0, len(ours), KL_POSITIONS):
        p_RV = model.logits(ours[start : start + KL_POSITIONS]).float().log_softmax(1)
        q_RV = reference.logits(theirs[start : start + KL_POSITIONS]).float().log_softmax(1)
        nats.append((p_RV.exp() * (p_RV - q_RV)).sum(1).double().cpu())
    return torch.zeros(len(drawn.mask_BR), dtype=torch.float64).index_add(0, rows.cpu(), torch.cat(nats)).tolist()


def response_figures(made: Responses, gold: Sequence[float], groups: Sequence[str]) -> dict:
    """Gold reward, length and KL of one model's responses; intervals clustered by the prompts' group."""
    lengths = [len(tokens) for tokens in made.tokens]
    return {
        "prompts": len(gold),
        "gold": mean_interval(gold, groups).to_json(),
        "tokens": mean_interval(lengths, groups).to_json(),
        "ended": share_interval([float(e) for e in made.ended], groups).to_json(),
        "kl_per_token": sum(made.kl_nats) / sum(made.scored_tokens),
        "kl_per_response": sum(made.kl_nats) / len(made.kl_nats),
    }


def gain_figures(
    before: Responses, after: Responses, gold_before: Sequence[float], gold_after: Sequence[float], groups: Sequence[str]
) -> dict:
    """Paired by prompt. Beside the gain: how length moved, and the gain among the responses that did not get shorter."""
    was, is_ = (np.array([len(tokens) for tokens in made.tokens], float) for made in (before, after))
    rows = np.flatnonzero(is_ >= was).tolist()
    kept = [groups[i] for i in rows]
    longer = paired_interval(np.take(gold_before, rows), np.take(gold_after, rows), kept).to_json() if len(rows) else None
    return {
        "gold": paired_interval(gold_before, gold_after, groups).to_json(),
        "tokens": paired_interval(was, is_, groups).to_json(),
        "gold_where_not_shorter": longer,
    }


def rewards(
    model: ScalarModel,
    sequences: Sequence[list[int]],
    pad_id: int,
    batch_tokens: int,
    progress: Progress | None = None,
    each: Each = map,
) -> np.ndarray:
    """The reward of each sequence (prompt, response, end token), padded on the right in batches of about equal length."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    values, done = np.zeros(len(sequences)), 0
    together = batches(order, lambda i: (1, len(sequences[i])), batch_tokens)
    for of_rows in each(lambda rows: _row_rewards(model, [sequences[i] for i in rows], pad_id), together):
        values[order[done : done + len(of_rows)]] = of_rows
        done += len(of_rows)
        if progress is not None:
            progress(done, len(order))
    return values


@torch.inference_mode()
def _row_rewards(model: ScalarModel, rows: list[list[int]], pad_id: int) -> np.ndarray:
    device, width = model.score.weight.device, len(rows[-1])
    tokens = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in rows], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows], device=device)
    return model.reward(tokens, mask).float().cpu().numpy()


def preference_figures(chosen: np.ndarray, rejected: np.ndarray, lengths: np.ndarray, kinds: Sequence[str], prompts: Sequence[str]) -> dict:
    """Accuracy by kind of negative, with intervals clustered by prompt; a tie counts half.

    lengths: (pairs, 2), tokens of chosen and rejected. `shorter_is_right` is what always choosing the shorter one would reach: the
    length bias that the pairs themselves hold; 0.5 is none.
    """
    if not len(kinds):
        raise InputError("there are no test pairs to judge the reward model by; raise the least test count of the split")
    right = (chosen > rejected) + 0.5 * (chosen == rejected)
    shorter = (lengths[:, 0] < lengths[:, 1]) + 0.5 * (lengths[:, 0] == lengths[:, 1])
    names = np.array(kinds)
    figures = {}
    for kind in [*sorted(set(kinds)), "all"]:
        rows = np.flatnonzero((names == kind) | (kind == "all")).tolist()
        clusters = [prompts[i] for i in rows]
        figures[kind] = {
            "pairs": len(rows),
            "accuracy": share_interval(right[rows], clusters).to_json(),
            "shorter_is_right": share_interval(shorter[rows], clusters).to_json(),
            "tokens_chosen": float(lengths[rows, 0].mean()),
            "tokens_rejected": float(lengths[rows, 1].mean()),
            "margin": float((chosen[rows] - rejected[rows]).mean()),
        }
    return figures
