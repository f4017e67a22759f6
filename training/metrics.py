"""What a run says of itself: one JSON line a step to the parent, and the history that becomes losses.jsonl."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

Record = dict[str, Any]


class Report:
    """JSON lines for the parent process. Times are told, never kept: the history must be the same in every run."""

    def __init__(self, stream: TextIO | None, clock: Callable[[], float], total: int, unit: str) -> None:
        self._stream, self._clock, self._total, self._unit = stream, clock, total, unit
        self._last: tuple[float, int] | None = None

    def step(self, done: int, tokens: int, **figures: Any) -> None:
        """`done` steps of the total; `tokens` seen so far, from which the rate since the last line follows."""
        now = self._clock()
        rate = None
        if self._last is not None and tokens > self._last[1] and now > self._last[0]:
            rate = round((tokens - self._last[1]) / (now - self._last[0]), 1)
        self._last = (now, tokens)
        self._write({"progress": [done, self._total, self._unit], **figures, "tokens_per_s": rate})

    def resumed(self, done: int) -> None:
        """For whoever pressed Retry: how much of the work it did not cost."""
        self.warn(f"goes on from its checkpoint after {done:,} of {self._total:,} {self._unit}")

    def warn(self, sentence: str) -> None:
        self._write({"warn": sentence})

    def error(self, kind: str, sentence: str) -> None:
        self._write({"error": sentence, "kind": kind})

    def _write(self, line: Record) -> None:
        if self._stream is not None:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()


def write_history(path: Path, history: Sequence[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in history))


def final_loss(history: Sequence[Record], last: int = 20) -> float | None:
    """The mean of the last good losses: one step's is noise."""
    losses = [record["loss"] for record in history if record["loss"] is not None and not record["skipped"]][-last:]
    return sum(losses) / len(losses) if losses else None
