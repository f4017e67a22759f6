"""Artifacts that a person wants kept: pins/<stage>-<fingerprint>.json, one file a pin, which `bessemer gc` obeys and never deletes."""

import json

from store.artifact import Artifact
from store.catalogue import Key
from store.storage import Storage

FOLDER = "pins/"


def pin(storage: Storage, artifact: Artifact) -> None:
    value = {"stage": artifact.stage, "fingerprint": artifact.fingerprint}
    storage.create(_path((artifact.stage, artifact.fingerprint)), json.dumps(value).encode())


def unpin(storage: Storage, key: Key) -> None:
    storage.delete(_path(key))


def pinned(storage: Storage) -> set[Key]:
    """From the names, so that a changed byte inside unpins nothing."""
    names = [entry.path.removeprefix(FOLDER).removesuffix(".json") for entry in storage.list(FOLDER)]
    return {(stage, fingerprint) for stage, _, fingerprint in (name.rpartition("-") for name in names)}


def _path(key: Key) -> str:
    return f"{FOLDER}{key[0]}-{key[1]}.json"
