"""Sampling from the model: a KV cache, left padding, and what a policy gradient needs of each token drawn.

One uniform number a row and step, drawn before the first step: a row's text depends on its prompt, its place in the batch and the
generator's seed, not on how many rows follow it or which of them ended early (apart from a matmul's last bits, which may move
with the number of rows). Needs torch alone. No beam search.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.transformer import Cache, Transformer


@dataclass(frozen=True)
class Generated:
    """Rows of equal length: B prompts, R the longest response, P the longest prompt."""

    tokens_BR: Tensor
    """The responses, the end token included; the padding token after it."""
    mask_BR: Tensor
    """True where `tokens_BR` is of the response."""
    log_probs_BR: Tensor
    """log p of each token under softmax(logits), fp32: at temperature 1 and over the whole vocabulary whatever temperature and
    top-k it was drawn with, as that is the policy that a ratio compares. 0 where the mask is False."""
    sequences_BT: Tensor
    """(B, P + R): prompts padded on the left, then the responses."""
    sequence_mask_BT: Tensor
    """True where `sequences_BT` holds a real token."""

    def responses(self, end_id: int) -> list[list[int]]:
        """The responses as lists, without padding and without the end token."""
        lengths = self.mask_BR.sum(1).tolist()
        rows = [row[:length] for row, length in zip(self.tokens_BR.tolist(), lengths, strict=True)]
        return [row[:-1] if row and row[-1] == end_id else row for row in rows]


def left_pad(prompts: list[list[int]], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(tokens_BP, mask_BP): the prompts end at the same column, so that every next token is the last."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return tokens, torch.arange(width, device=device) >= width - lengths[:, None]


@torch.no_grad()  # not inference_mode: PPO trains on what this returns
def generate(
    model: Transformer,
    prompts: list[list[int]],
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    is_done: Callable[[list[int]], bool] | None = None,
) -> Generated:
    """Continue each prompt until `end_id`, `max_new_tokens`, or a response so far that `is_done` (asked at every token).

    temperature 0: the likeliest token (the lowest id of equals), no randomness. top_k 0: the whole vocabulary. generator: on the
    CPU, whatever the model's device; needed where temperature is above 0.
    Rows that have ended leave the batch whenever half of those still in it are done: at most log2(B) copies of the cache.
    Raises ValueError for an empty prompt, and where prompt and response would not fit the context.
    """
    _check(model, prompts, max_new_tokens, temperature, generator)
    device, num_rows = model.model.embed_tokens.weight.device, len(prompts)
    prompts_BP, real_BP = left_pad(prompts, pad_id, device)
    width = prompts_BP.shape[1]
    tokens = torch.full((num_rows, max_new_tokens), pad_id, device=device)
    mask = torch.zeros((num_rows, max_new_tokens), dtype=torch.bool, device=device)
    log_probs = torch.zeros((num_rows, max_new_tokens), device=device)
    draws = torch.rand(num_rows, max_new_tokens, generator=generator).to(device) if temperature > 0 else None

    rows = torch.arange(num_rows, device=device)  # which prompt each row still in the batch belongs to
    alive = torch.ones(num_rows, dtype=torch.bool, device=device)  # of `rows`
    seen = torch.cat((real_BP, torch.ones_like(mask)), 1) if not bool(real_BP.all()) else None
    lengths = real_BP.sum(1)
    cache = Cache(model.shape, num_rows, width + max_new_tokens, model.model.embed_tokens.weight)
    hidden = model.hidden(prompts_BP, None if seen is None else real_BP, cache=cache)
    used = 0
    for step in range(max_new_tokens):
        logits = model.logits(hidden[:, -1]).float()
        token = choose(logits, temperature, top_k, None if draws is None else draws[rows, step])
        live = rows[alive]
        tokens[live, step] = token[alive]
        mask[live, step] = True
        log_probs[live, step] = (logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(1))[alive]
        used = step + 1
        alive &= token != end_id
        if is_done is not None:
            alive &= torch.tensor([not is_done(row) for row in tokens[rows, :used].tolist()], device=device)
        num_alive = int(alive.sum())
        if num_alive == 0 or used == max_new_tokens:
            break
        if 2 * num_alive <= len(rows):
            rows, token, lengths = rows[alive], token[alive], lengths[alive]
            seen = None if seen is None else seen[alive]
            cache.keep(alive)
            alive = alive[alive]
        so_far = None if seen is None else seen[:, : width + used]
        hidden = model.hidden(token[:, None], so_far, (lengths + step)[:, None], cache)
    tokens, mask = tokens[:, :used], mask[:, :used]
    sequences, sequence_mask = torch.cat((prompts_BP, tokens), 1), torch.cat((real_BP, mask), 1)
    return Generated(tokens, mask, log_probs[:, :used], sequences, sequence_mask)


def choose(logits_BV: Tensor, temperature: float, top_k: int, draw_B: Tensor | None) -> Tensor:
    """The next token of each row: the argmax at temperature 0, else where its number in [0, 1) falls in the cumulative distribution."""
    if draw_B is None or temperature == 0:
        return logits_BV.argmax(1)
    if 0 < top_k < logits_BV.shape[1]:
        kept_BK, ids_BK = logits_BV.topk(top_k)
        return ids_BK.gather(1, choose(kept_BK, temperature, 0, draw_B)[:, None])[:, 0]
    # In fp64: fp32 sums over a large vocabulary end a few 1e-6 off 1, which shifts every boundary.
    cumulative = (logits_BV.double() / temperature).softmax(1).cumsum(1)
    place = torch.searchsorted(cumulative, (draw_B.double() * cumulative[:, -1])[:, None], right=True)[:, 0]
    return place.clamp(max=logits_BV.shape[1] - 1)


def _check(
    model: Transformer, prompts: list[list[int]], max_new_tokens: int, temperature: float, generator: torch.Generator | None
) -> None:
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token; start an empty one with the end token")
    longest = max(map(len, prompts))
    if max_new_tokens < 1 or longest + max_new_tokens > model.shape.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit a context of {model.shape.context}; "
            "shorten the prompt or ask for fewer"
        )
    if temperature < 0 or (temperature > 0 and generator is None):
        raise ValueError(f"temperature is {temperature}: 0 is greedy, above 0 needs a seeded generator")
