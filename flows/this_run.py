"""What a flow run and the server know of each other: the run's name, and whether its deployment was made from the code that runs."""

from pathlib import Path
from typing import Any

import prefect.runtime
from prefect import get_client

from bessemer.config import DEFAULT_PRESET
from contract.errors import ConfigError
from services.code_version import code_digest, others
from store.run_records import without_secrets

CLONE = Path(__file__).absolute().parents[1]
MOST_CHARS = 80
LONGEST_WORD = 40
PLACES = ("storage", "run", "run_on")
"""Settings that say where and how fast: a name has them last."""


def chosen_name() -> str:
    """The name of the run that is about to begin. One that a person gave it, or that a former attempt had, stays."""
    name = str(prefect.runtime.flow_run.name)
    return name_of(str(prefect.runtime.flow_run.flow_name), prefect.runtime.flow_run.parameters) if is_drawn(name) else name


def name_of(flow: str, parameters: dict[str, Any]) -> str:
    """`pretrain smoke train.max_steps=50 +1`: the flow, what it stands on, the overrides that fit, and how many more there are."""
    preset, file = parameters.get("preset") or DEFAULT_PRESET, parameters.get("config")
    overrides = without_secrets(parameters.get("overrides") or {})
    words = [flow, _short(str(file).rpartition("/")[2] if file else str(getattr(preset, "value", preset)))]
    keys = sorted(overrides, key=lambda key: str(key).partition(".")[0] in PLACES)
    for done, key in enumerate(keys):
        word, left = f"{_short(str(key))}={_short(_written(overrides[key]))}", len(keys) - done
        if len(" ".join([*words, word, f"+{left}"])) > MOST_CHARS:
            return " ".join([*words, f"+{left}"])
        words.append(word)
    return " ".join(words)


def is_drawn(name: str) -> bool:
    """Whether the server made the name up, of two of its words."""
    import coolname.data  # Prefect's own source of names

    parts: Any = coolname.data.config.values()
    known = {word for part in parts for word in part.get("words", ())}
    return len(words := name.split("-")) == 2 and known.issuperset(words)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_WORD else text[: LONGEST_WORD - 1] + "…"


def refuse_other_code() -> None:
    """Raise ConfigError if this run's deployment was made from other code than this clone's. A run without a deployment may be of any.

    What counts is the deployment of today: a run that was made before an upgrade goes on after `make up` has deployed the new code.
    """
    if prefect.runtime.deployment.id is None:
        return
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment(prefect.runtime.deployment.id)
    code = code_digest(CLONE)
    if other := others([deployment.version], code):
        name = f"{prefect.runtime.flow_run.flow_name}/{deployment.name}"
        raise ConfigError(
            f"{name} was deployed from code {other[0]}, but {CLONE}, where this run would work, has code {code}: nothing was run. "
            "If that clone is the right one, deploy its code by make up, then Retry. If another one is, its own worker must take the run: "
            "give each clone a server of its own (BESSEMER_PORT=4201 make up)."
        )
