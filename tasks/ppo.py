"""ppo: SFT's model rewarded by the reward model, held near SFT by a KL penalty; which iteration is kept the validation prompts decide."""

from contract.config import Frozen
from contract.errors import ConfigError
from contract.ledger import Ledger
from engine.stage import Output, stage
from store.artifact import Artifact
from tasks.calibrate import place, steps_in
from tasks.training_stages import check_ranks, context_of, pair_figures, train, typical_width, write_pairs
from training.config import EngineName, PpoConfig

PASSES_TO_ANSWER = 2.0
"""What sampling and judging an answer costs beside a pass of training: policy, reference and reward model there but not back, and
the sampling itself about as much again."""


class Rewarded(Frozen):
    engine: EngineName
    zero_stage: int
    method: PpoConfig


@stage(
    version=1,
    config=lambda c: Rewarded(engine=c.align.engine, zero_stage=c.align.zero_stage, method=c.align.ppo),
    exclusive=True,
)
def ppo(
    base: Artifact,
    reward: Artifact,
    pairs: Artifact,
    tokenizer: Artifact,
    config: Rewarded,
    out: Output,
    calibration: Artifact | None = None,
) -> Ledger:
    """model/ (the chosen policy), losses.jsonl (an iteration a line: reward, KL, length), validation.json (the same, and gold).

    `base` is sft's artifact. Gold, a judge that neither training nor the reward model ever sees, chooses and stops where the pairs
    have one; else the reward model's own score does, and the run says so.
    """
    method, context, where = config.method, context_of(base), place(out.run, calibration)
    if method.batch_size % method.minibatches:
        raise ConfigError(f"align.ppo.minibatches {method.minibatches} must divide align.ppo.batch_size {method.batch_size}")
    check_ranks(method.batch_size // method.minibatches, where.ranks, "align.ppo.batch_size / align.ppo.minibatches")
    if method.max_new_tokens >= context:
        raise ConfigError(f"align.ppo.max_new_tokens {method.max_new_tokens} leaves no room in the model's context of {context}; lower it")
    table, data = pairs.table("prompts.parquet"), out.scratch / "prompts"
    kept = write_pairs(data, table, tokenizer, [], context, most_new=method.max_new_tokens)
    pair_figures(out, table, kept)
    has_gold = bool(pairs.names("gold/"))
    if not has_gold:
        out.warn("the pairs have no gold judge: the policy is chosen by the reward model's own score on validation prompts")
    out.figures["chosen_by"] = "gold" if has_gold else "reward"
    tokens = method.batch_size * (typical_width(data) + method.max_new_tokens) * (method.epochs + PASSES_TO_ANSWER)
    updates = method.epochs * method.minibatches
    train(
        out,
        "ppo",
        method,
        where,
        module="tasks.ppo_child",
        engine=config.engine,
        zero_stage=config.zero_stage,
        init=base.folder("model"),
        reward_model=reward.folder("model"),
        data=data,
        gold=pairs.folder("gold") if has_gold else None,
        tokenizer=tokenizer.path("tokenizer.json"),
        prompts=kept["prompt"].to_pylist() if has_gold else [],
        names=kept["names"].to_pylist() if has_gold else [],
        batch_size=method.batch_size,
        steps=method.iterations or steps_in(method.seconds, tokens, updates, calibration, "align.ppo.iterations"),
        unit="iterations",
    )
    return Ledger()
