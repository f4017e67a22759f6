"""export: the chosen model -> a folder that transformers loads, and the report of the whole run."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from bessemer.config import Config, Preset
from engine.runner import Runner
from flows import evaluate
from flows.in_prefect import in_prefect
from flows.this_run import chosen_name
from tasks.export import export as export_model
from tasks.report import report


def stages(run: Runner, config: Config, made: dict[str, Any]) -> dict[str, Any]:
    sources = {role: made[role] for role in ("tokenizer", "documents", "blocks", "evaluation")}
    made = made | {"export": run(export_model, model=made["base" if config.align.export == "pretrain" else config.align.export], **sources)}
    return made | {"report": run(report, **made)}


def body(run: Runner, config: Config) -> dict[str, Any]:
    there = run.expecting("evaluate")
    return stages(run, config, evaluate.stages(there, config, evaluate.upstream(there, config)))


@flow(name="export", flow_run_name=chosen_name)
def export(preset: Preset = Preset.laptop, config: str | None = None, overrides: dict[str, Any] | None = None) -> State | None:
    """Export the chosen model and write the report.

    Args:
        preset: A file of deployments/presets. Without effect beside a config, which names its own base.
        config: A file of your own settings: a whole path on the worker's machine, or s3://BUCKET/my.yaml.
        overrides: Dotted settings, such as {"align.export": "dpo"}.
    """
    return in_prefect("export", body, preset, config, overrides)
