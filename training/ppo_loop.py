"""PPO on the same engines as training/loop.py: sample, score, estimate advantages, take clipped steps.

The method is that of Schulman et al. 2017 and Stiennon et al. 2020. A whole iteration (one batch of prompts) is the unit
of resuming: prompts, samples and orders of iteration i are pure functions of (seed, i) and the weights. So a checkpoint holds weights,
optimizer state, the reward's running mean and the best policy so far. Which policy is kept is decided on validation prompts alone;
figures to report come from test prompts, elsewhere.

Shape letters: N answers of this rank, T positions of prompt and answer, R = T - 1 positions that predict a next token.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.generation import generate
from models.transformer import ScalarModel, Transformer
from training.checkpoint_folder import Saver, Snapshot, set_rng_state
from training.engine_plain import Batch, Engine
from training.guard import Guard
from training.loader import Ragged, Rows, global_batch, rank_share
from training.loop import Diverged, Stopped, check_identity, cut, finite
from training.metrics import Report
from training.objectives import pad, token_log_prob
from training.options import Schedule, Skipping
from training.schedules import share_of_peak

Gold = Callable[[Rows, list[list[int]], list[bool]], NDArray[np.float64]]
"""(prompt rows, responses without end token, whether each ended) -> a score each, by a judge that training never sees."""


@dataclass(frozen=True)
class PpoPlan:
    seed: int
    iterations: int
    batch_size: int
    minibatches: int
    epochs: int
    micro_size: int
    max_new_tokens: int
    temperature: float
    clip: float
    value_clip: float
    value_coefficient: float
    kl_coefficient: float
    gamma: float
    gae_lambda: float
    value_iterations: int
    peak: float
    schedule: Schedule
    skipping: Skipping
    validation_every: int
    validation_prompts: int
    max_kl_per_token: float
    patience: int
    checkpoint_every: int
    end_id: int
    pad_id: int
    identity: dict[str, Any]


class ActorCritic(nn.Module):
    """The policy, and a linear head on its trunk that gives one value per position. The policy's weights are named `policy.…`."""

    def __init__(self, policy: Transformer) -> None:
        super().__init__()
        self.policy = policy
        self.value_head = nn.Linear(policy.shape.hidden_size, 1, bias=False)
        nn.init.zeros_(self.value_head.weight)  # the first values are 0, the mean of whitened rewards

    def forward(self, tokens_NT: Tensor, value_only: bool = False) -> tuple[Tensor, Tensor]:
        """logits_NTV and values_NT; with `value_only` the value's gradient ends at its head."""
        hidden = self.policy.hidden(tokens_NT)
        values = self.value_head(hidden.detach() if value_only else hidden).squeeze(-1)
        return self.policy.logits(hidden), values


@dataclass
class PpoProgress:
    step: int = 0
    tokens: int = 0
    bad_in_a_row: int = 0
    count: float = 0.0
    """Rewards seen, their sum and their sum of squares, which whiten them."""
    total: float = 0.0
    squares: float = 0.0
    best: dict[str, Any] | None = None
    looks_since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Answers:
    """Sampled answers of this rank, padded on the right."""

    rows: Rows
    responses: list[list[int]]
    ended: list[bool]
    tokens_NT: Tensor
    mask_NR: Tensor
    """1 at the positions whose next token is of the answer (its end token too)."""
    lengths_N: Tensor


@dataclass
class PpoLoop:
    engine: Engine
    """Its module is an ActorCritic."""
    reference: Transformer
    reward_model: ScalarModel
    prompts: Ragged
    train_rows: Rows
    validation_rows: Rows
    plan: PpoPlan
    saver: Saver
    report: Report
    gold: Gold | None = None
    should_stop: Callable[[], bool] = lambda: False

    def run(self) -> PpoProgress:
        """Train to the end or until patience is spent; `best_weights` is then the policy to keep. Raises Stopped, Diverged."""
        device = self.engine.device
        self.reference.to(device).requires_grad_(False).eval()
        self.reward_model.to(device).requires_grad_(False).eval()
        self._guard = Guard(0.0, device)
        self._progress = PpoProgress()
        self.best_weights: dict[str, Tensor] = {}
        if self._restore():
            self.report.resumed(self._progress.step)
        else:
            self._validate()
        while self._progress.step < self.plan.iterations and not self._is_out_of_patience():
            self._iterate()
            self._boundary()
        self.saver.join()
        return self._progress

    # -- one iteration

    def _iterate(self) -> None:
        plan, at = self.plan, self._progress
        rows = self.train_rows[global_batch(plan.seed, at.step, len(self.train_rows), plan.batch_size)]
        answers = self._sample(rank_share(rows, self.engine.rank, self.engine.ranks), (plan.seed, at.step, self.engine.rank))
        seen = self._score(answers)
        mean, spread = self._running(seen["reward"])
        rewards_NR = token_rewards((seen["reward"] - mean) / spread, seen["kl"], answers, plan.kl_coefficient)
        advantages, returns = gae(rewards_NR, seen["values"], answers.mask_NR, plan.gamma, plan.gae_lambda)
        advantages = self._whiten(advantages, answers.mask_NR)
        table = {
            "tokens": answers.tokens_NT,
            "mask": answers.mask_NR,
            "log_probs": seen["log_probs"],
            "values": seen["values"],
            "advantages": advantages,
            "returns": returns,
        }
        losses = self._learn(table, value_only=at.step < plan.value_iterations)
        at.tokens += int(self.engine.total(answers.lengths_N.sum().float()))
        self._note(answers, seen, losses)
        at.step += 1

    @torch.no_grad()
    def _sample(self, rows: Rows, seed: Sequence[int]) -> Answers:
        """One answer a prompt, from a stream of random numbers of its own."""
        plan = self.plan
        prompts = [self.prompts[int(row)].tolist() for row in rows]
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([abs(part) for part in seed]).generate_state(1)[0]))
        policy = self.engine.module.policy  # whole on every rank: ZeRO 3 is refused for PPO
        made = generate(policy, prompts, plan.max_new_tokens, plan.end_id, plan.pad_id, plan.temperature, generator=generator)  # type: ignore[arg-type]
        raw = [row[:length] for row, length in zip(made.tokens_BR.tolist(), made.mask_BR.sum(1).tolist(), strict=True)]
        sequences = [np.array(prompt + answer, np.int64) for prompt, answer in zip(prompts, raw, strict=True)]
        tokens = torch.from_numpy(pad(sequences, plan.pad_id)).to(self.engine.device)
        starts = torch.tensor([len(prompt) for prompt in prompts], device=self.engine.device)[:, None]
        lengths = torch.tensor([len(ids) for ids in sequences], device=self.engine.device)
        places = torch.arange(1, tokens.shape[1], device=self.engine.device)
        mask = ((places >= starts) & (places < lengths[:, None])).float()
        return Answers(rows, made.responses(plan.end_id), [bool(r) and r[-1] == plan.end_id for r in raw], tokens, mask, lengths)

    def _score(self, answers: Answers) -> dict[str, Tensor]:
        """Log probabilities and values before the update, distance to the reference, and the reward model's score."""
        found: dict[str, list[Tensor]] = {"log_probs": [], "values": [], "kl": [], "reward": []}
        with self.engine.no_grad():
            for part in cut(np.arange(len(answers.rows)), self.plan.micro_size):
                tokens, mask = answers.tokens_NT[part], answers.mask_NR[part]
                logits, values = self.engine.model(tokens)
                log_probs = token_log_prob(logits[:, :-1], tokens[:, 1:]) * mask
                known = token_log_prob(self.reference(tokens)[:, :-1], tokens[:, 1:]) * mask
                scores = self.reward_model(tokens).float().gather(1, answers.lengths_N[part][:, None] - 1).squeeze(1)
                for name, value in zip(found, (log_probs, values[:, :-1].float() * mask, log_probs - known, scores), strict=True):
                    found[name].append(value)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _running(self, rewards_N: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of all rewards so far, these included."""
        at = self._progress
        wide = rewards_N.double()
        sums = self.engine.total(torch.stack((torch.ones_like(wide).sum(), wide.sum(), wide.square().sum()))).tolist()
        at.count, at.total, at.squares = at.count + sums[0], at.total + sums[1], at.squares + sums[2]
        mean = at.total / at.count
        return mean, max(at.squares / at.count - mean**2, 1e-8) ** 0.5

    def _whiten(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Mean 0 and deviation 1 over all answers' tokens of all ranks."""
        wide, real = advantages.double(), mask.double()
        sums = self.engine.total(torch.stack((real.sum(), (wide * real).sum(), (wide.square() * real).sum())))
        mean = sums[1] / sums[0]
        spread = (sums[2] / sums[0] - mean.square()).clamp(min=1e-8).sqrt()
        return ((wide - mean) / spread * real).float()

    def _learn(self, table: Batch, value_only: bool) -> list[float]:
        """All epochs over the batch; one loss a step."""
        plan, at = self.plan, self._progress
        num_rows, losses = len(table["tokens"]), []
        rate = share_of_peak(plan.schedule, at.step)
        for epoch in range(plan.epochs):
            order = np.random.default_rng([abs(plan.seed), at.step, epoch, self.engine.rank]).permutation(num_rows)
            for rows in np.split(order, plan.minibatches):
                tokens = self.engine.total(table["mask"][rows].sum())
                batches = [{**{k: v[part] for k, v in table.items()}, "scale": 1 / tokens} for part in cut(rows, plan.micro_size)]
                stepped = self.engine.step(batches, lambda model, batch: self._loss(model, batch, value_only), rate, self._guard)
                losses.append(float(stepped.loss))
                at.bad_in_a_row = 0 if bool(stepped.is_good) else at.bad_in_a_row + 1
                if at.bad_in_a_row >= plan.skipping.limit:
                    where = f"{at.bad_in_a_row} updates in a row were not finite at iteration {at.step}"
                    raise Diverged(f"{where}; lower align.ppo.learning_rate")

        return losses

    def _loss(self, model: Callable[..., Any], batch: Batch, value_only: bool) -> Tensor:
        plan = self.plan
        logits, values = model(batch["tokens"], value_only)
        log_probs = token_log_prob(logits[:, :-1], batch["tokens"][:, 1:])
        policy = clipped_policy_loss(log_probs, batch["log_probs"], batch["advantages"], plan.clip)
        value = clipped_value_loss(values[:, :-1].float(), batch["values"], batch["returns"], plan.value_clip)
        per_token = policy * (0.0 if value_only else 1.0) + plan.value_coefficient * value
        return (per_token * batch["mask"]).sum() * batch["scale"]

    def _note(self, answers: Answers, seen: dict[str, Tensor], losses: list[float]) -> None:
        figures = self._means(answers, seen)
        at = self._progress
        rate = share_of_peak(self.plan.schedule, at.step) * self.plan.peak
        loss = finite(float(np.mean(losses)))
        at.history.append({"step": at.step, "loss": loss, "lr": rate, "tokens": at.tokens, "skipped": loss is None, **figures})
        self.report.step(at.step + 1, at.tokens, loss=loss, lr=rate, reward=figures["reward"], kl=figures["kl_per_token"])

    def _means(self, answers: Answers, seen: dict[str, Tensor]) -> dict[str, float]:
        """Over all ranks: the reward model's score, KL to the reference, length in tokens, share that ended."""
        parts = [
            torch.tensor(float(len(answers.rows))),
            seen["reward"].sum(),
            seen["kl"].sum(),
            answers.mask_NR.sum(),
            torch.tensor(float(sum(answers.ended))),
        ]
        sums = self.engine.total(torch.stack([part.to(self.engine.device).double() for part in parts])).tolist()
        names = ("reward", "kl_per_answer", "length", "ended")
        figures = {name: value / sums[0] for name, value in zip(names, sums[1:], strict=True)}
        return {**figures, "kl_per_token": sums[2] / max(sums[3], 1.0)}

    # -- choosing and stopping

    def _validate(self) -> None:
        """Answer the validation prompts; keep the policy when it is the best that is near enough to the reference."""
        plan, at = self.plan, self._progress
        rows = self.validation_rows[: plan.validation_prompts]
        own = rows[self.engine.rank :: self.engine.ranks]
        if len(rows) >= self.engine.ranks:
            self.engine.module.eval()
            answers = self._sample(own, (plan.seed, 2**31, self.engine.rank))  # the same stream every time, so that the results are paired
            figures = self._means(answers, self._score(answers))
            self.engine.module.train()
            if self.gold is not None:
                scores = self.gold(answers.rows, answers.responses, answers.ended)
                both = torch.tensor([float(scores.sum()), float(len(scores))], dtype=torch.float64, device=self.engine.device)
                total, count = self.engine.total(both).tolist()
                figures["gold"] = total / count
            at.validation.append({"step": at.step, **figures})
        else:
            figures = {"reward": float(at.step), "kl_per_token": 0.0}  # nothing to choose by: the last policy is kept
        score = figures.get("gold", figures["reward"])
        is_near = figures["kl_per_token"] <= plan.max_kl_per_token
        if at.best is None or (is_near and score > at.best["score"]):
            at.best, at.looks_since_best = {"step": at.step, "score": score}, 0
            self.best_weights = {name: value for name, value in self.engine.weights().items() if name.startswith("policy.")}
        else:
            at.looks_since_best += 1

    def _is_out_of_patience(self) -> bool:
        return bool(self.plan.patience) and self._progress.looks_since_best >= self.plan.patience

    def _boundary(self) -> None:
        step, is_last = self._progress.step, self._progress.step == self.plan.iterations
        if is_last or not step % self.plan.validation_every:
            self._validate()
        wants_stop = self.engine.any(self.should_stop()) and not is_last
        if (not step % self.plan.checkpoint_every and not is_last) or wants_stop:
            state = {**asdict(self._progress), **self.plan.identity}
            snapshot = Snapshot(self.engine.weights(), self.engine.optimizer_state(), state, self.best_weights)
            self.saver.save(step, snapshot)
        if wants_stop:
            self.saver.join()
            raise Stopped(f"checkpoint of iteration {step:,} saved")

    def _restore(self) -> bool:
        found = self.saver.latest()
        if found is None:
            return False
        check_identity(found.state, self.plan.identity, self.report)
        self._progress = PpoProgress(**{name: found.state[name] for name in PpoProgress.__dataclass_fields__})
        self.engine.load(found.weights, found.optimizer)
        self.best_weights = found.extra
        set_rng_state(found.state["rng"])
        return True


def token_rewards(scores_N: Tensor, kl_NR: Tensor, answers: Answers, kl_coefficient: float) -> Tensor:
    """Each token pays for its distance to the reference; the last real one gets the answer's score."""
    rewards_NR = -kl_coefficient * kl_NR
    last = (answers.lengths_N - 2)[:, None]  # position p predicts token p + 1
    return rewards_NR.scatter_add(1, last, scores_N.to(rewards_NR)[:, None])


def gae(rewards_NR: Tensor, values_NR: Tensor, mask_NR: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns (Schulman et al. 2016), over the masked positions of each row.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}; after the last token both are 0.
    """
    advantages = torch.zeros_like(rewards_NR)
    following, next_value = torch.zeros_like(rewards_NR[:, 0]), torch.zeros_like(rewards_NR[:, 0])
    for t in range(rewards_NR.shape[1] - 1, -1, -1):
        delta = rewards_NR[:, t] + gamma * next_value - values_NR[:, t]
        following = (delta + gamma * lam * following) * mask_NR[:, t]
        next_value = values_NR[:, t] * mask_NR[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values_NR) * mask_NR


def clipped_policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Per token: -min(ratio · A, clip(ratio) · A)."""
    ratio = (log_probs - old_log_probs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Per token: half the larger of the squared errors of the value and of the value held near the old one."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())
