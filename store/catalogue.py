"""Everything that lies under artifacts/, in one listing: by fingerprint, its manifests and its files."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from store.artifact import Artifact, folder_of, read_manifest
from store.storage import Entry, Storage

Key = tuple[str, str]
"""A stage and a fingerprint."""


@dataclass
class Shelf:
    """What the store holds of one fingerprint."""

    stage: str
    fingerprint: str
    manifests: list[Entry] = field(default_factory=list)
    files: list[Entry] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return self.stage, self.fingerprint

    @property
    def newest(self) -> float:
        """When anything here was last written."""
        return max(entry.modified for entry in [*self.manifests, *self.files])

    def artifact(self, storage: Storage) -> Artifact | None:
        """The artifact that counts: that of the highest valid manifest."""
        for entry in reversed(self.manifests):
            artifact = read_manifest(storage, entry.path)
            if artifact is not None and artifact.fingerprint == self.fingerprint:
                return artifact
        return None


def shelves(storage: Storage, prefix: str = "artifacts/") -> list[Shelf]:
    """By stage and fingerprint, in order. What is not at artifacts/<stage>/<fingerprint>/… is not ours, and not listed."""
    found: dict[Key, Shelf] = {}
    for entry in storage.list(prefix):
        parts = entry.path.split("/")
        if len(parts) < 4 or len(parts[2]) != 64:
            continue
        shelf = found.setdefault((parts[1], parts[2]), Shelf(parts[1], parts[2]))
        is_manifest = len(parts) == 4 and parts[3].startswith("manifest-")
        (shelf.manifests if is_manifest else shelf.files).append(entry)
    return [found[key] for key in sorted(found)]


def shelf_of(storage: Storage, key: Key) -> Shelf:
    """One shelf as it is now; empty when there is nothing."""
    return next(iter(shelves(storage, folder_of(*key))), Shelf(*key))


def artifacts(storage: Storage) -> Iterator[Artifact]:
    for shelf in shelves(storage):
        artifact = shelf.artifact(storage)
        if artifact is not None:
            yield artifact
