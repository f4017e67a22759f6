"""What a run is doing now, as a small file of the clone's services: /metrics of the report server reads it (services/run_metrics.py).

It holds names of stages, counts and figures: no text of documents, no path, no setting. A run goes on where the file cannot be written.
"""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import psutil

from engine.stage import Journal
from engine.stage_lines import Note
from services.run_metrics import ENDED_S, folder
from store.artifact import Artifact
from store.run_records import RunRecord

PAUSE_S = 1.0
"""The time between two writings while a stage works."""


class LiveJournal:
    """Hands every report on to another journal, and notes it in the run's file."""

    def __init__(self, journal: Journal, flow: str, preset: str) -> None:
        self._journal, self._written = journal, 0.0
        me = psutil.Process()
        self._file = folder() / f"{me.pid}-{time.time_ns()}.json"
        self._value: dict[str, Any] = {"flow": flow, "preset": preset, "pid": me.pid, "process_created": me.create_time()}
        self._value |= {"started": time.time(), "state": "running", "stages": {}}
        self._write()

    def started(self, stage: str, fingerprint: str, why: str) -> None:
        self._value["stages"][stage] = {"state": "running", "started": time.time(), "progress": 0.0}
        self._write()
        self._journal.started(stage, fingerprint, why)

    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None:
        row = self._value["stages"].setdefault(stage, {"state": "running", "started": time.time()})
        row["progress"] = min(done / max(total, 1), 1.0)
        row["figures"] = row.get("figures", {}) | _finite(note)
        if time.monotonic() - self._written > PAUSE_S:
            self._write()
        self._journal.progress(stage, done, total, unit, note)

    def warn(self, stage: str, text: str) -> None:
        self._journal.warn(stage, text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None:
        row = self._value["stages"].setdefault(artifact.stage, {})
        row |= {"state": state, "progress": 1.0, "seconds": seconds}
        if count := artifact.ledger.documents:
            gone = sum(count.dropped.values())
            row["documents"] = {"in": count.came_in + count.added, "out": count.out, "dropped": gone, "quarantined": count.quarantined}
        self._write()
        self._journal.finished(artifact, state, why, seconds)

    def end(self, state: str) -> None:
        for row in self._value["stages"].values():
            if row["state"] == "running":
                row["state"] = state
        self._value["state"] = state
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            half = self._file.with_suffix(".part")
            half.write_text(json.dumps(self._value | {"updated": time.time()}))
            half.replace(self._file)


def _finite(note: str) -> dict[str, float]:
    figures = note.figures if isinstance(note, Note) else {}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def live_figures(journal: Journal, record: RunRecord) -> LiveJournal:
    """The journal that keeps the file of this run; files of runs that ended long ago are removed first."""
    _forget_old(folder())
    live = LiveJournal(journal, record.value["flow"], record.value["preset"])
    record.on_end = live.end
    return live


def _forget_old(where: Path) -> None:
    with contextlib.suppress(OSError):
        for file in where.iterdir():
            if time.time() - file.stat().st_mtime > ENDED_S:
                file.unlink()
