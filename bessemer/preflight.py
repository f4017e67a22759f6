"""What a run looks at before anything runs, since a stage would find it missing hours later: engines, models, files of its settings."""

from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version

import psutil

from bessemer.config import Config
from contract.errors import ConfigError
from engine.stage import Stage
from sources.files import files_of
from tasks.eval_tasks import eval_tasks
from tasks.pretrain import pretrain
from tasks.score_toxicity import score_toxicity

PARTS = ("curate", "train", "align", "evaluate", "export")


def refuse_what_would_fail_later(config: Config, flow: str, elsewhere: Collection[str] = ()) -> None:
    """Raise ConfigError or InputError. `elsewhere`: parts that run on other machines, which look for themselves."""
    parts = PARTS if flow == "pretrain" else (flow,)
    if "evaluate" in parts and not config.split.validation:
        raise ConfigError("split.validation: 0 leaves evaluation nothing to score; give it a share, such as 0.03")
    here = [part for part in parts if part not in elsewhere]
    if "train" in here:
        _refuse_absent_engine("train.engine", config.train.engine)
        _look_up(config, pretrain)
    if "align" in here and config.align.methods:
        _refuse_absent_engine("align.engine", config.align.engine)
    if "curate" in here:
        _refuse_absent_files(config)
        there = psutil.virtual_memory().total
        if config.run.memory_bytes > there and config.run.ray_address is None:
            raise ConfigError(f"run.memory_bytes: {config.run.memory_bytes:,} is more than this machine's memory ({there:,}); lower it")


def _refuse_absent_engine(setting: str, engine: str) -> None:
    if engine != "deepspeed":
        return
    try:
        version("deepspeed")
    except PackageNotFoundError:
        raise ConfigError(
            f"{setting}: deepspeed is not installed here; install it (make setup), or set {setting}: plain, which is torch alone"
        ) from None


def _refuse_absent_files(config: Config) -> None:
    """Files that a later stage than ingest reads."""
    _look_up(config, eval_tasks, score_toxicity)
    if config.align.methods:
        for source in config.align_data.sources:
            if not source.is_environment:
                files_of(source, config.storage.endpoint_url, config.store().uri)


def _look_up(config: Config, *stages: Stage) -> None:
    """Digest the stages' outside files, as the stages themselves will: a file that is not there is named."""
    for stage in stages:
        assert stage.external is not None
        stage.external(stage.config(config), config.store())
