"""What a run was asked for and what it used: runs/<time>-<id>.json, written at its start, at every artifact, and at its end.

`bessemer gc` keeps the artifacts that records name. A record decides nothing else: no stage reads it.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from contract.errors import ComeAgain, PipelineError, said
from store.artifact import Artifact
from store.checked import dump_checked, load_checked
from store.storage import Entry, Storage

FOLDER = "runs/"
Mark = tuple[str, int, float]
SECRET_NAMES = re.compile(r"(SECRET|TOKEN|PASSWORD|API_KEY|AUTH_STRING|ACCESS_KEY_ID)", re.IGNORECASE)
LEAST_SECRET_CHARS = 8
CHECKPOINTED = ("checkpointed", "stopped by SIGTERM; the same run goes on from here")

_open: list["RunRecord"] = []


@dataclass
class RunRecord:
    storage: Storage
    path: str
    value: dict[str, Any]
    _used: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    on_end: Callable[[str], None] = lambda state: None
    """Told the state in which the run ends, on every way out."""

    @classmethod
    def begin(
        cls, storage: Storage, flow: str, preset: str | None, overrides: dict[str, Any], config: dict[str, Any] | None = None
    ) -> "RunRecord":
        """A new record, not written yet: a signal handler that ends open records must know of it first."""
        now = storage.now()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{secrets.token_hex(4)}"
        value = {"flow": flow, "preset": preset, "overrides": overrides, "started": now, "ended": None, "state": "running", "message": ""}
        value |= {"config": config} if config else {}
        return cls(storage, f"{FOLDER}{name}.json", value)

    def used(self, artifact: Artifact, state: str) -> None:
        """Note an artifact that the run made or reused, before anything reads it."""
        note = {"stage": artifact.stage, "fingerprint": artifact.fingerprint, "number": artifact.manifest["number"], "state": state}
        self._used[artifact.stage, artifact.fingerprint] = note
        self._write()

    def end(self, state: str, message: str = "") -> None:
        self.on_end(state)
        self.value |= {"state": state, "message": message, "ended": self.storage.now()}
        self._write()

    def _write(self) -> None:
        whole = self.value | {"artifacts": list(self._used.values())}
        self.storage.write(self.path, dump_checked(without_secrets(whole), indent=1))


@contextlib.contextmanager
def recorded(
    storage: Storage, flow: str, preset: str | None, overrides: dict[str, Any], config: dict[str, Any] | None = None
) -> Iterator[RunRecord]:
    """Record the block: `completed`, or how it ended. Its exception is raised on; a record whose end cannot be written stays `running`.

    `config`: the user's own file of settings and what followed from it, if there is one.
    """
    record = RunRecord.begin(storage, flow, preset, overrides, config)
    _open.append(record)  # before it is written: a signal in between would leave it `running`
    try:
        record._write()
        yield record
    except BaseException as error:
        with contextlib.suppress(PipelineError, OSError):
            record.end(*_ending(error))
        raise
    else:
        record.end("completed")
    finally:
        _open.remove(record)  # after its end is written, for the same reason


def end_open(state: str, message: str = "") -> None:
    """End the open records of a process that is about to leave by os._exit: its `with` blocks do not end in order."""
    for record in list(_open):
        with contextlib.suppress(PipelineError, OSError):
            record.end(state, message)


def _ending(error: BaseException) -> tuple[str, str]:
    if isinstance(error, ComeAgain) or (isinstance(error, SystemExit) and error.code == ComeAgain.exit_code):
        return CHECKPOINTED
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped", ""
    return "failed", said(error)


def without_secrets(value: Any) -> Any:
    """The value without the environment's secrets: an error or an override may repeat one."""
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        for name, secret in os.environ.items():
            if SECRET_NAMES.search(name) and len(secret) >= LEAST_SECRET_CHARS and secret in value:
                value = value.replace(secret, f"<{name}>")
        return value
    return value if value is None or isinstance(value, int | float | bool) else str(value)


def records(storage: Storage, known: Container[Mark] = ()) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Every readable record, oldest first, except those in `known` that have not changed since."""
    for entry in storage.list(FOLDER):
        if mark(entry) in known:
            continue
        with contextlib.suppress(ValueError, FileNotFoundError):
            value = load_checked(storage.read(entry.path))
            if isinstance(value.get("artifacts"), list) and isinstance(value.get("started"), int | float):
                yield entry, value


def mark(entry: Entry) -> Mark:
    """Identifies a record as it is now. A record only grows, so another write gives another mark."""
    return entry.path, entry.size, entry.modified
