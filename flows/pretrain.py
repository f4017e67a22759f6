"""pretrain: the whole way, from raw text to an aligned, evaluated, exported model."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from bessemer.config import Config, Preset
from engine.runner import Runner
from flows import align, curate, evaluate, export, train
from flows.in_prefect import in_prefect
from flows.this_run import chosen_name


def body(run: Runner, config: Config) -> dict[str, Any]:
    curated = run.part("curate", lambda run: curate.body(run, config))
    trained = run.part("train", lambda run: train.stages(run, config, curated))
    aligned = run.part("align", lambda run: align.stages(run, config, trained))
    scored = run.part("evaluate", lambda run: evaluate.stages(run, config, aligned))
    return run.part("export", lambda run: export.stages(run, config, scored))


@flow(name="pretrain", flow_run_name=chosen_name)
def pretrain(preset: Preset = Preset.laptop, config: str | None = None, overrides: dict[str, Any] | None = None) -> State | None:
    """Run every stage; what is done already shows as Cached.

    Args:
        preset: A file of deployments/presets. Without effect beside a config, which names its own base.
        config: A file of your own settings: a whole path on the worker's machine, or s3://BUCKET/my.yaml.
        overrides: Dotted settings, such as {"train.max_steps": 50}.
    """
    return in_prefect("pretrain", body, preset, config, overrides)
