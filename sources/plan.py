"""The plan of a reading: which files under the caps, their digest, and parts of like size. A function of names, sizes and identity only."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from contract.config import canonical_json
from contract.errors import InputError
from sources.config import Source
from sources.environment import Environment, environment_files
from sources.files import RECORDS, SPLIT, Digests, SourceFile, files_of
from sources.lines import splittable
from sources.opener import Opener

TEXT_GROWTH = 4  # text under gzip or Zstandard: about that much larger, for parts of like work


@dataclass(frozen=True)
class Selection:
    """The files of one source that will be read."""

    source: Source
    files: tuple[SourceFile, ...]
    skipped: int = 0
    """Files passed over for their suffix."""

    @property
    def in_sequence(self) -> bool:
        """Whether a cap must be counted while reading, one piece after the other."""
        capped = {*RECORDS, "questions"} if self.source.max_documents else set(RECORDS) if self.source.max_bytes else set()
        return any(file.form in capped for file in self.files)


@dataclass(frozen=True)
class Piece:
    """A file, or the part of one that starts in [start, end); `end` None: all of it."""

    source: int
    file: SourceFile
    start: int = 0
    end: int | None = None


def select(
    sources: Sequence[Source], digests: Digests, environment: Environment, endpoint_url: str | None, root: str | None = None
) -> list[Selection]:
    """The files of every source under its caps, with their digests, but for those in the store `root`.

    Raises InputError naming a source that is absent or empty.

    Domains that the environment has no text of give an empty selection.
    """
    chosen = []
    for source in sources:
        if source.is_environment:
            chosen.append(Selection(source, _of_environment(source, environment), 0))
        else:
            files, skipped = files_of(source, endpoint_url, root)
            chosen.append(Selection(source, tuple(_capped(source, files)), skipped))
    local = [Path(file.path) for selection in chosen for file in selection.files if not file.root]
    try:
        found = digests(local)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}. Give it read permission, or leave it out.") from error
    return [
        replace(selection, files=tuple(file if file.root else file._replace(digest=found[file.path]) for file in selection.files))
        for selection in chosen
    ]


@lru_cache(maxsize=32)
def _of_environment(source: Source, environment: Environment) -> tuple[SourceFile, ...]:
    """Listed once a process (a second for 69,000 files): the environment that we run in is taken to keep its files while we run.

    Their bytes are held to digests at every use, so a file that changes is still noticed.
    """
    return tuple(_capped(source, environment_files(source.domain, environment)))


def _capped(source: Source, files: list[SourceFile]) -> list[SourceFile]:
    """The files under the caps, by locator; record files stay all, since their cap is counted in records.

    Kinds (a file's `kind`) share max_bytes equally, what a short one leaves going to the others; within a kind files are taken
    in the order of a hash of their locator, each that still fits, and the first always.
    """
    if any(file.form in RECORDS for file in files):
        return files
    if source.max_bytes is not None:
        by_kind = {kind: [file for file in files if file.kind == kind] for kind in sorted({file.kind for file in files})}
        left, shares = source.max_bytes, sorted(by_kind, key=lambda kind: (sum(file.size for file in by_kind[kind]), kind))
        files = []
        for position, kind in enumerate(shares):
            taken = _fitting(by_kind[kind], left // (len(shares) - position), always=not files)
            left -= sum(file.size for file in taken)
            files += taken
    if source.max_documents is not None and not any(file.form == "questions" for file in files):
        files = sorted(files, key=_draw)[: source.max_documents]
    return sorted(files, key=lambda file: file.locator)


def _fitting(files: list[SourceFile], budget: int, always: bool) -> list[SourceFile]:
    taken: list[SourceFile] = []
    for file in sorted(files, key=_draw):
        if file.size <= budget or (always and not taken):
            taken.append(file)
            budget -= file.size
    return taken


def _draw(file: SourceFile) -> tuple[bytes, str]:
    return hashlib.blake2b(file.locator.encode("utf-8", "surrogateescape"), digest_size=16).digest(), file.locator


def digest_of_selection(selection: Selection) -> str:
    """SHA-256 over what decides the bytes read: locators, forms, groups and digests of the files. Places do not enter."""
    rows = [[file.locator, file.form, file.compression, file.group, file.digest] for file in selection.files]
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def plan_parts(selections: Sequence[Selection], part_bytes: int, opener: Opener) -> list[list[Piece]]:
    """The pieces of every part. Line files and Parquet are split, compressed streams never; a capped record source is one part."""
    parts: list[list[Piece]] = []
    loose: list[Piece] = []
    for index, selection in enumerate(selections):
        if selection.in_sequence:
            parts.append([Piece(index, file) for file in sorted(selection.files, key=_draw)])
        else:
            loose += [piece for file in selection.files for piece in _pieces(index, selection.source, file, part_bytes, opener)]
    return _packed(loose, part_bytes) + [part for part in parts if part]


def _pieces(index: int, source: Source, file: SourceFile, part_bytes: int, opener: Opener) -> Iterable[Piece]:
    if file.form not in SPLIT or file.compression or file.size <= part_bytes:
        return [Piece(index, file)]
    if file.form == "jsonl" and not splittable(opener.head(file), source.encoding):
        return [Piece(index, file)]
    return [Piece(index, file, start, min(start + part_bytes, file.size)) for start in range(0, file.size, part_bytes)]


def _packed(pieces: list[Piece], part_bytes: int) -> list[list[Piece]]:
    parts: list[list[Piece]] = []
    weight = 0
    for piece in pieces:
        if not parts or weight >= part_bytes:
            parts.append([])
            weight = 0
        parts[-1].append(piece)
        size = piece.file.size if piece.end is None else piece.end - piece.start
        weight += size * (TEXT_GROWTH if piece.file.compression else 1)
    return parts
