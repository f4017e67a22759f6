from evaluation.claims import claims, exported


def interval(mean: float, half: float) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 256}


def bits(value: float) -> dict:
    return {"all": {"bits_per_byte": value}}


def found(base: float = 1.9, gain: float = 0.04, kl: float = 0.2, above: float | None = 5.0, accuracy: float = 0.9) -> dict[str, bool]:
    """Which claims hold."""
    evaluation = {
        "bits_per_byte": {"models": {"base": bits(base)}, "baselines": {"bigram": bits(2.3), "gzip": bits(2.4), "kenlm": bits(1.88)}},
        "tasks": {
            "base": {
                "continuation": {"acc_norm": interval(0.45, 0.04), "items": 600, "documents": 300, "standard_errors_above_chance": above}
            }
        },
        "reward_model": {"cut": {"accuracy": interval(accuracy, 0.05)}, "all": {"accuracy": interval(0.5, 0.1)}},
        "alignment": {
            "models": {"ppo": {"kl_per_token": kl}},
            "gains": {"ppo": {"gold": interval(gain, 0.015), "tokens": interval(-1, 1)}},
        },
    }
    return {claim["claim"]: claim["holds"] for claim in claims(evaluation)}


def test_each_claim_turns_on_its_own_figure() -> None:
    good = found()
    assert list(good.values()) == [True, True, False, True, True, True, True]  # KenLM was not beaten
    changes = {"base": 1.97, "gain": 0.01, "kl": 0.5, "above": 2.0, "accuracy": 0.54}
    turned = [{name for name, holds in found(**{key: value}).items() if holds != good[name]} for key, value in changes.items()]
    assert [len(names) for names in turned] == [1] * 5 and len(set.union(*turned)) == 5


def test_what_was_not_measured_is_not_claimed() -> None:
    assert claims({}) == [] and claims({"bits_per_byte": {"models": {"base": bits(2.0)}}}) == []
    assert not found(above=None)["multiple choice above chance by more than 2 standard errors"]


def test_an_export_holds_within_the_tolerance() -> None:
    said = [exported({"max_logit_difference": value, "greedy_tokens": 1600, "greedy_prompts": 50}) for value in (3e-6, 2e-4, float("nan"))]
    assert [claim["holds"] for claim in said] == [True, False, False]
    assert said[0]["found"] == "logits differ by at most 3e-06; 1,600 tokens on 50 prompts"
