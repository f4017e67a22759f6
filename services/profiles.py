"""The Prefect profile `bessemer`: `make up` makes and selects it, `make down` selects the former one again.

It edits profiles.toml itself: only that file tells which profile was selected before, and `import prefect` would take 0.9 s.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

import toml

from contract.errors import InputError
from services.password import write_private

NAME = "bessemer"


def profiles_file(prefect_home: Path) -> Path:
    return Path(os.environ.get("PREFECT_PROFILES_PATH") or prefect_home / "profiles.toml")


def settings_of(api_url: str, password: str) -> dict[str, str]:
    return {"PREFECT_API_URL": api_url, "PREFECT_API_AUTH_STRING": password}


def is_selected(path: Path, api_url: str, password: str) -> bool:
    known = load(path)
    table = known.get("profiles", {}).get(NAME, {})
    return known.get("active") == NAME and settings_of(api_url, password).items() <= table.items()


def select(path: Path, api_url: str, password: str, former: dict[str, Any] | None) -> dict[str, Any]:
    """Make `bessemer` the active profile; returns what `restore` needs. `former` is what an earlier call returned."""
    known = load(path)
    profiles = known.setdefault("profiles", {})
    if former is None:
        former = {"active": known.get("active"), "table": profiles.get(NAME), "existed": path.exists()}
    elif known.get("active") != NAME:
        former = {**former, "active": known.get("active")}
    profiles[NAME] = {**profiles.get(NAME, {}), **settings_of(api_url, password)}
    known["active"] = NAME
    save(path, known)
    return former


def restore(path: Path, former: dict[str, Any]) -> str | None:
    """Undo `select`; returns the profile that is active now. A profile that somebody selected since then stays."""
    known = load(path)
    profiles = known.setdefault("profiles", {})
    if former["table"] is None:
        profiles.pop(NAME, None)
    else:
        profiles[NAME] = former["table"]
    if known.get("active") == NAME:
        known.pop("active")
        if former["active"] is not None:
            known["active"] = former["active"]
    if former["existed"] or profiles:
        save(path, known)
    else:
        path.unlink(missing_ok=True)
    return known.get("active")


def load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"Prefect's profiles in {path} cannot be read ({error}); repair or move that file") from error


def save(path: Path, known: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {**({"active": known["active"]} if "active" in known else {}), **{k: v for k, v in known.items() if k != "active"}}
    write_private(path, toml.dumps(ordered))  # it holds the password, and other profiles may hold keys
