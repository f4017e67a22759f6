"""The text of the running Python environment and machine as a source: read as files, never imported or run.

Files are named relative to their distribution (the standard library is `python`), documentation and manual pages of the system
by their package: so ids and digests do not depend on where an environment lies, on file times or on the order of a listing. What
installation writes for one place (launchers, caches, records, build configuration) and this project's own package are left out.
"""

import csv
import io
import os
import re
import stat
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import DistributionFinder, MetadataPathFinder, PathDistribution
from pathlib import Path

from sources.files import SourceFile
from sources.streams import compression_of

OWN = "bessemer"
TEXT_DOMAINS = ("web", "code", "reference", "conversation")
STANDARD_LIBRARY = "python"
NOT_TEXT = re.compile(r"(requirements|constraints|cmakelists|entry_points|top_level|sources|namespace_packages|vendor)[\w.-]*\.txt", re.I)
LEGAL = re.compile(r"(licen[cs]e|copying|authors|notice|contributors)\b[\w.-]*", re.I)
README = re.compile(r"readme\b[\w.-]*", re.I)
CHANGES = re.compile(r"(change|news|history|releases?\b|todo|copyright)[\w.-]*", re.I)
NAME = re.compile(r"^Name: *(\S+)", re.MULTILINE)
PROSE = (".md", ".rst", ".txt")
SHARE_PROSE = (".txt", ".md", ".rst", ".html", ".htm")
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__", "lib-dynload", "_bundled")


@dataclass(frozen=True)
class Environment:
    """Where an environment's text lies."""

    site: tuple[str, ...]
    """Folders with distributions (site-packages)."""
    stdlib: str | None
    share: str | None
    """The folder with doc/ and man/ (/usr/share)."""
    packages: str | None
    """The system's lists of files by package (/var/lib/dpkg/info)."""

    @classmethod
    def here(cls) -> "Environment":
        paths = sysconfig.get_paths()
        system = sys.platform == "linux"
        return cls(
            site=tuple(dict.fromkeys((paths["purelib"], paths["platlib"]))),
            stdlib=paths["stdlib"],
            share="/usr/share" if system else None,
            packages="/var/lib/dpkg/info" if system else None,
        )


Installed = tuple[str, str, str]
"""(distribution, path in it, file)"""
Forms = dict[str, tuple[str, str]]
"""(kind, form) of a file by the domain that it is text of"""
PYTHON_FORMS: Forms = {"code": ("python",) * 2, "reference": ("docstrings",) * 2, "conversation": ("questions",) * 2}


def environment_files(domain: str, place: Environment) -> list[SourceFile]:
    """The environment's files of a domain, by locator. None for books and academic: an environment has none."""
    if domain not in TEXT_DOMAINS:
        return []
    found = [
        SourceFile(f"{dist}/{path}", forms[domain][1], size, file, group=dist, kind=forms[domain][0])
        for forms, size, dist, path, file in _texts(place)
        if domain in forms
    ]
    if domain in ("web", "reference") and place.share:
        found += _share(domain, Path(place.share), _owners(place.packages))
    return sorted(found, key=lambda file: file.locator)


@lru_cache(maxsize=2)
def _texts(place: Environment) -> list[tuple[Forms, int, str, str, str]]:
    """Forms and size of every installed file that is text of a domain; looked at once a process, whatever the number of sources."""
    return [(forms, size, *each) for each in installed_files(place) if (forms := _forms(each[1])) and (size := _size(each[2]))]


def installed_files(place: Environment) -> Iterator[Installed]:
    """The files of all installed distributions and of the standard library."""
    seen: set[str] = {OWN}
    # Python's own finder, by name: the importlib_metadata package takes `distributions` over in any process that has imported it.
    for distribution in MetadataPathFinder.find_distributions(DistributionFinder.Context(path=list(place.site))):
        named = NAME.search(distribution.read_text("METADATA") or "")  # its whole parse takes ten times as long
        name = re.sub(r"[-_.]+", "-", named[1] if named else "").lower()
        if name and name not in seen:
            seen.add(name)
            yield from _recorded(name, distribution)
    if place.stdlib:
        yield from _standard_library(Path(place.stdlib))


def _recorded(name: str, distribution: PathDistribution) -> Iterator[Installed]:
    """What a distribution's RECORD lists inside site-packages; launchers and data files outside of it are not text of its own."""
    base = str(distribution.locate_file(""))
    for row in csv.reader(io.StringIO(distribution.read_text("RECORD") or "")):
        path = row[0] if row else ""
        if path and not path.startswith(("..", "/")) and "__pycache__" not in path:
            first, _, rest = path.partition("/")
            yield name, f"dist-info/{rest}" if first.endswith(".dist-info") else path, f"{base}/{path}"


def _standard_library(base: Path) -> Iterator[Installed]:
    for folder, folders, names in os.walk(base):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-"))
        inside = Path(folder).relative_to(base).as_posix()
        for name in names:
            if not name.startswith("_sysconfigdata"):  # written for one place
                yield STANDARD_LIBRARY, name if inside == "." else f"{inside}/{name}", f"{folder}/{name}"


def _size(file: str) -> int:
    """The size of a plain file; 0 for a link and for what is recorded and not there."""
    try:
        status = os.lstat(file)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _forms(path: str) -> Forms:
    """What a distribution's file is text of; nothing when it is none."""
    name = path.rpartition("/")[2]
    if name.endswith(".py"):
        return PYTHON_FORMS
    if path == "dist-info/METADATA":
        return {"web": ("metadata", "metadata")}
    legal = LEGAL.fullmatch(name) is not None
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  100,000 names: pathlib takes seconds
    if path.startswith("dist-info/") and not legal:
        return {}
    if README.fullmatch(name) and suffix in (*PROSE, ""):
        return {"web": ("readme", "txt")}
    if (legal and suffix in (*PROSE, "")) or (suffix in PROSE and not NOT_TEXT.fullmatch(name)):
        return {"reference": ("docs", "txt")}
    return {}


@lru_cache(maxsize=2)
def _owners(packages: str | None) -> dict[str, str]:
    """The package of each documentation file and manual page, as the system's package lists have it."""
    owners: dict[str, str] = {}
    for listing in sorted(Path(packages).glob("*.list")) if packages and Path(packages).is_dir() else []:
        package = listing.stem.partition(":")[0]
        for line in listing.read_text(errors="replace").splitlines():
            if line.startswith(("/usr/share/man/", "/usr/share/doc/")):
                owners.setdefault(line.removeprefix("/usr/share/"), package)
    return owners


def _share(domain: str, share: Path, owners: dict[str, str]) -> list[SourceFile]:
    """Documentation of the system's packages (web), and its English manual pages (reference)."""
    found = []
    roots = [share / "doc"] if domain == "web" else sorted(share.glob("man/man[1-9]*"))
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            inside = Path(folder).relative_to(share).as_posix()
            for name in names:
                form, path, file = _share_form(domain, name), f"{inside}/{name}", f"{folder}/{name}"
                if form and (size := _size(file)):
                    group = f"system:{owners.get(path) or _unowned(path)}"
                    found.append(SourceFile(path, form, size, file, compression=compression_of(name), group=group, kind=form))
    return found


def _unowned(path: str) -> str:
    """The package of a file that no list has: the folder under doc/, or the page's name without its section."""
    parts = path.split("/")
    return parts[1] if parts[0] == "doc" and len(parts) > 2 else parts[-1].partition(".")[0]


def _share_form(domain: str, name: str) -> str | None:
    plain = name.removesuffix(".gz")
    if domain == "reference":
        return "man"
    if CHANGES.match(plain) or NOT_TEXT.fullmatch(plain):
        return None
    if plain.lower().endswith((".html", ".htm")):
        return "html"
    return "txt" if README.fullmatch(plain) or plain.lower().endswith(SHARE_PROSE) else None
