"""What can go, and its going. Kept: what run records, pins, pointers, live locks and young files reach, with their inputs.

Works under artifacts/, configs/, locks/ and runs/ alone. Correctness needs nothing here: an artifact deleted too much is made again.
"""

import contextlib
import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from contract.config import canonical_json
from store import run_records
from store.artifact import Artifact, FileRecord, read_manifest
from store.catalogue import Key, Shelf, shelf_of, shelves
from store.checked import load_checked
from store.pins import pinned
from store.storage import Entry, Storage

DAY_S = 86_400.0
YOUNG_S = DAY_S
"""A fingerprint where anything was written since then may be at work: it is left alone as it is."""
LockName = tuple[str, str]
"""A stage and the first 32 characters of a fingerprint."""
HALVES, CONFIGS = "half-written", "configs"
UNFINISHED_DAYS = 30.0
"""A run without an end keeps its artifacts at least so long: a long training reads inputs that no newer record names."""


@dataclass
class Sweep:
    """Files that go together, in the order in which they go."""

    what: str
    """artifact, superseded, leftovers, half-written, configs, locks or record."""
    where: str
    files: list[Entry]
    key: Key | None = None

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)


@dataclass
class Plan:
    """What would go, and how much stays."""

    now: float
    days: float
    sweeps: list[Sweep] = field(default_factory=list)
    kept: dict[Key, str] = field(default_factory=dict)
    """Why each artifact stays."""
    kept_bytes: int = 0
    used_since: dict[Key, str] = field(default_factory=dict)
    configs: set[str] = field(default_factory=set)
    """The starts of the digests of the files of settings that records name."""
    seen: set[run_records.Mark] = field(default_factory=set)
    """The run records as they were planned by; newer ones are asked again before anything goes."""

    @property
    def size(self) -> int:
        return sum(sweep.size for sweep in self.sweeps)


def plan(storage: Storage, days: float, now: float | None = None) -> Plan:
    """What a clean-up would delete now; nothing is written."""
    found = Plan(storage.now() if now is None else now, days)
    stock = {shelf.key: shelf for shelf in shelves(storage)}
    artifacts = {key: artifact for key, shelf in stock.items() if (artifact := shelf.artifact(storage)) is not None}
    live = _locked(storage, found.now)
    found.kept = _kept(storage, stock, artifacts, found, live)
    for key, shelf in stock.items():
        if not _is_at_work(shelf, live, found.now):
            found.sweeps += _sweeps(storage, shelf, artifacts.get(key), found)
    found.kept_bytes = sum(entry.size for shelf in stock.values() for entry in [*shelf.manifests, *shelf.files]) - found.size
    halves = storage.halves("artifacts/", found.now - YOUNG_S)
    found.sweeps += [Sweep(HALVES, "artifacts/", halves)] if halves else []
    unnamed = [entry for entry in storage.list("configs/") if _is_unnamed_config(entry, found)]
    found.sweeps += [Sweep(CONFIGS, "configs/", unnamed)] if unnamed else []
    dead = _dead_locks(storage, found.now)
    found.sweeps += [Sweep("locks", "locks/", dead)] if dead else []
    found.sweeps += _old_records(storage, found)
    return found


def delete(storage: Storage, found: Plan) -> tuple[int, int]:
    """Delete what was planned; how many files and bytes went.

    Each fingerprint, and each file of settings, is looked at again right before: one that a run has taken up meanwhile stays.
    """
    files = size = 0
    for sweep in found.sweeps:
        if sweep.key is not None and _is_wanted_again(storage, sweep, found):
            continue
        if sweep.what == HALVES:
            storage.halves("artifacts/", found.now - YOUNG_S, delete=True)
        for entry in _still_unnamed(storage, sweep.files, found) if sweep.what == CONFIGS else sweep.files:
            storage.delete(entry.path)
            files, size = files + 1, size + entry.size
        for folder in sorted({_attempt_of(entry.path) for entry in sweep.files if sweep.key is not None} - {""}):
            storage.drop_empty_folder(folder)
    return files, size


def _is_wanted_again(storage: Storage, sweep: Sweep, found: Plan) -> bool:
    """Whether a fingerprint was written to, locked or used by a run since it was planned to go."""
    assert sweep.key is not None
    shelf = shelf_of(storage, sweep.key)
    if _is_at_work(shelf, _locked(storage, found.now, f"{shelf.stage}-{shelf.fingerprint[:32]}/"), found.now):
        return True
    found.used_since |= _recorded(storage, found, found.seen)
    return sweep.what == "artifact" and sweep.key in found.used_since


def _is_unnamed_config(entry: Entry, found: Plan) -> bool:
    """Whether a copy of a file of settings is older than a day, and no record that counts names it."""
    parts = entry.path.split("/")
    return len(parts) == 3 and len(parts[1]) == 16 and entry.modified < found.now - YOUNG_S and parts[1] not in found.configs


def _still_unnamed(storage: Storage, entries: list[Entry], found: Plan) -> Iterator[Entry]:
    """A run that begins with such a file writes it again, and then its record."""
    for entry in entries:
        now = storage.stat(entry.path)
        found.used_since |= _recorded(storage, found, found.seen)
        if now is not None and _is_unnamed_config(now, found):
            yield entry


def _is_at_work(shelf: Shelf, live: set[LockName], now: float) -> bool:
    return shelf.newest > now - YOUNG_S or (shelf.stage, shelf.fingerprint[:32]) in live


def _kept(storage: Storage, stock: dict[Key, Shelf], artifacts: dict[Key, Artifact], found: Plan, live: set[LockName]) -> dict[Key, str]:
    """Every artifact that stays and the first reason found, inputs included."""
    roots = {
        **{key: "at work" for key, shelf in stock.items() if _is_at_work(shelf, live, found.now)},
        **_pointed(storage),
        **_recorded(storage, found),
        **dict.fromkeys(pinned(storage), "pinned"),
    }
    kept: dict[Key, str] = {}
    waiting = sorted(roots.items())
    while waiting:
        key, why = waiting.pop()
        if key in kept or key not in artifacts:
            continue
        kept[key] = why
        inputs = artifacts[key].manifest["inputs"].values()
        waiting += [((given["stage"], given["fingerprint"]), f"input of {artifacts[key].where()}") for given in inputs]
    return kept


def _recorded(storage: Storage, found: Plan, known: Container[run_records.Mark] = ()) -> dict[Key, str]:
    """What the records of runs that ended within the days name, and of those that have no end yet; `known` records left out."""
    named: dict[Key, str] = {}
    for entry, value in run_records.records(storage, known):
        found.seen.add(run_records.mark(entry))
        if _age_days(value, found.now) < _days(value, found.days):
            if isinstance(config := value.get("config"), dict):
                found.configs.add(str(config.get("sha256"))[:16])
            for note in value["artifacts"]:
                named[note["stage"], note["fingerprint"]] = f"used by {entry.path}"
    return named


def _days(record: dict, days: float) -> float:
    return days if record.get("ended") is not None else max(days, UNFINISHED_DAYS)


def _age_days(record: dict, now: float) -> float:
    return float(now - (record.get("ended") or record["started"])) / DAY_S


def _pointed(storage: Storage) -> dict[Key, str]:
    """What the last/ pointers name: what each preset used last."""
    named: dict[Key, str] = {}
    for entry in storage.list("last/"):
        with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
            identity = load_checked(storage.read(entry.path))
            named[str(identity["stage"]), hashlib.sha256(canonical_json(identity)).hexdigest()] = f"last of {entry.path.split('/')[1]}"
    return named


def _sweeps(storage: Storage, shelf: Shelf, artifact: Artifact | None, found: Plan) -> Iterator[Sweep]:
    """What goes of a fingerprint that nobody is at work on."""
    where = f"{shelf.stage}@{shelf.fingerprint[:12]}"
    if artifact is None and shelf.newest > found.now - max(found.days * DAY_S, YOUNG_S):
        return  # nothing is published yet: this is what a resumed run goes on from
    if artifact is not None and shelf.key not in found.kept:
        yield Sweep("artifact", where, [*shelf.manifests, *shelf.files], shelf.key)
        return
    named = {record.path for record in artifact.files.values()} if artifact is not None else set()
    number = artifact.manifest["number"] if artifact is not None else 0
    old = [entry for entry in shelf.manifests if artifact is not None and not entry.path.endswith(f"manifest-{number:06d}.json")]
    superseded = {record.path for entry in old for record in _files_of(storage, entry)} - named
    rest = [entry for entry in shelf.files if entry.path not in named]
    if old:
        yield Sweep("superseded", where, [*old, *(entry for entry in rest if entry.path in superseded)], shelf.key)
    left = [*([] if artifact is not None else shelf.manifests), *(entry for entry in rest if entry.path not in superseded)]
    if left:
        yield Sweep("leftovers", where, left, shelf.key)


def _files_of(storage: Storage, manifest: Entry) -> list[FileRecord]:
    artifact = read_manifest(storage, manifest.path)
    return list(artifact.files.values()) if artifact is not None else []


def _locks(storage: Storage, name: str = "") -> Iterator[tuple[Entry, float]]:
    """Lock files, of all names or of one, with their expiry; one that cannot be read has none to wait for."""
    for entry in storage.list(f"locks/{name}"):
        expires = 0.0
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            expires = float(load_checked(storage.read(entry.path))["expires"])
        yield entry, expires


def _locked(storage: Storage, now: float, name: str = "") -> set[LockName]:
    """What live locks name."""
    names = [entry.path.split("/")[1] for entry, expires in _locks(storage, name) if expires >= now]
    return {(stage, start) for stage, _, start in (name.rpartition("-") for name in names)}


def _dead_locks(storage: Storage, now: float) -> list[Entry]:
    """Locks that nobody has held for a day: a waiting run may still count on the number of a younger one."""
    return [entry for entry, expires in _locks(storage) if expires < now - YOUNG_S and entry.modified < now - YOUNG_S]


def _old_records(storage: Storage, found: Plan) -> Iterator[Sweep]:
    for entry, value in run_records.records(storage):
        if _age_days(value, found.now) >= _days(value, found.days):
            yield Sweep("record", entry.path, [entry])


def _attempt_of(path: str) -> str:
    """The attempt's folder of a file in one: nobody writes there again."""
    parts = path.split("/")
    return "/".join(parts[:4]) if len(parts) > 4 else ""
