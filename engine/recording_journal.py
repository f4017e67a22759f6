"""A journal that also notes every artifact in the run's record, before the next stage reads it, and keeps it for the summary."""

from engine.stage import Journal
from store.artifact import Artifact
from store.run_records import RunRecord


class RecordingJournal:
    def __init__(self, journal: Journal, record: RunRecord) -> None:
        self._journal, self._record = journal, record
        self.artifacts: list[Artifact] = []
        self.started, self.progress, self.warn = journal.started, journal.progress, journal.warn

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None:
        self._record.used(artifact, state)
        self.artifacts.append(artifact)
        self._journal.finished(artifact, state, why, seconds)
