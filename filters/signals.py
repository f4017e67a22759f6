"""A signal of the user's own: an object of this class in a package of theirs, named by `filters.signals` in the configuration.

    import pyarrow as pa
    from filters.signals import Signal

    def measure(texts, settings):
        return {"mark_fraction": [text.count(settings["mark"]) / max(1, len(text)) for text in texts.to_pylist()]}

    EXCITEMENT = Signal("excitement", version=1, columns={"mark_fraction": pa.float32()}, measure=measure)

A stage of its own, `score_excitement`, measures it part by part. `select` drops documents by the bounds that the setting gives, after
its own rules, and the reason is the signal's name.
"""

import copy
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from contract.errors import ConfigError, StageFailed, is_of_the_machine
from contract.plug_ins import load_plug_in, resolve_plug_in
from contract.schemas import DOMAINS
from filters.config import SignalBounds, SignalConfig, nearest
from filters.decisions import PERPLEXITY, RULES

GROUP = "bessemer.signals"
"""The group of the entry points."""
TAKEN = {"rules", PERPLEXITY, *(rule.reason for rule in RULES)}
"""Signals and reasons that there are already; those of deduplication end in `_duplicate`."""

Measure = Callable[[pa.ChunkedArray, dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Signal:
    """What a signal is called, what it measures, and how."""

    name: str
    """Of the stage (`score_<name>`), and of the reason for a drop: lower-case letters, digits and underscores."""
    version: int
    """From 1 up. Raise it when the same text and settings would give other values: the fingerprint has it, and not the code."""
    columns: Mapping[str, pa.DataType]
    """The measured values by name. A bound `min_<column>` or `max_<column>` needs a number."""
    measure: Measure
    """(texts of one part, the setting's `settings`) -> the values of every column, one a text and in their order.

    None and NaN are no value. It runs in worker processes, several at a time. A part has one text or more, of any length; texts that
    deduplication dropped are not among them. An error ends the run with a sentence that names the signal.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch("[a-z][a-z0-9_]{0,39}", self.name):
            raise ConfigError(f"a signal cannot be called {self.name!r}: write at most 40 lower-case letters, digits and underscores")
        if self.name in TAKEN or self.name.endswith("_duplicate"):
            raise ConfigError(f"a signal cannot be called {self.name}: a signal or a reason of ours has that name already")
        if type(self.version) is not int or self.version < 1:
            raise ConfigError(f"signal {self.name}: its version is {self.version!r}; give a whole number from 1 up")
        if not isinstance(self.columns, Mapping) or not self.columns or "id" in self.columns:
            raise ConfigError(f"signal {self.name}: `columns` names what is measured, at least one value, and none of them is `id`")
        if wrong := [name for name, kind in self.columns.items() if not isinstance(name, str) or not isinstance(kind, pa.DataType)]:
            raise ConfigError(f"signal {self.name}: the type of column {wrong[0]!r} is no Arrow type, such as pyarrow.float32()")
        if not callable(self.measure):
            raise ConfigError(f"signal {self.name}: `measure` is a {type(self.measure).__name__}, which cannot be called")

    def table(self, texts: pa.ChunkedArray, settings: Mapping[str, Any]) -> pa.Table:
        """One row a text. Raises StageFailed, in one line, for whatever `measure` does wrong."""
        if not len(texts):
            return pa.schema(list(self.columns.items())).empty_table()
        try:
            made = dict(self.measure(texts, copy.deepcopy(dict(settings))))
        except (Exception, SystemExit) as error:  # it is the user's code
            if is_of_the_machine(error):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise StageFailed(f"signal {self.name}: measure raised {what} (line {last.lineno} of {last.filename})") from error
        if set(made) != set(self.columns):
            raise StageFailed(f"signal {self.name}: measure returned {sorted(map(str, made))}; its columns are {sorted(self.columns)}")
        try:
            table = pa.table({name: pa.array(made[name], kind, from_pandas=True) for name, kind in self.columns.items()})
        except Exception as error:  # Arrow's and Python's own, by what the value is
            raise StageFailed(f"signal {self.name}: what measure returned is not of its columns' types ({error})") from error
        if len(table) != len(texts):
            raise StageFailed(f"signal {self.name}: measure returned {len(table):,} values for {len(texts):,} texts")
        return table

    def check(self, config: SignalBounds) -> None:
        """Raises ConfigError for a bound that no column has, and for a domain that there is not."""
        where = f"filters.signals, {self.name}"
        numbers = [name for name, kind in self.columns.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
        known = tuple(f"{end}_{name}" for name in numbers for end in ("min", "max"))
        for domain in config.domains:
            if domain not in DOMAINS:
                raise ConfigError(f"{where}: there is no domain {domain}; {nearest(domain, DOMAINS)}")
        for name in [*config.bounds, *(name for bounds in config.domains.values() for name in bounds)]:
            if not known:
                raise ConfigError(f"{where}: it can have no bound {name}, as none of its columns is a number")
            if name not in known:
                raise ConfigError(f"{where}: there is no bound {name}; {nearest(name, known)}")


def signal_of(name: str) -> Signal:
    """The plug-in of that name. Raises ConfigError."""
    return load_plug_in(name, GROUP, Signal, "filters.signals")


def resolved(name: str) -> str:
    """Its package.module:OBJECT."""
    return resolve_plug_in(name, GROUP, "filters.signals")


def signals_of(configs: tuple[SignalConfig, ...]) -> dict[str, tuple[Signal, SignalConfig]]:
    """The signals of a configuration by name. Raises ConfigError for two of one name, and for bounds that a signal cannot have."""
    found: dict[str, tuple[Signal, SignalConfig]] = {}
    for config in configs:
        signal = signal_of(config.use)
        if signal.name in found:
            other = found[signal.name][1].use
            both = f"{config.use} is listed twice" if other == config.use else f"{other} and {config.use} are both called {signal.name}"
            raise ConfigError(f"filters.signals: {both}; keep one, or rename one")
        signal.check(config)
        found[signal.name] = signal, config
    return found
