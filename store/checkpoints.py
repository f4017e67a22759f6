"""Training checkpoints of a stage: whole or absent, found over all attempts.

<attempt>/checkpoints/step-<n>/<file>, then step-<n>/WHOLE, which names the files with their digests. No WHOLE, no checkpoint.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from store.artifact import FileRecord
from store.attempt import Attempt, Reader
from store.checked import dump_checked, load_checked
from store.config import StorageConfig
from store.root import open_root
from store.storage import matches


@dataclass(frozen=True)
class Checkpoints:
    attempt: Attempt

    def to_json(self) -> dict[str, Any]:
        a = self.attempt
        endpoint = getattr(a.storage, "endpoint_url", None)
        place = StorageConfig(root=a.storage.uri, endpoint_url=endpoint).model_dump()
        return {"storage": place, "stage": a.stage, "fingerprint": a.fingerprint, "basis": a.basis, "attempt": a.id}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Checkpoints":
        storage = open_root(value["storage"]["root"], value["storage"]["endpoint_url"])
        return cls(Attempt(storage, value["stage"], value["fingerprint"], value["basis"], value["attempt"]))

    def save(self, step: int, folder: Path) -> None:
        """Upload every file of a local folder as the checkpoint of `step`."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        name = f"checkpoints/step-{step:09d}"
        records = [self.attempt.file(f"{name}/{path.relative_to(folder).as_posix()}", path, content=False) for path in files]
        value = {"basis": self.attempt.basis, "step": step, "files": [asdict(record) for record in records]}
        self.attempt.storage.write(f"{self.attempt.folder}{name}/WHOLE", dump_checked(value))

    def latest(self) -> tuple[int, Path] | None:
        """The highest whole step of all attempts on the same inputs, as a local folder; damaged ones are passed over."""
        for step, files in reversed(self._whole()):
            prefix = f"checkpoints/step-{step:09d}"
            return step, Reader(self.attempt.storage, {f.name: f for f in files}, self.attempt.stage).folder(prefix)
        return None

    def is_there(self) -> bool:
        """Whether an attempt on the same inputs left one."""
        return bool(self._whole())

    def prune(self, keep_last: int, keep_every: int = 0) -> None:
        """Delete this attempt's older checkpoints, the marker first; the newest whole one always stays."""
        own = [step for step, files in self._whole() if files[0].path.startswith(self.attempt.folder)]
        for step in own[: -max(1, keep_last)]:
            if not (keep_every and step % keep_every == 0):
                folder = f"{self.attempt.folder}checkpoints/step-{step:09d}/"
                self.attempt.storage.delete(folder + "WHOLE")
                for entry in self.attempt.storage.list(folder):
                    self.attempt.storage.delete(entry.path)

    def _whole(self) -> list[tuple[int, list[FileRecord]]]:
        storage = self.attempt.storage
        base = self.attempt.folder[: -len(self.attempt.id) - 1]
        entries = {entry.path: entry for entry in storage.list(base)}
        found = []
        for path in entries:
            if path.endswith("/WHOLE"):
                try:
                    value = load_checked(storage.read(path))
                    files = [FileRecord(**record) for record in value["files"]]
                except (ValueError, FileNotFoundError):
                    continue  # changed, or deleted meanwhile: no checkpoint
                if value["basis"] == self.attempt.basis and all(
                    matches(storage, entries.get(f.path), f.size, f.digest, f.token) for f in files
                ):
                    found.append((int(value["step"]), files))
        return sorted(found, key=lambda pair: pair[0])
