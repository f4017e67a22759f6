"""A signal that a user writes: an object of the class Signal, in a package of theirs, that `filters.signals` names.

    import pyarrow as pa
    from filters.signals import Signal

    def measure(texts, settings):
        return {"mark_fraction": [text.count(settings["mark"]) / max(1, len(text)) for text in texts.to_pylist()]}

    EXCITEMENT = Signal("excitement", version=1, columns={"mark_fraction": pa.float32()}, measure=measure)

A stage of its own, `score_excitement`, measures it part by part. `select` drops by the bounds in the setting, after its own rules; the
reason is the signal's name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from contract.errors import ConfigError, StageFailed
from contract.plug_ins import load_plug_in
from contract.schemas import DOMAINS
from filters.config import Bounds, SignalConfig, nearest
from filters.decisions import PERPLEXITY, RULES

GROUP = "bessemer.signals"
"""The group of the entry points."""
TAKEN = {"rules", PERPLEXITY, *(rule.reason for rule in RULES)}
"""Names that signals and reasons already have; those of deduplication end in `_duplicate`."""

Measure = Callable[[pa.ChunkedArray, Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Signal:
    """What a signal is called, what it measures, and how."""

    name: str
    """Of the stage (`score_<name>`), and of the reason for a drop: lower-case letters, digits and underscores."""
    version: int
    """Raise it when equal text and settings would give other values: the fingerprint holds the version, not the code."""
    columns: Mapping[str, pa.DataType]
    """The measured values by name. A bound `min_<column>` or `max_<column>` needs a number."""
    measure: Measure
    """(texts of one part, the setting's `settings`) -> the values of every column, one a text and in their order; None for no value.

    It runs in worker processes, several at a time. A text may have any length. Those that deduplication dropped are left out.
    """

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name) or self.name in TAKEN or self.name.endswith("_duplicate"):
            raise ConfigError(f"a signal cannot be called {self.name!r}: give it a name of its own in lower-case letters, digits and _")
        if not self.columns or "id" in self.columns:
            raise ConfigError(f"signal {self.name}: `columns` names what is measured, at least one value, and none of them is `id`")

    def table(self, texts: pa.ChunkedArray, settings: Mapping[str, Any]) -> pa.Table:
        """One row a text. Raises StageFailed where `measure` returned something else."""
        made = self.measure(texts, settings)
        if set(made) != set(self.columns):
            raise StageFailed(f"signal {self.name}: measure returned {sorted(made)}; its columns are {sorted(self.columns)}")
        try:
            table = pa.table({name: pa.array(made[name], kind) for name, kind in self.columns.items()})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise StageFailed(f"signal {self.name}: what measure returned is not of its columns' types ({error})") from error
        if len(table) != len(texts):
            raise StageFailed(f"signal {self.name}: measure returned {len(table):,} values for {len(texts):,} texts")
        return table

    def bounds(self, config: SignalConfig) -> dict[str, Bounds]:
        """The bounds in every domain. Raises ConfigError for one that no column has."""
        numbers = [name for name, kind in self.columns.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
        known = tuple(f"{end}_{name}" for name in numbers for end in ("min", "max"))
        for domain in config.domains:
            if domain not in DOMAINS:
                raise ConfigError(f"filters.signals, {self.name}: there is no domain {domain}; {nearest(domain, DOMAINS)}")
        for name in [*config.bounds, *(name for bounds in config.domains.values() for name in bounds)]:
            if name not in known:
                raise ConfigError(f"filters.signals, {self.name}: there is no bound {name}; {nearest(name, known)}")
        return {domain: {**config.bounds, **config.domains.get(domain, {})} for domain in DOMAINS}


def signal_of(name: str) -> Signal:
    """The plug-in of that name. Raises ConfigError."""
    return load_plug_in(name, GROUP, Signal, "filters.signals")


def signals_of(configs: tuple[SignalConfig, ...]) -> dict[str, tuple[Signal, SignalConfig]]:
    """The signals of a configuration by name. Raises ConfigError for two of one name."""
    found: dict[str, tuple[Signal, SignalConfig]] = {}
    for config in configs:
        signal = signal_of(config.use)
        if signal.name in found:
            raise ConfigError(f"filters.signals: {found[signal.name][1].use} and {config.use} are both called {signal.name}; rename one")
        found[signal.name] = signal, config
    return found
