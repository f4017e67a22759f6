"""Finds the programs and the model that set-up installs beside Python: lmplz, build_binary, fastText's language model."""

import shutil
import sys
from pathlib import Path

from contract.errors import InputError


def tool(name: str) -> Path:
    """The program in this environment's bin folder, else on PATH. Raises InputError that says how to get it."""
    own = Path(sys.prefix, "bin", name)
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise InputError(f"{name} is neither in {own.parent} nor on PATH; `make setup` builds it")
    return Path(found)


def language_model() -> Path:
    """fastText's lid.176.ftz (CC BY-SA 3.0), where set-up puts it."""
    path = Path(sys.prefix, "share", "bessemer", "lid.176.ftz")
    if not path.exists():
        raise InputError(f"the language model {path} is missing; `make setup` fetches it")
    return path
