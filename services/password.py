"""The password of this clone's own Prefect server: drawn by the first `make up`, in a file that only its owner can read.

Whoever can start a run on the server runs code as the user of the worker. Any page in a browser and any user of the machine reach
loopback, so it is no protection. The password stands in no command line and no log: it goes from the file into the environment of our
processes and into the profile `bessemer`.
"""

import os
import secrets
import stat
from pathlib import Path

from contract.errors import InputError


def read(path: Path) -> str | None:
    """The password, as user:password. None where none was drawn. A file that others can change or read is refused."""
    try:
        found = path.stat()
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"the server's password in {path} cannot be read ({error.strerror}): only who ran `make up` here can use it"
        ) from error
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise InputError(f"{path} belongs to another user (id {found.st_uid}); remove it: the next `make up` draws a password")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise InputError(f"others can read the server's password in {path}: make down, rm {path}, make up")
    if ":" not in text:
        raise InputError(f"{path} has no line user:password; remove it: the next `make up` draws a password")
    return text


def draw(path: Path) -> str:
    """The password; a new one where there is none."""
    known = read(path)
    if known is not None:
        return known
    text = f"bessemer:{secrets.token_urlsafe(24)}"
    write_private(path, text + "\n")
    return text


def write_private(path: Path, text: str) -> None:
    """Write a file for its owner alone. No moment shows it to others, and a stopped write leaves the former content."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)  # a umask may have taken even more
        file.write(text)
    temporary.replace(path)


def private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter; one that is there already becomes so."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o700)
