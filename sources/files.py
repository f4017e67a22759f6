"""Which files a source has: a file, folder or glob, on disk or S3, by name and in one order. Nothing is read here but names and sizes."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from contract.errors import ConfigError, InputError
from sources.config import Source
from sources.plug_in_reader import reader_of
from sources.streams import compression_of
from store.address import Address, address
from store.root import open_root
from store.storage import Storage

SUFFIXES = {
    "txt": "txt",
    "text": "txt",
    "md": "md",
    "markdown": "md",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "parquet": "parquet",
}
"""The form of a file by its suffix. Each form is a suffix too, and messages name that one."""
NEVER_PACKED = ("parquet",)
"""Forms with a compression of their own: not looked for under .gz and .zst."""
PLUG_IN = "plug_in"
"""The form of what a reader of the user's own reads."""
RECORDS = ("jsonl", "parquet", PLUG_IN)
"""Forms of many documents: a cap is counted in their records, not in files."""
SPLIT = ("jsonl", "parquet")
"""Records that can be read from the middle of a file on."""
WILD = re.compile(r"[*?\[]")
NUMERALS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class SourceFile(NamedTuple):  # an environment has 100,000 of them, and a dataclass takes four times as long to make
    """One file to read. `locator`, `form`, `compression`, `group` and `digest` are its identity; the rest is where it lies."""

    locator: str
    form: str
    size: int
    path: str
    root: str = ""
    """The s3://bucket that `path` is a key of; empty for a local file, whose path is absolute."""
    compression: str | None = None
    group: str | None = None
    kind: str = ""
    """A share of its own under max_bytes: METADATA beside READMEs, manual pages beside docstrings."""
    digest: str = ""
    """SHA-256 of a local file; what S3 said of its bytes (ETag) there."""

    @property
    def in_records(self) -> bool:
        """Whether it holds many documents."""
        return self.form in (*RECORDS, "questions")


Digests = Callable[[Iterable[Path]], dict[str, str]]
"""SHA-256 by path of many local files (store.digests.digests_of_files, which remembers)."""


def files_of(source: Source, endpoint_url: str | None, root: str | None = None) -> tuple[list[SourceFile], int]:
    """The files of a source by locator, and how many were passed over for their suffix. What lies in the store `root` is no source.

    Raises InputError when the place is absent, empty, not readable or leads out of itself by a link, or a name is not UTF-8.
    """
    try:
        place = address(source.uri)
    except ValueError as error:
        raise ConfigError(f"source {source.name}: {error}") from error
    ours = address(root) if root is not None and holds(source, root) else None
    found = _on_s3(source, place, endpoint_url, ours) if place.kind == "s3" else _on_disk(source, Path(place.path), ours)
    shaped = [shape for file in found if (shape := _shaped(source, file)) is not None]
    if not shaped:
        raise InputError(_nothing(source, found))
    if unnamed := [file.path for file in shaped if not _is_unicode(file.locator) or not _is_unicode(file.path)]:
        raise InputError(f"source {source.name}: the name {unnamed[0]!a} is not UTF-8, so no record can hold it; rename it")
    if not any(file.size for file in shaped):
        raise InputError(f"source {source.name}: all {len(shaped)} files of {source.uri} are empty (0 bytes)")
    return sorted(shaped, key=lambda file: file.locator), len(found) - len(shaped)


def holds(source: Source, root: str) -> bool:
    """Whether the store `root` lies in the place of a source: it grows while the source is read."""
    if source.is_environment:
        return False
    place, ours = address(source.uri), address(root)
    if (place.kind, place.bucket) != (ours.kind, ours.bucket):
        return False
    if place.kind == "s3":
        base = WILD.split(place.path)[0] if WILD.search(place.path) else f"{place.path}/".lstrip("/")
        return f"{ours.path}/".startswith(base)
    base = WILD.split(place.path)[0].rpartition("/")[0] if WILD.search(place.path) and not Path(place.path).exists() else place.path
    return Path(ours.path).resolve().is_relative_to(Path(base or "/").resolve())


def _is_unicode(name: str) -> bool:
    """A byte of a file's name that is no UTF-8 stands in Python's string as a lone surrogate."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nothing(source: Source, found: list[SourceFile]) -> str:
    if not found:
        return f"source {source.name}: there are no files in {source.uri}; give a file, folder or glob that has some"
    if source.reader is None:
        ends, remedy = known_suffixes(), "set the source's `format`"
    else:
        suffixes = (f".{suffix.lstrip('.')}" for suffix in reader_of(source.reader, source.name).suffixes)
        ends, remedy = f"{' or '.join(suffixes)}, also with .gz or .zst", f"rename them, or correct the suffixes of {source.reader}"
    return f"source {source.name}: none of the {len(found)} files of {source.uri} (first: {found[0].locator}) ends in {ends}; {remedy}"


def known_suffixes() -> str:
    """What `auto` goes by, in words."""
    *others, last = sorted(dict.fromkeys(SUFFIXES.values()), key=NEVER_PACKED.__contains__)
    packed = NUMERALS[len({*others, last}.difference(NEVER_PACKED))]
    return f"{', '.join(f'.{form}' for form in others)} or .{last}, the first {packed} also with .gz or .zst"


def _shaped(source: Source, file: SourceFile) -> SourceFile | None:
    """The file with its form and compression; None when neither `auto` nor the source's reader knows its suffix."""
    compression = compression_of(file.locator)
    stem = file.locator[: -len(compression) - 1] if compression else file.locator
    if source.reader is not None:
        reader = reader_of(source.reader, source.name)
        if reader.takes(file.locator):  # its own compression, as of .warc.gz, is the reader's to undo
            return file._replace(form=PLUG_IN, kind=PLUG_IN)
        return file._replace(form=PLUG_IN, compression=compression, kind=PLUG_IN) if reader.takes(stem) else None
    form = SUFFIXES.get(stem.lower().rpartition(".")[2]) if source.format == "auto" else source.format
    if form is None or (form in NEVER_PACKED and compression):
        return None
    return file._replace(form=form, compression=compression, kind=form)


def _on_disk(source: Source, path: Path, root: Address | None) -> list[SourceFile]:
    without = Path(root.path).resolve() if root else None
    try:
        if path.is_file():
            return [SourceFile(path.name, "", path.stat().st_size, str(path))]
        if path.is_dir():
            return _walk(source, path, lambda locator: True, without)
        if WILD.search(str(path)):
            base, pattern = _fixed_prefix(str(path))
            if Path(base).is_dir():
                return _walk(source, Path(base), lambda locator: pattern.fullmatch(locator) is not None, without)
            path = Path(base)
    except PermissionError as error:
        raise InputError(f"source {source.name}: no permission to read {error.filename}; change it, or give another place") from error
    raise InputError(f"source {source.name}: {path} does not exist; correct its uri {source.uri}")


def _walk(source: Source, base: Path, wanted: Callable[[str], bool], without: Path | None) -> list[SourceFile]:
    """Files below `base`, hidden ones left out. A link to a file inside counts once, as that file; one to outside is refused."""
    found: dict[Path, SourceFile] = {}
    inside = base.resolve()
    for folder, folders, names in os.walk(base, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(folder, name).resolve() != without)
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(folder, name)
            locator = path.relative_to(base).as_posix()
            if name.startswith(".") or (name in names and not wanted(locator)):
                continue
            real = path.resolve()
            if path.is_symlink() and not real.is_relative_to(inside):
                raise InputError(f"source {source.name}: the link {path} leads out of {base}, to {real}; copy the file in or delete it")
            if real.is_file():
                kept = found.get(real)
                if kept is None or locator < kept.locator:
                    found[real] = SourceFile(locator, "", real.stat().st_size, str(real))
    return list(found.values())


def _raise(error: OSError) -> None:
    raise error


def _on_s3(source: Source, place: Address, endpoint_url: str | None, ours: Address | None) -> list[SourceFile]:
    root, key = f"s3://{place.bucket}", place.path
    storage: Storage = open_root(root, endpoint_url)
    one = storage.stat(key) if key and not source.uri.endswith("/") else None
    base = key.rpartition("/")[0] if one else key
    entries = [one] if one else storage.list(f"{base}/" if base else "")
    if not entries and WILD.search(key):  # what has such a name is that, as on disk
        base, pattern = _fixed_prefix("/" + key)
        base = base.strip("/")
        entries = [entry for entry in storage.list(f"{base}/" if base else "") if pattern.fullmatch(entry.path[len(base) :].lstrip("/"))]
    found = []
    for entry in entries:
        locator = entry.path[len(base) :].lstrip("/")
        if ours is not None and entry.path.startswith(f"{ours.path}/"):
            continue
        if locator and not locator.endswith("/") and not any(name.startswith(".") for name in locator.split("/")):
            found.append(SourceFile(locator, "", entry.size, entry.path, root, digest=entry.token or ""))
    return found


def _fixed_prefix(path: str) -> tuple[str, re.Pattern[str]]:
    """The folders before the first wildcard, and the pattern of what follows them (** crosses folders, * and ? do not)."""
    names = path.split("/")
    first = next(index for index, name in enumerate(names) if WILD.search(name))
    try:
        return "/".join(names[:first]) or "/", re.compile(_glob("/".join(names[first:])))
    except re.error as error:
        raise ConfigError(f"{path} is no glob: {error}; ranges in brackets go upwards, as in [0-9]") from error


TOKENS = re.compile(r"(\*\*/)|(\*\*)|(\*)|(\?)|\[([!^]?)(\]?[^\]]*)\]|(.)", re.DOTALL)


def _glob(pattern: str) -> str:
    return "".join(_translated(*groups) for groups in TOKENS.findall(pattern))


def _translated(deep: str, rest: str, star: str, one: str, negated: str, members: str, literal: str) -> str:
    if members:
        return f"[{'^/' if negated else ''}{re.escape(members).replace(chr(92) + '-', '-')}]"
    if literal:
        return re.escape(literal)
    return "(?:.*/)?" if deep else ".*" if rest else "[^/]*" if star else "[^/]"
