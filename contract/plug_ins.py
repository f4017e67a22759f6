"""Loads plug-ins: a plug-in is an object of the user's own that a setting names. Only here does a name become an import.

Every process that works must find its package: installed into the environment, or in a folder on PYTHONPATH.
"""

import importlib
import importlib.metadata
from typing import TypeVar

from contract.errors import ConfigError, said

Kind = TypeVar("Kind")


def load_plug_in(name: str, group: str, kind: type[Kind], setting: str) -> Kind:
    """Load the object that `name` stands for: `package.module:OBJECT`, or an entry point that an installed package has in `group`.

    Raises ConfigError that begins with the `setting` and says what is missing.
    """
    where = name if ":" in name else _entry_point(name, group, setting)
    module, _, attribute = where.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's may raise anything while it is loaded
        why = f"{setting}: {name} cannot be loaded ({said(error)})"
        raise ConfigError(f"{why}; install its package into this environment, or put its folder on PYTHONPATH") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{setting}: {name} is a {type(found).__name__}; a {kind.__module__}.{kind.__name__} is expected")
    return found


def _entry_point(name: str, group: str, setting: str) -> str:
    known = {point.name: point.value for point in importlib.metadata.entry_points(group=group)}
    if name not in known:
        has = f"those in {group}: {', '.join(sorted(known))}" if known else f"no installed package has one in {group}"
        raise ConfigError(f"{setting}: {name} is neither package.module:OBJECT nor an entry point; {has}")
    return known[name]
