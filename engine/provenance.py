"""The versions and the commit that made an artifact, as its manifest notes them. None of it enters a fingerprint."""

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("bessemer", "pyarrow", "numpy", "numba", "ray", "torch", "deepspeed", "tokenizers", "fasttext-community", "kenlm")


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    return {"versions": {"python": platform.python_version(), **_versions()}, "git": _git()}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(dirty)}
