"""score_signal: a signal of the user's own (filters/signals.py). Each has a stage of this kind, under a name of its own."""

from dataclasses import replace
from typing import Any

from pydantic import JsonValue

from contract.config import Frozen
from contract.ledger import Ledger
from engine.parts import PartWriter
from engine.stage import Output, Stage, stage
from filters.config import FiltersConfig, SignalConfig
from filters.signals import Signal, resolved, signal_of, signals_of
from store.artifact import Artifact
from tasks.scoring import read_alive, score_parts, summed, tagging

OWN = "signal_"
"""What the role of such a signal begins with, in the stages that read it: no other role does."""


class Measured(Frozen):
    """What decides the values: which plug-in, its version, and its settings. Its code is known by the version alone."""

    signal: str
    signal_version: int
    settings: dict[str, JsonValue]


def signal_stages(filters: FiltersConfig) -> dict[str, Stage]:
    """A stage `score_<name>` for each signal of `filters.signals`, by the signal's name."""
    return {name: _stage_of(signal, config) for name, (signal, config) in signals_of(filters.signals).items()}


def _stage_of(signal: Signal, config: SignalConfig) -> Stage:
    measured = Measured(signal=resolved(config.use), signal_version=signal.version, settings=config.settings)
    return replace(score_signal, name=f"score_{signal.name}", config=lambda _: measured)


@stage(version=1, config=lambda measured: measured, counts="documents", rows="in")
def score_signal(documents: Artifact, duplicates: Artifact, config: Measured, out: Output) -> Ledger:
    """One row a document in the order of `documents`: id, then the signal's columns, null where dedup dropped it."""
    out.figures |= summed(score_parts(out, _score_part, documents=documents, duplicates=duplicates, config=config))
    return tagging(documents)


def _score_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    config: Measured = spec["config"]
    alive = read_alive(spec)
    signals = signal_of(config.signal).table(alive.text, config.settings)
    alive.write(signals, write)
    return {"scored": len(signals)}
