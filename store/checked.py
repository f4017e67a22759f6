"""JSON that knows when it was changed: a value beside its own checksum. Manifests, seals, checkpoints, locks and records are written so."""

import hashlib
import json
from typing import Any

CHECKSUM = "checksum"


def dump_checked(value: dict[str, Any], indent: int | None = None) -> bytes:
    plain = json.loads(json.dumps(value))
    return json.dumps(plain | {CHECKSUM: _checksum(plain)}, indent=indent, ensure_ascii=False).encode()


def load_checked(data: bytes) -> dict[str, Any]:
    """The value, without its checksum. Raises ValueError for what is not the JSON that was written (older files have no checksum)."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    noted = value.pop(CHECKSUM, None)
    if noted is not None and noted != _checksum(value):
        raise ValueError("its checksum is another")
    return value


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
