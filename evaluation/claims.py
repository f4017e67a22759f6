"""What a run promises, held against what was measured. A claim that fails is said; it stops nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

Evaluation = Mapping[str, Any]
LEAST_GAIN_OVER_BIGRAM = 0.15
MOST_KL_PER_TOKEN = 0.5
LEAST_STANDARD_ERRORS = 2.0
LEAST_TOKENS_PER_PARAMETER = 0.5
"""With fewer, a model that starts from noise has learnt nothing to judge. `smoke` has 0.26, the presets for GPUs about 20."""
MAX_LOGIT_DIFFERENCE = 1e-4
"""In fp32. Two correct implementations differ by the order of their sums: 1e-6 to 1e-5 at the sizes tried."""


def claims(evaluation: Evaluation) -> list[dict[str, Any]]:
    """{claim, found, holds} for each claim whose figures are there."""
    return [*_bits(evaluation), *_tasks(evaluation), *_reward_model(evaluation), *_alignment(evaluation)]


def claims_nothing(config: Mapping[str, Any], figures: Mapping[str, Any]) -> str | None:
    """Why a pretrained model makes no claims: its steps were chosen so few that it shows the machinery alone. None for any other.

    `config` is that of the model's identity, `figures` are its own. A model that started from another may claim.
    """
    settings = config.get("train", {})
    steps = settings.get("max_steps")
    if steps is None or settings["init_from"] is not None:
        return None
    tokens, parameters = figures["tokens"], figures["parameters"]
    if tokens >= LEAST_TOKENS_PER_PARAMETER * parameters:
        return None
    return f"a model of {steps:,} steps claims nothing ({tokens:,} tokens seen, {parameters:,} parameters)"


def exported(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What loading the export by transformers showed (tasks/export_check.py, which publishes nothing where it fails)."""
    difference = figures["max_logit_difference"]
    return _claim(
        "transformers loads the exported folder and gives the same logits and greedy tokens",
        f"logits differ by at most {difference:.1g}; {figures['greedy_tokens']:,} tokens on {figures['greedy_prompts']:,} prompts",
        difference <= MAX_LOGIT_DIFFERENCE,
    )


def _bits(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    bits = evaluation.get("bits_per_byte", {})
    model, others = bits.get("models", {}).get("base"), bits.get("baselines", {})
    if model is None or "bigram" not in others:
        return
    value, bigram = model["all"]["bits_per_byte"], others["bigram"]["all"]["bits_per_byte"]
    share = 1 - value / bigram
    yield _claim(
        f"bits per byte at least {100 * LEAST_GAIN_OVER_BIGRAM:.0f} % below an absolute-discount bigram's",
        f"{value:.4f} against {bigram:.4f}: {100 * share:.1f} %",
        share >= LEAST_GAIN_OVER_BIGRAM,
    )
    for name, title in (("gzip", "gzip -9 of the same text"), ("kenlm", "a KenLM n-gram of the same tokens")):
        if name in others:
            other = others[name]["all"]["bits_per_byte"]
            yield _claim(f"bits per byte below those of {title}", f"{value:.4f} against {other:.4f}", value < other)


def _tasks(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    row = evaluation.get("tasks", {}).get("base", {}).get("continuation")
    if row is None:
        return
    above, accuracy = row["standard_errors_above_chance"], 100 * row["acc_norm"]["mean"]
    yield _claim(
        f"multiple choice above chance by more than {LEAST_STANDARD_ERRORS:.0f} standard errors",
        f"{accuracy:.1f} % of {row['items']:,} items from {row['documents']:,} documents, "
        + ("standard error unknown" if above is None else f"{above:+.1f} standard errors"),
        above is not None and above > LEAST_STANDARD_ERRORS,
    )


def _reward_model(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for kind, row in evaluation.get("reward_model", {}).items():
        if kind != "all":
            interval = row["accuracy"]
            found = f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
            yield _claim(f"reward model right on {kind} negatives more often than chance", found, interval["low"] > 0.5)


def _alignment(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    aligned = evaluation.get("alignment", {})
    for name, gain in aligned.get("gains", {}).items():
        interval, distance = gain["gold"], aligned["models"][name]["kl_per_token"]
        yield _claim(
            f"{name} raises the gold reward",
            f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}] on {interval['n']:,} test prompts, "
            f"{gain['tokens']['mean']:+.1f} tokens",
            interval["low"] > 0,
        )
        yield _claim(f"{name} stays within {MOST_KL_PER_TOKEN} nat a token of SFT", f"{distance:.3f}", distance < MOST_KL_PER_TOKEN)


def _claim(claim: str, found: str, holds: bool) -> dict[str, Any]:
    return {"claim": claim, "found": found, "holds": bool(holds)}
