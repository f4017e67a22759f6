"""train: training blocks -> a pretrained model."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from bessemer.config import Config, Preset
from engine.runner import Runner
from flows import curate
from flows.in_prefect import in_prefect
from flows.this_run import chosen_name
from tasks.calibrate import calibrate
from tasks.pretrain import pretrain


def stages(run: Runner, config: Config, curated: dict[str, Any]) -> dict[str, Any]:
    calibration = run(calibrate) if config.has_steps_to_fit() else None
    base = run(pretrain, blocks=curated["blocks"], tokenizer=curated["tokenizer"], calibration=calibration)
    return curated | {"calibration": calibration, "base": base}


def body(run: Runner, config: Config) -> dict[str, Any]:
    return stages(run, config, curate.body(run.expecting("curate"), config))


@flow(name="train", flow_run_name=chosen_name)
def train(preset: Preset = Preset.laptop, config: str | None = None, overrides: dict[str, Any] | None = None) -> State | None:
    """Pretrain on the blocks that curate/full made.

    Args:
        preset: A file of deployments/presets. Without effect beside a config, which names its own base.
        config: A file of your own settings: a whole path on the worker's machine, or s3://BUCKET/my.yaml.
        overrides: Dotted settings, such as {"train.max_steps": 50}.
    """
    return in_prefect("train", body, preset, config, overrides)
