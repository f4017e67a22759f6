"""The whole configuration: the settings of all rooms, presets, and overrides. A wrong key is refused with the nearest right one."""

import difflib
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from contract.config import Frozen, RunOn, RunOptions
from contract.errors import ConfigError
from dedup.config import DeduplicateConfig
from evaluation.config import EvaluateConfig
from evaluation.config_export import ExportConfig
from filters.config import FiltersConfig, GatesConfig
from filters.config_split import SplitConfig
from filters.signals import signals_of
from models.config import ModelConfig
from sources.config import AlignDataConfig, IngestConfig, Placed, Source
from store.config import StorageConfig
from store.root import open_root
from store.storage import Storage
from tokens.config import MixConfig, TokenizerConfig
from training.config import AlignConfig, ModelName, TrainConfig

PROJECT = Path(__file__).parents[1]
PRESETS = PROJECT / "deployments" / "presets"


class Preset(StrEnum):
    """The files of deployments/presets, as the flows' form lists them."""

    smoke = "smoke"
    laptop = "laptop"
    gpu_124m = "124m"
    gpu_350m = "350m"
    gpu_1b = "1b"


class EvaluateModels(EvaluateConfig):
    """The evaluation's settings, with the names of the models that there can be: its room does not know what is trained."""

    scored: tuple[ModelName, ...] | None = None


class Config(Frozen):
    """Everything that a run can be told. `storage`, `run` and `run_on` are places and speed; the rest is identity."""

    storage: StorageConfig = StorageConfig()
    run: RunOptions = RunOptions()
    run_on: RunOn = RunOn()
    sources: tuple[Source, ...] = Field(min_length=1)
    """The corpus: environment:…, files, folders, globs, s3://…"""
    ingest: IngestConfig = IngestConfig()
    dedup: DeduplicateConfig = DeduplicateConfig()
    split: SplitConfig = SplitConfig()
    filters: FiltersConfig = FiltersConfig()
    gates: GatesConfig = GatesConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    mix: MixConfig = MixConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    align_data: AlignDataConfig = AlignDataConfig()
    align: AlignConfig = AlignConfig()
    evaluate: EvaluateModels = EvaluateModels()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _sources_have_names_of_their_own(self) -> "Config":
        names = [source.name or source.domain for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name}; give each a `name`, as document ids are made from it")
        return self

    def has_steps_to_fit(self) -> bool:
        """Whether a stage that will run leaves its number of steps to calibrate."""
        aligned = [getattr(self.align, name) for name in self.align.stages()]
        return any(settings.max_steps is None for settings in (self.train, *aligned))

    def refuse_missing_plug_ins(self) -> None:
        """Look for code of the user's own before anything runs: some of it would be missed hours into a run. Raises ConfigError."""
        for source in (*self.sources, *self.align_data.sources):
            Placed.of(source)
        signals_of(self.filters.signals)

    def store(self) -> Storage:
        root = self.storage.root or os.environ.get("BESSEMER_STORAGE_ROOT") or (PROJECT / "runs").as_uri()
        return open_root(root, self.storage.endpoint_url)


def load(preset: str, overrides: dict[str, Any] | None = None) -> Config:
    """A preset with dotted overrides such as {"train.max_steps": 50}. Raises ConfigError that names the key and the nearest one."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if preset not in known:
        raise ConfigError(f"there is no preset {preset}{_nearest(preset, known)}; presets: {', '.join(known)}")
    file = PRESETS / f"{preset}.yaml"
    values = _read_yaml(file.read_bytes(), f"preset {file}") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"preset {file} holds no settings; write one key: value a line, as in sources: […]")
    for key, value in (overrides or {}).items():
        _put(values, key, value)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentences(error)) from error


def parse_set(text: str) -> tuple[str, Any]:
    """`train.max_steps=50` as (key, value); the value is read as YAML, so lists and nested keys work."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: write key=value, as in --set train.max_steps=50")
    return key.strip(), _read_yaml(value, f"--set {key}: {value[:200]!r}")


class _WithoutAliases(yaml.SafeLoader):
    """A loader that refuses aliases: nine lists of nine aliases each are a billion values when they are printed or checked."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken: write the value out")
        return super().compose_node(parent, index)


def _read_yaml(text: str | bytes, what: str) -> Any:
    try:
        return yaml.load(text, _WithoutAliases)  # a SafeLoader
    except Exception as error:  # besides YAMLError, Python's own for 2001-99-99, !!int "", !!bool x or a thousand brackets
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{what} cannot be read as YAML ({cause}); correct it") from error


def _put(values: dict[str, Any], key: str, value: object) -> None:
    *path, last = key.split(".")
    inner: Any = values
    for name in path:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {name} is not a group of settings")
    inner[last] = value


def known_keys(model: type[Frozen] = Config, prefix: str = "") -> list[str]:
    """Every dotted key, groups included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Frozen):
            keys += known_keys(inner, f"{prefix}{name}.")
    return keys


def _nearest(key: str, known: list[str]) -> str:
    """The most similar known key. One with the same last part counts as similar, so `max_steps` finds `train.max_steps`."""
    by_end = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    found = by_end[:1] or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; the nearest is {found[0]}" if found else ""


def _sentences(error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{place} is no setting{_nearest(place, known_keys())}")
        else:
            given = "" if fault["type"] in ("missing", "value_error") else f" (given: {str(fault['input'])[:60]})"
            lines.append(f"{place}: {fault['msg'].removeprefix('Value error, ')}{given}".removeprefix(": "))
    return "\n".join(lines)
