"""Why a stage must run: its identity compared, field by field, with the one that this preset used last."""

from typing import Any


def difference(last: dict[str, Any] | None, identity: dict[str, Any], prefix: str = "") -> str:
    """A phrase for each changed field, such as `dedup.threshold 0.8 -> 0.85`; "first run" when there is nothing to compare."""
    if last is None:
        return "first run"
    if last == identity:
        return "its artifact is gone"
    causes = []
    if last["version"] != identity["version"]:
        causes.append(f"version {last['version']} -> {identity['version']}")
    before, after = _flat(last["config"]), _flat(identity["config"])
    causes += [
        f"{prefix}{key} {_short(before.get(key))} -> {_short(after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    changed = [role for role in identity["inputs"] if last["inputs"].get(role) != identity["inputs"][role]]
    gone = [role for role in last["inputs"] if role not in identity["inputs"]]
    outside = [
        name for name in {**last["external"], **identity["external"]} if last["external"].get(name) != identity["external"].get(name)
    ]
    causes += [f"other {_listed(changed)}"] if changed else []
    causes += [f"without {', '.join(gone)}"] if gone else []
    causes += [f"changed bytes of {_listed(sorted(outside))}"] if outside else []
    return "; ".join(causes[:4]) + (f"; and {len(causes) - 4} more" if len(causes) > 4 else "")


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict) and value:
        return {key: item for name, inner in value.items() for key, item in _flat(inner, f"{prefix}.{name}" if prefix else name).items()}
    return {prefix: value}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _listed(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
