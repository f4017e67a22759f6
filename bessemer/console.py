"""Shows a run at the terminal: a line for each stage, and a bar with rate and time left while a stage works."""

import sys
import time
from typing import TextIO

from engine.stage_lines import HEAD, duration, row
from store.artifact import Artifact


class ConsoleJournal:
    """A bar on a terminal; in a log file, a line every ten seconds instead."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._bar = self._stream.isatty()
        self._begun = self._first = self._spoken = 0.0
        self._headed = False

    def started(self, stage: str, fingerprint: str, why: str) -> None:
        self._begun = self._spoken = time.monotonic()
        self._first = -1.0

    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None:
        now = time.monotonic()
        if self._first < 0:
            self._first, self._begun = done, now  # the rate leaves out what an earlier attempt did
        if not self._bar and (now - self._spoken < 10 or done >= total):
            return
        self._spoken = now
        rate = (done - self._first) / (now - self._begun) if now > self._begun and done > self._first else 0.0
        left = f"{duration((total - done) / rate)} left" if rate else ""
        share = done / max(total, 1)
        filled = "#" * round(20 * share)
        text = f"{stage:<19}[{filled:<20}] {100 * share:3.0f} %  {done:,.0f}/{total:,.0f} {unit}  {rate:,.1f}/s  {left}  {note}"
        self._write("\r\x1b[K" + text[:150] if self._bar else text + "\n")

    def warn(self, stage: str, text: str) -> None:
        self._write(("\r\x1b[K" if self._bar else "") + f"{stage:<19}note: {text}\n")

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None:
        if not self._headed:
            self._headed = True
            self._write(("\r\x1b[K" if self._bar else "") + HEAD + "\n")
        line = row(artifact, seconds, state, why)
        self._write(("\r\x1b[K" if self._bar else "") + line + "\n")

    def clear(self) -> None:
        """Remove an unfinished bar."""
        if self._bar:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
