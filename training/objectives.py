"""What a step minimises: next tokens (pretraining), answers (SFT), preferences (reward model, DPO).

A micro batch's loss is its sum over the weight of the whole global batch, which every rank knows from the rows alone. So the
parts of all micro batches and ranks add up to the global mean, however the batch is cut.
Sequences are padded on the right; under causal attention no real token sees the padding, so no mask is needed.

Shape letters: B rows of a micro batch (pairs: 2B sequences, the chosen first), T positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.losses import IGNORED
from training.engine_plain import Batch
from training.loader import Blocks, Ragged, Rows

Model = Callable[..., Any]
WIDTH_STEP = 8
"""Padded widths are multiples of this, so that few different shapes occur."""


class Objective(Protocol):
    rows: Rows
    """The rows that training may take."""
    validation: Rows
    names: tuple[str, ...]
    """Of the sums that `measure` gives; the first is the loss, the last the weight that all are divided by."""

    def weight(self, rows: Rows) -> float: ...
    def tokens(self, rows: Rows) -> int: ...
    def batch(self, rows: Rows, weight: float) -> Batch: ...
    def loss(self, model: Model, batch: Batch) -> Tensor: ...
    def measure(self, model: Model, batch: Batch) -> Tensor: ...


class LanguageModelling:
    """Next-token cross entropy in nats over packed blocks; the first id of a block is never a target."""

    names: tuple[str, ...] = ("loss", "targets")

    def __init__(self, blocks: Blocks, validation: Blocks | None, device: torch.device, most_validation: int) -> None:
        self._train, self._held, self._device = blocks, validation, device
        self.rows = np.arange(len(blocks))
        held = 0 if validation is None else min(len(validation), most_validation)
        self.validation = -1 - np.arange(held)  # negative rows are the validation's

    def weight(self, rows: Rows) -> float:
        return float(len(rows) * self._train.context)

    def tokens(self, rows: Rows) -> int:
        return len(rows) * self._train.context

    def batch(self, rows: Rows, weight: float) -> Batch:
        is_held = len(rows) > 0 and rows[0] < 0
        ids = self._held.take(-1 - rows) if is_held and self._held is not None else self._train.take(rows)
        return {"tokens": torch.from_numpy(ids).to(self._device), "scale": torch.tensor(1 / weight, device=self._device)}

    def _sum(self, model: Model, batch: Batch) -> Tensor:
        tokens_BT = batch["tokens"]
        return next_token_nats(model, tokens_BT)

    def loss(self, model: Model, batch: Batch) -> Tensor:
        return self._sum(model, batch) * batch["scale"]

    def measure(self, model: Model, batch: Batch) -> Tensor:
        return torch.stack((self._sum(model, batch), torch.tensor(float(batch["tokens"][:, 1:].numel()), device=self._device)))


class Pairs:
    """Rows of prompt and response ids (the end token included), with the split of each row."""

    def __init__(self, folder: Path, responses: Sequence[str]) -> None:
        self.prompts = Ragged(folder, "prompt")
        self.responses = [Ragged(folder, name) for name in responses]
        self.splits = np.load(folder / "split.npy", allow_pickle=False)

    def of(self, split: str) -> Rows:
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def sequence(self, row: int, which: int) -> np.ndarray:
        return np.concatenate((self.prompts[row], self.responses[which][row]))

    def widest(self) -> int:
        return max(int((self.prompts.lengths() + side.lengths()).max()) for side in self.responses)


SPLITS = ("train", "validation", "test")


class SupervisedFineTuning:
    """Cross entropy of the response's tokens given the prompt; the prompt itself is masked."""

    names: tuple[str, ...] = ("loss", "targets")

    def __init__(self, pairs: Pairs, pad_id: int, device: torch.device, most_validation: int, fixed_width: bool = False) -> None:
        self._pairs, self._pad_id, self._device = pairs, pad_id, device
        self._width = pairs.widest() if fixed_width else None
        self.rows, self.validation = pairs.of("train"), pairs.of("validation")[:most_validation]

    def weight(self, rows: Rows) -> float:
        return float(self._pairs.responses[0].lengths()[rows].sum())

    def tokens(self, rows: Rows) -> int:
        return int((self._pairs.prompts.lengths() + self._pairs.responses[0].lengths())[rows].sum())

    def batch(self, rows: Rows, weight: float) -> Batch:
        tokens = pad([self._pairs.sequence(int(row), 0) for row in rows], self._pad_id, self._width)
        targets = np.full_like(tokens, IGNORED)
        for i, row in enumerate(rows):
            start, end = len(self._pairs.prompts[int(row)]), len(self._pairs.sequence(int(row), 0))
            targets[i, start - 1 : end - 1] = tokens[i, start:end]
        return {
            "tokens": torch.from_numpy(tokens).to(self._device),
            "targets": torch.from_numpy(targets).to(self._device),
            "scale": torch.tensor(1 / weight, device=self._device),
        }

    def _sum(self, model: Model, batch: Batch) -> Tensor:
        nats: Tensor = model(batch["tokens"], targets_BT=batch["targets"])
        return nats

    def loss(self, model: Model, batch: Batch) -> Tensor:
        return self._sum(model, batch) * batch["scale"]

    def measure(self, model: Model, batch: Batch) -> Tensor:
        targets = batch["targets"]
        return torch.stack((self._sum(model, batch), (targets != IGNORED).sum().float()))


class Preferences:
    """Batches of pairs, chosen rows first; what the reward model and the direct methods share."""

    names: tuple[str, ...] = ("loss", "accuracy", "pairs")

    def __init__(self, pairs: Pairs, pad_id: int, device: torch.device, most_validation: int, fixed_width: bool = False) -> None:
        self.pairs, self._pad_id, self._device = pairs, pad_id, device
        self._width = pairs.widest() if fixed_width else None
        self.rows, self.validation = pairs.of("train"), pairs.of("validation")[:most_validation]

    def weight(self, rows: Rows) -> float:
        return float(len(rows))

    def tokens(self, rows: Rows) -> int:
        lengths = 2 * self.pairs.prompts.lengths() + sum(side.lengths() for side in self.pairs.responses)
        return int(lengths[rows].sum())

    def batch(self, rows: Rows, weight: float) -> Batch:
        sequences = [self.pairs.sequence(int(row), side) for side in (0, 1) for row in rows]
        prompts = [len(self.pairs.prompts[int(row)]) for _ in (0, 1) for row in rows]
        return {
            "tokens": torch.from_numpy(pad(sequences, self._pad_id, self._width)).to(self._device),
            "prompt_lengths": torch.tensor(prompts, device=self._device),
            "lengths": torch.tensor([len(ids) for ids in sequences], device=self._device),
            "scale": torch.tensor(1 / weight, device=self._device),
        }

    def margin(self, model: Model, batch: Batch) -> Tensor:
        """margins_B: by how much the chosen is preferred, in the units whose sigmoid is its probability."""
        raise NotImplementedError

    def pair_losses(self, margins_B: Tensor) -> Tensor:
        return bradley_terry(margins_B)

    def loss(self, model: Model, batch: Batch) -> Tensor:
        return self.pair_losses(self.margin(model, batch)).sum() * batch["scale"]

    def measure(self, model: Model, batch: Batch) -> Tensor:
        margin_B = self.margin(model, batch)
        return torch.stack(
            (self.pair_losses(margin_B).sum(), wins(margin_B).sum(), torch.tensor(float(len(margin_B)), device=self._device))
        )


class RewardModelling(Preferences):
    """Bradley-Terry over scores of the last real token."""

    def margin(self, model: Model, batch: Batch) -> Tensor:
        values_BT = model(batch["tokens"]).float()
        chosen, rejected = values_BT.gather(1, batch["lengths"][:, None] - 1).squeeze(1).chunk(2)
        return chosen - rejected


class DirectPreference(Preferences):
    """DPO (Rafailov et al. 2023): the implicit reward is beta times the log ratio to a frozen reference."""

    def __init__(self, pairs: Pairs, pad_id: int, device: torch.device, most_validation: int, reference: nn.Module, beta: float) -> None:
        super().__init__(pairs, pad_id, device, most_validation)
        self._reference, self._beta = reference.to(device).requires_grad_(False).eval(), beta

    def margin(self, model: Model, batch: Batch) -> Tensor:
        chosen, rejected = response_log_prob(model(batch["tokens"]), batch).chunk(2)
        with torch.no_grad():
            known_chosen, known_rejected = response_log_prob(self._reference(batch["tokens"]), batch).chunk(2)
        return dpo_margin(chosen, rejected, known_chosen, known_rejected, self._beta)


DIRECT: dict[str, Callable[..., Preferences]] = {"dpo": DirectPreference}
"""Methods that learn from pairs without a reward model. Each is given the pairs, SFT's model as `reference`, and by name the settings
that its class in training/config.py adds to FineTuneConfig."""


def next_token_nats(model: Model, tokens_BT: Tensor) -> Tensor:
    """Of all tokens but each row's first."""
    nats: Tensor = model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:])
    return nats


def bradley_terry(margins_B: Tensor) -> Tensor:
    """-log P(chosen beats rejected), P = sigmoid(margin)."""
    return -F.logsigmoid(margins_B)


def dpo_margin(chosen: Tensor, rejected: Tensor, known_chosen: Tensor, known_rejected: Tensor, beta: float) -> Tensor:
    """beta · (log ratio of the chosen - log ratio of the rejected), each against the reference (`known_`)."""
    return beta * ((chosen - known_chosen) - (rejected - known_rejected))


def wins(margins_B: Tensor) -> Tensor:
    """1 where the chosen is preferred, a half for a tie."""
    return (margins_B > 0).float() + 0.5 * (margins_B == 0).float()


def response_log_prob(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """log p of each row's response given its prompt, summed over its tokens."""
    tokens_BT = batch["tokens"]
    log_prob_BT = token_log_prob(logits_BTV[:, :-1], tokens_BT[:, 1:])
    places = torch.arange(1, tokens_BT.shape[1], device=tokens_BT.device)
    is_response = (places >= batch["prompt_lengths"][:, None]) & (places < batch["lengths"][:, None])
    return (log_prob_BT * is_response).sum(1)


def token_log_prob(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    logits = logits_BTV.float()
    return logits.gather(-1, targets_BT[..., None]).squeeze(-1) - logits.logsumexp(-1)


def pad(sequences: Sequence[np.ndarray], pad_id: int, width: int | None = None) -> np.ndarray:
    """(rows, width) int64, padded on the right; width is the longest rounded up to WIDTH_STEP when not given."""
    longest = max(map(len, sequences))
    full = np.full((len(sequences), width or -(-longest // WIDTH_STEP) * WIDTH_STEP), pad_id, np.int64)
    for i, ids in enumerate(sequences):
        full[i, : len(ids)] = ids
    return full
