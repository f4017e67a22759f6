"""A stage as one line, the same in a terminal and in a run's log."""

from collections.abc import Mapping
from typing import Any

from store.artifact import Artifact

HEAD = f"{'stage':<19}{'documents in':>13}{'out':>11}{'kept':>9}{'time':>9}  state"


class Note(str):
    """The text beside a progress bar, with its figures for whoever draws them."""

    figures: Mapping[str, float]

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "Note":
        """A child's message as text: its `note`, and the figures of a step that it holds."""
        shown = {"loss": ".4f", "lr": ".1e", "reward": ".3f", "kl": ".3f", "tokens_per_s": ",.0f"}
        figures = {name: float(message[name]) for name in shown if isinstance(message.get(name), int | float)}
        parts = [f"{name} {figures[name]:{form}}" for name, form in shown.items() if name in figures]
        note = cls(" | ".join([*([message["note"]] if "note" in message else []), *parts]).replace("tokens_per_s ", "tok/s "))
        note.figures = figures
        return note


def duration(seconds: float) -> str:
    """Seconds for a person to read: 0.4 s, 12.3 s, 4:12, 1:04:12."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def row(artifact: Artifact, seconds: float, state: str, why: str = "") -> str:
    """One stage's line: its documents, its time, its state, and why it ran."""
    count = artifact.ledger.documents
    kept = f"{100 * count.out / count.came_in:.1f} %" if count and count.came_in else ""
    came_in, out = (f"{count.came_in:,}", f"{count.out:,}") if count else ("", "")
    return (
        f"{artifact.stage:<19}{came_in:>13}{out:>11}{kept:>9}{duration(seconds):>9}  {state:<8}{artifact.fingerprint[:12]}  {why}".rstrip()
    )
