"""A file of settings of the user's own: which preset it stands on, and what differs from it. On this machine or on S3.

A run under Prefect keeps a copy of it in its root, `configs/<digest>/<name>`, and goes on with that: parts on other machines read it,
and a Retry does too, when the file itself has been edited for the next run.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bessemer.layers import Origin, read_with_lines
from contract.errors import ConfigError
from store.address import address
from store.root import open_file
from store.storage import Storage

MOST_BYTES = 2**20
KEPT = re.compile(r"/configs/([0-9a-f]{16})/[^/]+$")


@dataclass(frozen=True)
class ConfigFile:
    where: str
    """The URI or absolute path."""
    text: bytes

    @property
    def name(self) -> str:
        return address(self.where).path.rpartition("/")[2]

    @property
    def scope(self) -> str:
        """What the root's `last/` calls it: the file's name. A preset's has no dot, so that the two never meet."""
        name = re.sub(r"[^\w.+-]", "_", self.name)[:100].strip(".")
        return name if "." in name else f"{name or 'config'}.yaml"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text).hexdigest()

    @cached_property
    def _whole(self) -> tuple[dict[Any, Any], dict[tuple[str | int, ...], int]]:
        values, lines = read_with_lines(self.text, f"config {self.where}")
        if not isinstance(values, dict | None):
            raise ConfigError(f"config {self.where} holds no settings; write base: PRESET, and one key: value a line")
        return values or {}, lines

    @property
    def lines(self) -> dict[tuple[str | int, ...], int]:
        return self._whole[1]

    @property
    def settings(self) -> dict[Any, Any]:
        """What differs from the base."""
        return {key: value for key, value in self._whole[0].items() if key != "base"}

    @property
    def base(self) -> str | None:
        """The preset below it; None: the built-in defaults."""
        base = self._whole[0].get("base")
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{self.at('base')}: base is {base}; write the name of a preset, such as base: smoke")
        return base

    def at(self, *path: str | int) -> Origin:
        """The place of a key, or of the nearest that holds it."""
        while path and path not in self.lines:
            path = path[:-1]
        return Origin(self.name, self.lines.get(path))

    def keep(self, storage: Storage) -> str:
        """Copy it into a root; the copy's address. One that is there is written again: a clean-up leaves alone what is young."""
        path = f"configs/{self.digest[:16]}/{self.scope}"
        storage.write(path, self.text)
        return f"{storage.uri}/{path}"


def read_config_file(where: str, endpoint_url: str | None = None) -> ConfigFile:
    """The file at a path, file:// or s3:// address. Raises ConfigError, StorageError or InputError."""
    try:
        root, name = open_file(where, endpoint_url)
        place = where if "://" in where else address(where).path
    except ValueError as error:
        raise ConfigError(f"config {where!a}: {error}; name a file, as a path, file:// or s3://BUCKET/my.yaml") from error
    try:
        entry = root.stat(name)
        local = root.local(name)
        if entry is None or (local is not None and not Path(local).is_file()):
            raise ConfigError(f"config {where}: there is no file {place}; relative paths start at {Path.cwd()}. Correct the path")
        if entry.size > MOST_BYTES:
            raise ConfigError(f"config {where} has {entry.size:,} bytes; settings are a page of YAML, at most {MOST_BYTES:,} bytes")
        text = root.read(name)
    except OSError as error:
        raise ConfigError(f"config {where} cannot be read: {error.strerror or error}") from error
    if (kept := KEPT.search(place)) and not hashlib.sha256(text).hexdigest().startswith(kept[1]):
        raise ConfigError(f"config {where} is no longer what the run began with: somebody changed it. Give the file itself, in a new run")
    return ConfigFile(place, text)
