"""Plug-ins: an object of the user's own that a setting names. The one place where a name becomes an import.

Its package must be there in every process that works: installed into the environment, or in a folder on PYTHONPATH.
"""

import importlib
import importlib.metadata
from typing import TypeVar

from contract.errors import ConfigError, said

Kind = TypeVar("Kind")
HINT = "; install its package into this environment, or put its folder on PYTHONPATH"


def load_plug_in(name: str, group: str, kind: type[Kind], setting: str) -> Kind:
    """What `name` stands for: `package.module:OBJECT`, or an entry point that an installed package has in `group`.

    Raises ConfigError that begins with the `setting` and says what is missing.
    """
    module, _, attribute = resolve_plug_in(name, group, setting).partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything while it is loaded
        is_absent = isinstance(error, ModuleNotFoundError) and module.split(".")[0] == error.name
        raise ConfigError(f"{setting}: {name} cannot be loaded ({said(error)}){HINT if is_absent else ''}") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{setting}: {name} is a {type(found).__name__}; a {kind.__module__}.{kind.__name__} is expected")
    return found


def resolve_plug_in(name: str, group: str, setting: str) -> str:
    """`package.module:OBJECT` of a name: what a fingerprint has, as another package may offer the same entry point tomorrow."""
    if ":" in name:
        return name
    points = importlib.metadata.entry_points(group=group)
    found = sorted({f"{point.module}:{point.attr}" for point in points if point.name == name})
    if len(found) > 1:  # the order of the path must not decide
        offers = " and ".join(found)
        raise ConfigError(f"{setting}: {name} is the entry point of {offers}; write package.module:OBJECT for the one that you mean")
    if not found:
        known = sorted({point.name for point in points})
        has = f"those in {group}: {', '.join(known)}" if known else f"no installed package has one in {group}"
        raise ConfigError(f"{setting}: {name!r} is neither package.module:OBJECT nor an entry point; {has}")
    return found[0]
