"""The stage engine: a stage is a pure function of (config slice, input artifacts, outside bytes) to one artifact.

The engine decides what is done, adopts what an earlier attempt finished, checks the ledger, and publishes once. It knows
neither Prefect nor Ray; `engine/runner.py` runs the stages of a flow, `engine/parts.py` maps a stage over its parts.
"""

import hashlib
import inspect
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import orjson
import pyarrow as pa

from contract.config import Frozen, RunOptions, canonical_json
from contract.errors import IntegrityError, PipelineError, StageFailed, StorageError, TransientError
from contract.ledger import Ledger
from engine.explain import difference
from engine.provenance import provenance
from engine.scratch import Scratch, explain_full_folder, free_bytes
from store.artifact import Artifact, FileRecord, find, publish, unreadable
from store.attempt import Attempt, Reader
from store.checked import dump_checked, load_checked
from store.checkpoints import Checkpoints
from store.locks import hold
from store.storage import Storage

LEAST_FREE_BYTES = 64 * 2**20
Blob = bytes  # inside Output the name belongs to its method


@dataclass(frozen=True)
class Stage:
    """What the engine knows of a stage. Raise `version` when equal config and input would give other bytes."""

    name: str
    version: int
    work: Callable[..., Ledger]
    config: Callable[[Any], Frozen]
    roles: tuple[str, ...]
    required: frozenset[str]
    takes_more: bool
    """Whether it takes inputs in roles beside these: its work has a **parameter."""
    counts: str | None
    rows: str | None
    external: Callable[[Any, Storage], Mapping[str, str]] | None
    exclusive: bool


def stage(
    version: int,
    config: Callable[[Any], Frozen],
    counts: str | None = None,
    rows: str | None = None,
    external: Callable[[Any, Storage], Mapping[str, str]] | None = None,
    exclusive: bool = False,
) -> Callable[[Callable[..., Ledger]], Stage]:
    """Declare a stage. Its name is the function's; its parameters other than `config` and `out` are its input roles.

    A **parameter takes inputs in any further roles.

    counts: the role whose documents must all be counted in. rows: whether the rows of part-*.parquet are the documents that
    came "in" or went "out". external: digests of outside bytes. exclusive: it needs the whole machine, so Ray is stopped before it.
    """

    def declare(work: Callable[..., Ledger]) -> Stage:
        inputs = {name: p for name, p in inspect.signature(work).parameters.items() if name not in ("config", "out")}
        roles = tuple(name for name, p in inputs.items() if p.kind is not p.VAR_KEYWORD)
        required = frozenset(name for name in roles if inputs[name].default is inspect.Parameter.empty)
        more = len(roles) < len(inputs)
        return Stage(work.__name__, version, work, config, roles, required, more, counts, rows, external, exclusive)

    return declare


@dataclass(frozen=True)
class Promise:
    """An artifact that a plan foresees: its fingerprint is known, its bytes are not."""

    stage: str
    fingerprint: str


class Journal(Protocol):
    """Where the engine reports what it does."""

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None: ...
    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


class Output:
    """What a stage writes to. Everything written here is published together, or not at all."""

    def __init__(
        self, attempt: Attempt, run: RunOptions, journal: Journal, adopt: bool, asked: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.attempt, self.run, self.fingerprint = attempt, run, attempt.fingerprint
        self.asked = asked
        """What a person asked the run for: for attachments alone, as equal artifacts may be asked for in many ways."""
        self.sealed = attempt.sealed() if adopt else {}
        self.files: dict[str, FileRecord] = {}
        self.intermediate: dict[str, FileRecord] = {}
        self.figures: dict[str, Any] = {}
        self.execution: dict[str, Any] = {}
        self.adopted = 0
        self._scratch = Scratch(attempt.stage)
        self.scratch = self._scratch.path
        self.checkpoints = Checkpoints(attempt)
        self.progress = _Progress(attempt.stage, journal)
        self.warn: Callable[[str], None] = partial(journal.warn, attempt.stage)

    def add(self, record: FileRecord, intermediate: bool = False) -> None:
        names = self.intermediate if intermediate else self.files
        if record.name in self.files or record.name in self.intermediate:
            raise IntegrityError(f"{self.attempt.stage} wrote {record.name} twice; names of one stage must differ")
        names[record.name] = record

    def table(self, name: str, table: pa.Table) -> None:
        self.add(self.attempt.table(name, table))

    def bytes(self, name: str, data: bytes) -> None:
        self.add(self.attempt.bytes(name, data))

    def json(self, name: str, value: object) -> None:
        self.bytes(name, orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))

    def file(self, name: str, path: Path) -> None:
        self.add(self.attempt.file(name, path))

    def attach(self, name: str, data: Blob) -> None:
        """A file that may hold times or places: kept and linked, but no part of the artifact's digest."""
        self.add(self.attempt.bytes(name, data, content=False))

    def close(self) -> None:
        """Remove the scratch folder; what was written to the store stays."""
        self._scratch.close()

    @property
    def reader(self) -> Reader:
        """Read access to what this stage has written so far."""
        return Reader(self.attempt.storage, self.files | self.intermediate, self.attempt.stage)


class _Progress:
    """Forwards at most two reports a second, and the last one always."""

    def __init__(self, stage: str, journal: Journal) -> None:
        self._stage, self._journal, self._last = stage, journal, 0.0

    def __call__(self, done: float, total: float, unit: str, note: str = "") -> None:
        now = time.monotonic()
        if done >= total or now - self._last > 0.5:
            self._last = now
            self._journal.progress(self._stage, done, total, unit, note)


@dataclass(frozen=True)
class Planned:
    """A stage call before it runs: its identity, the artifact that can be reused, or else why it must run."""

    stage: Stage
    config: Frozen
    inputs: dict[str, Artifact | Promise]
    identity: dict[str, Any]
    fingerprint: str
    reuse: Artifact | None
    damaged: Artifact | None
    why: str


@dataclass(frozen=True)
class Engine:
    """Plans and runs stages of one configuration against one store."""

    storage: Storage
    config: Any
    run_options: RunOptions
    journal: Journal
    scope: str
    """The preset's name. A stage that must run is compared with what this preset used last."""
    force: Callable[[str], bool] = lambda stage: False
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What a person asked the run for, in words. It enters no identity."""

    def plan(self, stage: Stage, inputs: Mapping[str, Artifact | Promise | None]) -> Planned:
        """Fingerprint a call and look its artifact up; nothing is written."""
        unknown = set() if stage.takes_more else set(inputs) - set(stage.roles)
        if unknown:
            raise StageFailed(f"{stage.name} has no input {', '.join(sorted(unknown))}; it has {', '.join(stage.roles)}")
        given = {role: artifact for role, artifact in inputs.items() if artifact is not None}
        if missing := stage.required - set(given):
            raise StageFailed(f"{stage.name} lacks its input {', '.join(sorted(missing))}")
        config = stage.config(self.config)
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "config": config.model_dump(mode="json"),
            "inputs": {role: artifact.fingerprint for role, artifact in given.items()},
            "external": dict(stage.external(config, self.storage)) if stage.external else {},
        }
        fingerprint = hashlib.sha256(canonical_json(identity)).hexdigest()
        return self._looked_up(Planned(stage, config, given, identity, fingerprint, None, None, ""))

    def _looked_up(self, planned: Planned) -> Planned:
        """The same call with what the store holds of it now."""
        found = find(self.storage, planned.stage.name, planned.fingerprint)
        why = self._why(planned, found)
        return replace(planned, reuse=None if why else found, damaged=found if why else None, why=why)

    def _why(self, planned: Planned, found: Artifact | None) -> str:
        """The reason to run; empty when the artifact found can be reused."""
        name = planned.stage.name
        if found is None:
            changed = unreadable(self.storage, name, planned.fingerprint)
            prefix = _dotted(self.config, planned.config)
            return f"{changed[0]} is changed in the store" if changed else difference(self._last(name), planned.identity, prefix)
        if self.force(name):
            return "forced"
        if file := found.damaged():
            return f"{file} is missing or changed in the store"
        for role, artifact in planned.inputs.items():
            if isinstance(artifact, Artifact) and found.manifest["inputs"][role]["digest"] != artifact.digest:
                return f"{role} was rebuilt with other content"
        return ""

    def run(self, planned: Planned) -> Artifact:
        """The artifact of a planned call. Raises PipelineError."""
        return self.settle(planned)[0]

    def settle(self, planned: Planned) -> tuple[Artifact, str]:
        """The artifact of a planned call, and its state: cached (another run made it, before or while we waited), resumed or ran."""
        stage, started = planned.stage, time.monotonic()
        if planned.reuse is not None:
            self._remember(planned)
            self.journal.finished(planned.reuse, "cached", "", time.monotonic() - started)
            return planned.reuse, "cached"
        inputs = {role: artifact for role, artifact in planned.inputs.items() if isinstance(artifact, Artifact)}
        with hold(self.storage, f"{stage.name}-{planned.fingerprint[:32]}", partial(self.journal.warn, stage.name)):
            planned = self._looked_up(planned)
            if planned.reuse is not None:  # the run that held the lock made it
                return self.settle(planned)
            try:
                artifact, resumed = self._make(planned, inputs)
            except (PipelineError, OSError):
                planned = self._looked_up(planned)
                if planned.reuse is None:
                    raise
                return self.settle(planned)  # another run took the lock over and published; its clean-up removed what we read
        self._remember(planned)
        state = "resumed" if resumed else "ran"
        self.journal.finished(artifact, state, planned.why, time.monotonic() - started)
        return artifact, state

    def _make(self, planned: Planned, inputs: dict[str, Artifact]) -> tuple[Artifact, bool]:
        stage, started = planned.stage, time.time()
        self._refuse_full_disk(stage.name)
        basis = hashlib.sha256(canonical_json({role: artifact.digest for role, artifact in inputs.items()})).hexdigest()
        attempt = Attempt.new(self.storage, stage.name, planned.fingerprint, basis)
        self.journal.started(stage.name, planned.fingerprint, planned.why)
        out = Output(attempt, self.run_options, self.journal, adopt=not self.force(stage.name), asked=self.asked)
        try:
            with explain_full_folder(stage.name):
                ledger = stage.work(**inputs, config=planned.config, out=out)
            _check(stage, ledger, inputs, out)
            self._refuse_changed_sources(planned)
            if name := attempt.lost(out.files.values()):
                raise TransientError(f"{stage.name}: {name}, which was adopted from an earlier attempt, is gone from the store; run again")
            manifest = {
                "stage": stage.name,
                "version": stage.version,
                "fingerprint": planned.fingerprint,
                "identity": planned.identity,
                "inputs": {r: {"stage": a.stage, "fingerprint": a.fingerprint, "digest": a.digest} for r, a in inputs.items()},
                "ledger": ledger.to_json(),
                "figures": out.figures,
                "execution": out.execution,
                "created": started,
                "seconds": time.time() - started,
                "adopted_parts": out.adopted,
            } | provenance()
            after = planned.damaged.manifest["number"] if planned.damaged else 0
            artifact = publish(self.storage, manifest, list(out.files.values()), after)
        finally:
            out.close()
        attempt.tidy({record.path for record in artifact.files.values()})  # another run's manifest may name our parts: it adopted them
        if planned.damaged is not None and artifact.digest != planned.damaged.digest:
            self.journal.warn(stage.name, "rebuilt with other content than before; the stages that read it run again")
        return artifact, out.adopted > 0

    def _refuse_changed_sources(self, planned: Planned) -> None:
        """Raise IntegrityError if outside bytes are no longer those of the fingerprint: the artifact would have another input's name."""
        external = planned.stage.external
        now = dict(external(planned.config, self.storage)) if external else {}
        if now != planned.identity["external"]:
            changed = sorted(name for name in now | planned.identity["external"] if now.get(name) != planned.identity["external"].get(name))
            raise IntegrityError(f"{planned.stage.name}: {', '.join(changed)} changed while it was read. Nothing was published; run again.")

    def _refuse_full_disk(self, name: str) -> None:
        for place, free in ((self.storage.uri, self.storage.free_bytes()), (f"TMPDIR, {tempfile.gettempdir()}", free_bytes())):
            if free is not None and free < LEAST_FREE_BYTES:
                raise StorageError(
                    f"{name} was not started: {free:,} bytes are free under {place}, at least {LEAST_FREE_BYTES:,} are "
                    "needed. Make space and run again."
                )

    def _pointer(self, name: str) -> str:
        return f"last/{self.scope}/{name}.json"

    def _last(self, name: str) -> dict | None:
        try:
            return load_checked(self.storage.read(self._pointer(name)))
        except (ValueError, FileNotFoundError):  # a pointer only explains misses: a changed one explains nothing
            return None

    def _remember(self, planned: Planned) -> None:
        """Note what this preset used last: it explains the next miss, `bessemer plan` estimates by it, and `bessemer gc` keeps it."""
        if self._last(planned.stage.name) != planned.identity:
            self.storage.write(self._pointer(planned.stage.name), dump_checked(planned.identity))


def _dotted(config: object, slice_: object, prefix: str = "") -> str:
    """The place of a slice in the whole configuration, such as `dedup.`; empty for one that a stage composes from several places."""
    for name in getattr(type(config), "model_fields", {}):
        inner = getattr(config, name)
        if inner is slice_:
            return f"{prefix}{name}."
        if found := _dotted(inner, slice_, f"{prefix}{name}."):
            return found
    return ""


def _check(stage: Stage, ledger: Ledger, inputs: dict[str, Artifact], out: Output) -> None:
    """Raise IntegrityError unless the ledger balances, starts from what the input let out, and agrees with the rows that were written."""
    ledger.check(stage.name)
    count = ledger.documents
    if stage.counts:
        before = inputs[stage.counts].ledger.documents
        if count is None or before is None or count.came_in != before.out:
            raise IntegrityError(
                f"{stage.name} counted {count.came_in if count else 0:,} documents in, but {stage.counts} let "
                f"{before.out if before else 0:,} out. Nothing was published; this is a fault in the stage, please report it."
            )
    if stage.rows:
        written = sum(record.rows or 0 for name, record in out.files.items() if name.startswith("part-"))
        want = -1 if count is None else (count.came_in if stage.rows == "in" else count.out)
        if written != want:
            raise IntegrityError(
                f"{stage.name} wrote {written:,} rows, but its ledger says {want:,} documents {stage.rows}. "
                "Nothing was published; a row was lost or doubled, please report it."
            )


def last_artifact(engine: Engine, name: str) -> Artifact | None:
    """What the engine's preset used last for a stage, under any configuration."""
    identity = engine._last(name)
    return find(engine.storage, name, hashlib.sha256(canonical_json(identity)).hexdigest()) if identity else None
