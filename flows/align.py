"""align: a pretrained model -> supervised fine-tuning, a reward model, PPO, DPO and other direct methods."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from bessemer.config import Config, Preset
from engine.runner import Runner
from flows import curate, train
from flows.in_prefect import in_prefect
from flows.this_run import chosen_name
from tasks.dpo import direct
from tasks.ppo import ppo
from tasks.reward import reward
from tasks.sft import sft
from training.config import METHODS


def stages(run: Runner, config: Config, trained: dict[str, Any]) -> dict[str, Any]:
    made = config.align.stages()
    if not made:
        return trained
    common = {"pairs": trained["pairs"], "tokenizer": trained["tokenizer"], "calibration": trained["calibration"]}
    tuned = run(sft, base=trained["base"], **common)
    aligned = {"sft": tuned}
    if "reward" in made:
        aligned["reward"] = run(reward, base=tuned, **common)
    if "ppo" in made:
        aligned["ppo"] = run(ppo, base=tuned, reward=aligned["reward"], **common)
    for name in made:
        if METHODS[name].direct:
            aligned[name] = run(direct(name), base=tuned, **common)
    return trained | aligned


def body(run: Runner, config: Config) -> dict[str, Any]:
    upstream = run.expecting("train")
    return stages(run, config, train.stages(upstream, config, curate.body(upstream, config)))


@flow(name="align", flow_run_name=chosen_name)
def align(preset: Preset = Preset.laptop, config: str | None = None, overrides: dict[str, Any] | None = None) -> State | None:
    """Align the model that train/full made.

    Args:
        preset: A file of deployments/presets. Without effect beside a config, which names its own base.
        config: A file of your own settings: a whole path on the worker's machine, or s3://BUCKET/my.yaml.
        overrides: Dotted settings, such as {"align.methods": ["ppo", "dpo"]}.
    """
    return in_prefect("align", body, preset, config, overrides)
