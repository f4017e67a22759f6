"""evaluate: every model that was trained -> bits per byte, lm-eval scores, rewards before and after alignment."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from bessemer.config import Config, Preset
from engine.runner import Runner
from flows import align, curate, train
from flows.in_prefect import in_prefect
from flows.this_run import chosen_name
from tasks.evaluate import evaluate as evaluate_models
from training.config import METHODS

ROLES = ("tokens", "items", "pairs", "tokenizer", "base", "blocks", *METHODS, "calibration")


def stages(run: Runner, config: Config, made: dict[str, Any]) -> dict[str, Any]:
    return made | {"evaluation": run(evaluate_models, **{role: made[role] for role in ROLES if role in made})}


def upstream(run: Runner, config: Config) -> dict[str, Any]:
    """The artifacts that align/full leaves; refused where one is missing."""
    there = run.expecting("align")
    return align.stages(there, config, train.stages(there, config, curate.body(there, config)))


def body(run: Runner, config: Config) -> dict[str, Any]:
    return stages(run, config, upstream(run, config))


@flow(name="evaluate", flow_run_name=chosen_name)
def evaluate(preset: Preset = Preset.laptop, config: str | None = None, overrides: dict[str, Any] | None = None) -> State | None:
    """Score the models that align/full made.

    Args:
        preset: A file of deployments/presets. Without effect beside a config, which names its own base.
        config: A file of your own settings: a whole path on the worker's machine, or s3://BUCKET/my.yaml.
        overrides: Dotted settings.
    """
    return in_prefect("evaluate", body, preset, config, overrides)
