"""Takes a run whose process or machine vanished up again, at most BESSEMER_RESUMES times and with a growing pause, so that nobody must.

Such a run is `Crashed`: Prefect's worker says so of a process that died, our worker and `make up` of one that was gone, and the server of
one whose heartbeat stopped (services/automations.py). Every worker of ours, and the scaler of GPU machines, looks for such runs of all
pools. A run that failed in a sentence is `Failed`, and one that a person cancelled is `Cancelled`: both are left alone.

The server's own history of a run says how often it was taken up, so nothing is lost with a worker, and two
workers that act at once do it once.
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from contract.errors import ConfigError, PipelineError
from services.automations import EVENT, SILENT_S, TAG
from services.prefect_api import Api, ServerDown

MOST = 3
FIRST_PAUSE_S, GROWTH = 45, 4
"""The pauses are 45 s, 3 min, 12 min. By the first, a run that lives has sent a heartbeat; the others are for what ends every attempt."""
LOOK_S = 10
UNTAKEN_S = 60
LOOK_BACK = timedelta(days=7)
"""A run that crashed earlier has been given up."""
OURS = re.compile(r"Taken up again \((\d+) of ")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
BORROWED = "borrowed"
"""The tag of a run that only lends its machine to another: the other one asks for a new machine."""


def most_times() -> int:
    """BESSEMER_RESUMES: how often a run is taken up before it waits for a person; 0 is never. Raises ConfigError for what is no number."""
    value = os.environ.get("BESSEMER_RESUMES") or str(MOST)
    if not value.isascii() or not value.isdigit():
        raise ConfigError(
            f"BESSEMER_RESUMES is {value}; give the number of times that a crashed run is taken up again, such as {MOST} or 0"
        )
    return int(value)


def take_up(api: Api, most: int) -> list[str]:
    """Set each run that crashed, and whose pause is over, going again; returns a line for each."""
    lines = []
    now = datetime.now(UTC)
    for run in api.runs(["CRASHED"], tags={"all_": [TAG]}, end_time={"after_": (now - LOOK_BACK).isoformat()}):
        if run.get("deployment_id") is None or BORROWED in run.get("tags", ()):
            continue
        due = next_time(history(api, run["id"]), most)
        if due is None or now < due.when or is_alive(api, run["id"], due.crashed, now):
            continue
        message = f"Taken up again ({due.number} of {most}) after: {run['state'].get('message') or 'it crashed'}"
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message, "state_details": {"scheduled_time": now.isoformat()}}
        answer = api.call("POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": False})
        if answer and answer["status"] == "ACCEPT":
            lines.append(f"{run['name']} crashed and is taken up again ({due.number} of {most})")
    return lines


def is_alive(api: Api, run: str, crashed: datetime, now: datetime) -> bool:
    """Whether heartbeats have come since it was said to be gone: a server that was away for a while may say so of a live run."""
    since = max(crashed, now - timedelta(seconds=SILENT_S))
    wanted = {
        "occurred": {"since": since.isoformat()},
        "event": {"name": [EVENT + "heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run}"]},
    }
    found = api.call("POST", "/events/filter", {"filter": wanted, "limit": 1})
    return bool(found and found["events"])


def keep_taking_up(api: Api, most: int) -> NoReturn:
    """Do so for ever. A server that is away for a while is asked again; what else goes wrong is said once."""
    said = ""
    while True:
        try:
            lines = take_up(api, most)
        except ServerDown:
            lines = []
        except PipelineError as error:
            lines = [f"crashed runs are not taken up: {error}"] if str(error) != said else []
            said = str(error)
        for line in lines:
            print(f"worker: {line}", flush=True)
        time.sleep(LOOK_S)


def history(api: Api, run: str) -> list[dict[str, Any]]:
    """The states of a run, the oldest first."""
    found = api.call("GET", f"/flow_run_states/?flow_run_id={run}") or []
    return sorted(found, key=lambda state: str(state["timestamp"]))


def will_go_on(api: Api, run: str, most: int) -> bool:
    """Whether a run has not ended, or will be taken up by a worker. Where none has done so a minute after its time, none is there."""
    states = history(api, run)
    due = next_time(states, most)
    is_open = bool(states) and states[-1]["type"] not in FINAL
    return is_open or (due is not None and datetime.now(UTC) < due.when + timedelta(seconds=UNTAKEN_S))


@dataclass(frozen=True)
class Due:
    number: int
    crashed: datetime
    when: datetime


def next_time(states: Sequence[dict[str, Any]], most: int) -> Due | None:
    """When a run with these states is to be taken up, and for which time; None for one that is left as it is.

    The count begins anew where a person, or the run that waits for this one, set an ended run going.
    """
    if not states or states[-1]["type"] != "CRASHED":
        return None
    taken = 0
    for former, state in reversed(list(zip([None, *states], states, strict=False))):
        if state["type"] == "CANCELLING":
            return None  # a person had ended it, before its process was gone
        if state["type"] == "SCHEDULED":
            if ours := OURS.match(state.get("message") or ""):
                taken = max(taken, int(ours[1]))
            elif former is not None and former["type"] in FINAL:
                break
    if taken >= most:
        return None
    crashed = datetime.fromisoformat(states[-1]["timestamp"])
    return Due(taken + 1, crashed, crashed + timedelta(seconds=FIRST_PAUSE_S * GROWTH**taken))
