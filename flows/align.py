"""align: a pretrained model -> supervised fine-tuning, a reward model, PPO and DPO."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from bessemer.config import Config, Preset
from engine.runner import Runner
from flows import curate, train
from flows.in_prefect import in_prefect
from tasks.dpo import dpo
from tasks.ppo import ppo
from tasks.reward import reward
from tasks.sft import sft


def stages(run: Runner, config: Config, trained: dict[str, Any]) -> dict[str, Any]:
    if not config.align.methods:
        return trained
    common = {"pairs": trained["pairs"], "tokenizer": trained["tokenizer"], "calibration": trained["calibration"]}
    tuned = run(sft, base=trained["base"], **common)
    aligned = {"sft": tuned}
    if {"reward", "ppo"} & {*config.align.methods}:
        aligned["reward"] = run(reward, base=tuned, **common)
    if "ppo" in config.align.methods:
        aligned["ppo"] = run(ppo, base=tuned, reward=aligned["reward"], **common)
    if "dpo" in config.align.methods:
        aligned["dpo"] = run(dpo, base=tuned, **common)
    return trained | aligned


def body(run: Runner, config: Config) -> dict[str, Any]:
    upstream = run.expecting("train")
    return stages(run, config, train.stages(upstream, config, curate.body(upstream, config)))


@flow(name="align")
def align(preset: Preset = Preset.laptop, overrides: dict[str, Any] | None = None) -> State | None:
    """Align the model that train/full made.

    Args:
        preset: A file of deployments/presets.
        overrides: Dotted settings, such as {"align.methods": ["ppo", "dpo"]}.
    """
    return in_prefect("align", body, preset, overrides)
