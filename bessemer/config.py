"""The whole configuration: the settings of all rooms, from a preset, a file of the user's and overrides.

A wrong key is refused with the nearest right one. How layers merge is in `bessemer/layers.py`.
"""

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from bessemer.config_file import ConfigFile, read_config_file
from bessemer.layers import Layers, inner_group, read_yaml
from contract.config import Frozen, RunOn, RunOptions
from contract.errors import ConfigError
from contract.schemas import DOMAINS
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
from store.run_records import without_secrets
from store.storage import Storage
from tokens.config import MixConfig, TokenizerConfig
from training.config import POLICIES, AlignConfig, ModelName, TrainConfig

PROJECT = Path(__file__).parents[1]
PRESETS = PROJECT / "deployments" / "presets"
SHOWN_CHARS = 200
"""Of a setting's value in a report; a list of sources can be long."""


class Preset(StrEnum):
    """The files of deployments/presets, as the flows' form lists them."""

    smoke = "smoke"
    laptop = "laptop"
    gpu_124m = "124m"
    gpu_350m = "350m"
    gpu_1b = "1b"


MOST = 2**53
"""Above it a number is no longer exact everywhere."""
DEFAULT_PRESET = Preset.laptop.value


class EvaluateModels(EvaluateConfig):
    """The evaluation's settings, with the names of the models that there can be: its room does not know what is trained."""

    scored: tuple[ModelName, ...] | None = Field(default=None, min_length=1)


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
                raise ValueError(f"sources: two are named {name}; give each a `name`, as document ids are made from it")
        return self

    @model_validator(mode="after")
    def _numbers_are_of_this_world(self) -> "Config":
        for key, value in _numbers(self):
            if abs(value) > MOST and not key.endswith("seed"):
                raise ValueError(f"{key}: {value:g} is larger than any size or number that a run can have")
        return self

    @model_validator(mode="after")
    def _names_are_there(self) -> "Config":
        sources = {source.name or source.domain for source in self.sources}
        made = {"base", *(name for name in self.align.stages() if name in POLICIES)}
        if self.evaluate.scored and made.isdisjoint(self.evaluate.scored):  # a preset may name more than is made
            raise ValueError(f"evaluate.scored: nothing is scored, as none of {', '.join(self.evaluate.scored)} is made; name one that is")
        for key, names, known in (
            ("dedup.prefer", self.dedup.prefer, {*sources, *DOMAINS}),
            ("split.trusted_sources", self.split.trusted_sources, sources),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{key}: there is no {name} among {', '.join(sorted(known))}")
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "Config":
        """What a stage would find out only when it starts, hours into a run."""
        tokens, context, ppo = self.train.global_batch_tokens, self.model.context, self.align.ppo
        if tokens % context:
            raise ValueError(f"train.global_batch_tokens: {tokens} is no multiple of model.context {context}; make it one")
        rows = {"train.global_batch_tokens / model.context": tokens // context}
        for name in self.align.stages():
            rows[f"align.{name}.batch_size"] = getattr(self.align, name).batch_size
        if "ppo" in self.align.stages():
            if ppo.batch_size % ppo.minibatches:
                raise ValueError(f"align.ppo.minibatches: {ppo.minibatches} must divide align.ppo.batch_size {ppo.batch_size}")
            rows["align.ppo.batch_size / align.ppo.minibatches"] = ppo.batch_size // ppo.minibatches
        for what, count in rows.items():
            if self.run.ranks and count % self.run.ranks:
                raise ValueError(
                    f"run.ranks: {self.run.ranks} ranks cannot share the {count} rows of a step ({what}); make them a multiple"
                )
        for key, length in (("align.ppo.max_new_tokens", ppo.max_new_tokens), ("evaluate.max_new_tokens", self.evaluate.max_new_tokens)):
            if self.align.methods and length >= context:
                raise ValueError(f"{key}: {length} leaves no room for a prompt in model.context {context}; lower it")
        return self

    @model_validator(mode="after")
    def _sides_are_not_empty(self) -> "Config":
        if self.align.methods and not self.align_data.sources:
            raise ValueError("align_data.sources: alignment needs questions and answers; name some, or set align.methods: []")
        for side in ("validation", "test"):
            if self.align.methods and not getattr(self.split, side):
                raise ValueError(
                    f"split.{side}: 0 leaves alignment no prompts on the {side} side; give it a share, or set align.methods: []"
                )
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
        return open_root(self.root()[0], self.storage.endpoint_url)

    def root(self) -> tuple[str, str]:
        """The address of the root, and what says so where storage.root is unset."""
        if self.storage.root:
            return self.storage.root, ""
        if there := os.environ.get("BESSEMER_STORAGE_ROOT"):
            return there, "environment BESSEMER_STORAGE_ROOT"
        if (PROJECT / "prefect.yaml").exists():
            return (PROJECT / "runs").as_uri(), "default: the clone's runs/"
        return (Path.cwd() / "runs").as_uri(), "default: runs/ here, as there is no clone"


@dataclass(frozen=True)
class Asked:
    """What a run was asked for, and the whole configuration that follows from it."""

    preset: str | None
    """What the rest stands on; None: the built-in defaults."""
    file: ConfigFile | None
    overrides: dict[str, Any]
    config: Config
    layers: Layers

    @property
    def scope(self) -> str:
        """What the root's `last/` calls these runs: the file's name, else the preset's."""
        return self.file.scope if self.file else str(self.preset)

    @property
    def title(self) -> str:
        return f"config {self.file.name}" if self.file else f"preset {self.preset}"

    def notes(self) -> list[str]:
        """What a mapping that was given whole leaves out of the one it took the place of."""
        found = []
        for key, before in self.layers.replaced.items():
            lost = sorted(before - set(value_at(self.config, key)))
            if lost and not str(self.layers.origin(key)).startswith("preset "):
                one = f"{key}.{next(iter(value_at(self.config, key)), 'KEY')}"
                found.append(f"{key} is replaced as a whole, without {', '.join(lost)}; a key such as {one} changes one entry alone")
        return found

    def to_record(self) -> dict[str, Any] | None:
        """For the run's record: the file, and the whole configuration as it was then."""
        if self.file is None:
            return None
        return {"file": self.file.where, "sha256": self.file.digest, "base": self.preset, "settings": self.config.model_dump(mode="json")}

    def to_show(self) -> dict[str, Any]:
        """For a reader of the report: what it stands on, and each setting that was given over a preset, with its origin; no places.

        A setting is (key, its value as JSON, where it was written). Secrets of the environment are hidden.
        """
        name = f"{self.file.name} ({self.file.digest[:12]}) over " if self.file else ""
        title = f"{name}preset {self.preset}" if self.preset else f"{name}the built-in defaults"
        given = []
        for key, origin in sorted(self.layers.origins.items()):
            if origin.layer != f"preset {self.preset}" and not key.startswith("storage."):
                value = json.dumps(without_secrets(self.layers.value(key)), ensure_ascii=False)
                given.append((key, value if len(value) <= SHOWN_CHARS else f"{value[:SHOWN_CHARS]}…", str(origin)))
        return {"title": title, "settings": given}

    def kept(self, storage: Storage) -> dict[str, Any]:
        """Parameters that give a flow this very configuration elsewhere and later: of the file, they name a copy in the root."""
        overrides = dict(self.overrides)
        if self.file is None:
            return {"preset": self.preset, "overrides": overrides}
        overrides |= {"storage.root": storage.uri}
        if self.config.storage.endpoint_url:
            overrides |= {"storage.endpoint_url": self.config.storage.endpoint_url}
        return {"preset": self.preset or DEFAULT_PRESET, "config": self.file.keep(storage), "overrides": overrides}


def ask(preset: str | None, config: str | None = None, overrides: dict[str, Any] | None = None) -> Asked:
    """The configuration of a preset or of a file that stands on one, with dotted overrides such as {"train.max_steps": 50}.

    The file alone says what it stands on: a preset beside it must be its base. Raises ConfigError that names the key, where it was
    written, and the nearest right one.
    """
    overrides = overrides or {}
    endpoint = overrides.get("storage.endpoint_url")
    file = read_config_file(config, endpoint if isinstance(endpoint, str) else None) if config else None
    base = file.base if file else preset or DEFAULT_PRESET
    if file and preset not in (None, base):
        stands = f"base: {base}" if base else "no base, so it stands on the built-in defaults"
        raise ConfigError(
            f"config {file.where} has {stands}, and the preset beside it is {preset}; leave the preset out, or write it there"
        )
    layers = Layers(Config)
    if base is not None:
        layers.put_all(*_preset(base, f"{file.at('base')}: " if file else ""))
    if file:
        layers.put_all(file.settings, file.name, file.lines)
    for key, value in overrides.items():
        layers.put(key, value, "override")
    try:
        return Asked(base, file, overrides, Config.model_validate(layers.values), layers)
    except ValidationError as error:
        raise ConfigError(_sentences(error, layers, file)) from error


def load(preset: str, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration of a preset with overrides."""
    return ask(preset, None, overrides).config


def _preset(name: str, where: str = "") -> tuple[dict[str, Any], str, dict[tuple[str | int, ...], int]]:
    """Its settings, what to call it, and no lines: its file is ours to correct."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{where}there is no preset {name}{_nearest(name, known)}; presets: {', '.join(known)}")
    file = PRESETS / f"{name}.yaml"
    values = _parsed(file.read_bytes(), f"preset {file}") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"preset {file} holds no settings; write one key: value a line, as in sources: […]")
    return values, f"preset {name}", {}


_parsed = lru_cache(maxsize=8)(read_yaml)  # a preset takes ten milliseconds, and nobody changes what comes back
"""A preset's YAML, read once."""


def parse_set(text: str) -> tuple[str, Any]:
    """`train.max_steps=50` as (key, value); the value is read as YAML, so lists and nested keys work."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: write key=value, as in --set train.max_steps=50")
    return key.strip(), read_yaml(value, f"--set {key}: {value[:200]!r}")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number in it by its dotted key."""
    if isinstance(value, Frozen):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, int | float):
        yield key, value


def value_at(config: Frozen, key: str) -> Any:
    """A setting by its dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def known_keys(model: type[Frozen] = Config, prefix: str = "") -> list[str]:
    """Every dotted key, groups included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if inner := inner_group(field):
            keys += known_keys(inner, f"{prefix}{name}.")
    return keys


def _nearest(key: str, known: list[str]) -> str:
    """The most similar known key. One with the same last part counts as similar, so `max_steps` finds `train.max_steps`."""
    by_end = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    found = by_end[:1] or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; the nearest is {found[0]}" if found else ""


def _sentences(error: ValidationError, layers: Layers, file: ConfigFile | None) -> str:
    """A line for each fault; with the file's name and line where it stands in the file."""
    lines = []
    for fault in error.errors():
        loc = fault["loc"] or tuple(fault["msg"].removeprefix("Value error, ").partition(":")[0].split("."))
        place = ".".join(str(part) for part in fault["loc"])
        origin = layers.origin(".".join(str(part) for part in loc))
        where = f"{file.at(*loc)}: " if file and origin and origin.layer == file.name else ""
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}{place} is no setting{_nearest(place, known_keys())}")
        else:
            given = "" if fault["type"] in ("missing", "value_error") else f" (given: {str(fault['input'])[:60]})"
            lines.append(where + f"{place}: {fault['msg'].removeprefix('Value error, ')}{given}".removeprefix(": "))
    return "\n".join(lines)
