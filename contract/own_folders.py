"""Where this user's processes write beside the root: their caches, and what a clone or a home takes elsewhere. One place decides.

A user of a container often has no entry in passwd, no HOME, or a clone that belongs to somebody else. What another user has made is not
used: it may hold code (Numba's and torch's caches do) or a password. This module needs the standard library alone, for `bessemer doctor`.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from contract.errors import InputError

CLONE = Path(__file__).parents[1]


def cache_folder() -> Path:
    """BESSEMER_CACHE; else the first of `_places` that is ours or can be; else one in TMPDIR. Made, or InputError says what to set."""
    if given := os.environ.get("BESSEMER_CACHE"):
        folder = Path(os.path.expanduser(given)).absolute()  # noqa: PTH111 (Path's raises where there is no home)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not _takes_files(folder):
            raise InputError(f"BESSEMER_CACHE is {given}, where nothing can be written: set it to a folder of yours")
        return folder
    for top, below in _places():
        with contextlib.suppress(OSError):
            top.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_ours(top, below):
                (top / below).mkdir(mode=0o700, parents=True, exist_ok=True)
                return top / below
    try:
        return temporary_folder()
    except (InputError, OSError) as error:
        why = error if isinstance(error, InputError) else f"{error.filename} cannot be made ({error.strerror})"
        raise InputError(f"no folder for caches: neither HOME nor the clone can be written, and {why}, or set BESSEMER_CACHE") from error


def _places() -> Iterator[tuple[Path, str]]:
    if Path(given := os.environ.get("XDG_CACHE_HOME", "")).is_absolute():
        yield Path(given), "bessemer"
    if (known := home()) is not None:
        yield known, ".cache/bessemer"
    if (CLONE / "prefect.yaml").exists():
        yield CLONE, ".cache/bessemer"


def temporary_folder(most_chars: int | None = None) -> Path:
    """A folder in TMPDIR that this user keeps; in /tmp if its path would be longer than that.

    Raises InputError, also where TMPDIR is set and takes no files: Python would pass over it. Raises OSError if it cannot be made.
    """
    given = os.environ.get("TMPDIR")
    if given and not _takes_files(Path(given)):
        raise InputError(f"TMPDIR is {given}, where nothing can be written: set it to a folder of yours")
    name = f"bessemer-{os.geteuid()}"
    try:
        there = Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise InputError("there is no folder for temporary files that can be written: set TMPDIR to a folder of yours") from None
    folder = there if there.name == name else there / name  # a worker's flows have it as TMPDIR
    return private(Path("/tmp", name) if most_chars and len(os.fsencode(folder)) > most_chars else folder, "TMPDIR")


def private(folder: Path, variable: str = "BESSEMER_CACHE") -> Path:
    """The folder, made with mode 0700. Raises InputError if somebody else made it, made it a link, or could put files into it; the
    variable names another place."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InputError(f"{folder} is a link or belongs to another user, who could change what is read; remove it, or set {variable}")
    if found.st_mode & 0o022 and any(folder.iterdir()):
        raise InputError(f"{folder} was open to other users, who may have put files into it; remove it, or set {variable}")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def in_clone(clone: Path, below: str) -> Path:
    """The path `below` a clone, or one in the cache folder where the clone is not ours to write."""
    if _is_ours(clone, below):
        return clone / below
    name = hashlib.sha256(str(clone).encode()).hexdigest()[:12]
    return private(private(cache_folder() / "clones") / name) / below.strip(".").replace("/", "-")


def at_home(below: str) -> Path:
    """The path `below` the user's home, or one in the cache folder where the home cannot take it."""
    known = home()
    return known / below if known is not None and _is_ours(known, below) else private(cache_folder() / "home") / below


def home() -> Path | None:
    """The user's home, if it is there."""
    try:
        folder = Path.home()
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None
    return folder if folder.is_absolute() and os.path.isdir(folder) else None  # noqa: PTH112 (Path's raises if it cannot look)


def _is_ours(top: Path, below: str) -> bool:
    """Whether the path takes files or can be made, and each part of it is ours, or of the owner of `top` and closed to strangers."""
    folder = top
    for part in Path(below).parts:
        folder = folder / part
        if not os.path.lexists(folder):
            return _takes_files(folder.parent)
        try:
            found, owner = folder.stat(), top.stat().st_uid
        except OSError:
            return False
        if found.st_uid != os.geteuid() and (found.st_uid != owner or found.st_mode & stat.S_IWOTH):
            return False
    return _takes_files(folder)


def _takes_files(folder: Path) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)  # noqa: PTH112 (Path's raises if it cannot look)
