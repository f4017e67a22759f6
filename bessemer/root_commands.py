"""The commands that look after a root: verify, gc, pin, unpin, remove. The other commands are in `bessemer/cli.py`."""

import argparse
import sys
from collections.abc import Callable

from bessemer.config import Asked, Config, ask, parse_set
from bessemer.console import ConsoleJournal
from contract.errors import ConfigError, InputError
from engine.stage import Engine, Planned
from engine.stage_lines import size
from store import fetched, gc, pins
from store.artifact import Artifact
from store.catalogue import artifacts
from store.storage import Storage
from store.verify import verify

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
Configured = Callable[[argparse.ArgumentParser], argparse.ArgumentParser]


def add_commands(command: Command, configured: Configured) -> None:
    configured(command("verify", _verify, "Read every byte of every artifact, or of a preset's; name what is missing or changed."))
    clean = configured(command("gc", _gc, "Say which artifacts nobody needs any more, with their sizes; --delete deletes them."))
    clean.add_argument("--delete", action="store_true", help="act; without it nothing is touched")
    clean.add_argument("--days", type=float, default=30.0, metavar="D", help="keep what runs of the last D days used (default: 30)")
    for name, call, text in (
        ("pin", _pin, "Keep an artifact, and what it was made from, whatever its age."),
        ("unpin", _unpin, "Remove the pin of an artifact, so that gc may delete it."),
    ):
        one = configured(command(name, call, text))
        one.add_argument("artifact", metavar="STAGE|FINGERPRINT", help="a stage of the preset, or the start of a fingerprint")
    gone = configured(command("remove", _remove, "Take documents down: list what holds them, and leave them out from the next run on."))
    which = gone.add_mutually_exclusive_group(required=True)
    which.add_argument("--id", metavar="HEX", help="a document's id")
    which.add_argument("--url", metavar="LOCATOR", help="a document's locator, or the url that its record names")
    which.add_argument("--license", metavar="NAME", help="every document under this licence")
    gone.add_argument("--yes", action="store_true", help="record it without asking")


def _asked(arguments: argparse.Namespace) -> Asked:
    return ask(arguments.preset, arguments.config, dict(parse_set(text) for text in arguments.set))


def _config(arguments: argparse.Namespace) -> Config:
    return _asked(arguments).config


def _verify(arguments: argparse.Namespace) -> int:
    asked = _asked(arguments)
    storage, journal = asked.config.store(), ConsoleJournal()
    named = arguments.preset or arguments.config
    only = {(planned.stage.name, planned.fingerprint) for planned in _plans(arguments, asked)} if named else None
    journal.started("verify", "", "")

    def progress(done: int, total: int, note: str) -> None:
        journal.progress("verify", done, total, "bytes", note)

    verdict = verify(storage, progress, only)
    journal.clear()
    for fault in verdict.faults:
        print(fault)
    print(
        f"{verdict.artifacts} artifacts, {verdict.files:,} files, {size(verdict.size)} under {storage.uri}: "
        + (f"{len(verdict.faults)} not as recorded; the next run makes these stages again" if verdict.faults else "all as recorded")
    )
    return 1 if verdict.faults else 0


def _plans(arguments: argparse.Namespace, asked: Asked) -> list[Planned]:
    """Every stage of the whole flow, looked up."""
    from engine.runner import plan

    engine = Engine(asked.config.store(), asked.config, asked.config.run, ConsoleJournal(), asked.scope)
    return plan(engine, arguments.body_of("pretrain"))


def _gc(arguments: argparse.Namespace) -> int:
    if arguments.days < 0:
        raise ConfigError(f"--days {arguments.days:g}: give a number of days, 0 or more")
    storage = _config(arguments).store()
    found = gc.plan(storage, arguments.days)
    for sweep in found.sweeps:
        print(f"{sweep.what:<12} {sweep.where:<40} {len(sweep.files):>6,} files  {size(sweep.size)}")
    print(f"{len(found.kept)} artifacts stay, {size(found.kept_bytes)}; {len(found.sweeps)} entries can go, {size(found.size)}")
    folder, copies, copied = fetched.held()
    if copies:
        print(f"{copies} copies of files on S3 are here, {size(copied)}, at most {size(fetched.most_bytes(copied))}: {folder}")
    if not arguments.delete:
        print("nothing was deleted; --delete does it" if found.sweeps or copies else "nothing to delete")
        return 0
    files, freed = gc.delete(storage, found)
    removed, emptied = fetched.make_room(keep_bytes=0)
    print(f"{files:,} files deleted, {size(freed)}" + (f"; {removed} copies, {size(emptied)}" if copies else ""))
    return 0


def _pin(arguments: argparse.Namespace) -> int:
    asked = _asked(arguments)
    artifact = _named(asked, asked.config.store(), arguments)
    pins.pin(asked.config.store(), artifact)
    print(f"pinned    {artifact.stage} {artifact.fingerprint}")
    return 0


def _unpin(arguments: argparse.Namespace) -> int:
    storage = _config(arguments).store()
    named = [key for key in sorted(pins.pinned(storage)) if key[0] == arguments.artifact or key[1].startswith(arguments.artifact)]
    if len(named) != 1:
        raise InputError(f"{arguments.artifact} names {len(named)} pins; pinned: {_listed(pins.pinned(storage)) or 'nothing'}")
    pins.unpin(storage, named[0])
    print(f"unpinned  {named[0][0]} {named[0][1]}")
    return 0


def _named(asked: Asked, storage: Storage, arguments: argparse.Namespace) -> Artifact:
    """The artifact that a person means: a stage as the preset has it now, or the start of a fingerprint in the root."""
    name = arguments.artifact
    by_fingerprint = [artifact for artifact in artifacts(storage) if artifact.fingerprint.startswith(name)] if len(name) >= 4 else []
    if len(by_fingerprint) == 1:
        return by_fingerprint[0]
    if by_fingerprint:
        which = _listed({(artifact.stage, artifact.fingerprint) for artifact in by_fingerprint})
        raise InputError(f"{name} is the start of {len(by_fingerprint)} fingerprints: {which}")
    planned = {planned.stage.name: planned for planned in _plans(arguments, asked)}
    if name not in planned:
        raise InputError(f"{name} is neither a stage of {asked.scope} nor the start of a fingerprint under {storage.uri}")
    if (artifact := planned[name].reuse) is None:
        raise InputError(f"{name} has no artifact for this configuration: {planned[name].why}")
    return artifact


def _listed(keys: set[tuple[str, str]]) -> str:
    return ", ".join(f"{stage} {fingerprint[:12]}" for stage, fingerprint in sorted(keys))


def _remove(arguments: argparse.Namespace) -> int:
    from bessemer.takedown import look_up
    from sources.removals import record

    storage = _config(arguments).store()
    storage.probe()
    kind, value = next((kind, getattr(arguments, kind)) for kind in ("id", "url", "license") if getattr(arguments, kind))
    found = look_up(storage, kind, value)
    print("\n".join(found.lines()))
    if not arguments.yes and not _agreed():
        print("nothing was recorded; --yes records it")
        return 0
    path = record(storage, found.rule)
    print(f"recorded  {storage.uri}/{path}")
    print("The next run leaves out what it names. `bessemer gc --days 0 --delete` then deletes what was made before, when it is a day old.")
    return 0


def _agreed() -> bool:
    return sys.stdin.isatty() and input("take down? [y/N] ").strip().lower() in ("y", "yes")
