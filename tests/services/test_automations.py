"""Automations on a real server: what fell silent is ended, what lives is left alone, and a broken run is told of.

The times are a tenth of the product's: the server judges heartbeats by its own clock, so an hour of them cannot be sent at once.
"""

import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.errors import InputError
from services import automations
from services.background import wait_until
from services.prefect_api import Api
from tests.infra.machines.worlds import Server
from tests.services.receiver import listening

pytestmark = pytest.mark.e2e


@pytest.fixture
def api(prefect_server: Server) -> Api:
    return prefect_server.api


def test_every_deployment_has_the_tag_that_automations_know_our_runs_by():
    """The server gives it to their runs, whoever starts them."""
    wanted = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]
    untagged = [each["entrypoint"] for each in wanted if automations.TAG not in each.get("tags", [])]
    assert not untagged


def running(api: Api, name: str, tags: tuple[str, ...] = ("bessemer",)) -> str:
    flow = api.call("POST", "/flows/", {"name": "toy"})["id"]
    body = {"flow_id": flow, "name": name, "tags": list(tags), "state": {"type": "RUNNING", "name": "Running"}}
    return str(api.call("POST", "/flow_runs/", body)["id"])


def beat(api: Api, run: str, *tags: str) -> None:
    """A heartbeat as the engine's thread sends it."""
    event = {
        "event": "prefect.flow-run.heartbeat",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "related": [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in tags],
        "payload": {},
        "id": str(uuid.uuid4()),
    }
    api.call("POST", "/events", [event])


def state(api: Api, run: str) -> dict[str, Any]:
    return dict(api.call("GET", f"/flow_runs/{run}")["state"])


def end(api: Api, run: str, kind: str, message: str, name: str | None = None) -> None:
    body = {"state": {"type": kind, "name": name, "message": message}, "force": False}
    api.call("POST", f"/flow_runs/{run}/set_state", body)


def test_a_silent_run_is_ended_and_a_run_that_lives_is_not(api: Api):
    """120 heartbeats are an hour of a stage that says nothing else; these are 8 of them, at a tenth of the time between."""
    assert automations.end_silent_runs(api)
    assert automations.end_silent_runs(api, silent_s=10), "another time replaces the first"
    assert not automations.end_silent_runs(api, silent_s=10), "a second call changes nothing"
    assert len(api.call("POST", "/automations/filter", {})) == 1
    time.sleep(1)  # the server tells its evaluator of a new automation within a moment
    silent, long, waiting, other = (running(api, name) for name in ("silent", "long", "waiting", "other"))
    for run in (silent, waiting, long):
        beat(api, run, "bessemer")
    beat(api, other, "others")
    time.sleep(1)  # events that are a moment apart may be judged in the other order
    end(api, waiting, "SCHEDULED", "stopped by SIGTERM", "AwaitingRetry")
    for _ in range(7):
        time.sleep(3)
        beat(api, long, "bessemer")
    assert state(api, silent)["type"] == "CRASHED"
    assert state(api, silent)["message"] == automations.SILENT
    assert state(api, waiting)["name"] == "AwaitingRetry"
    assert state(api, long)["type"] == "RUNNING"
    assert state(api, other)["type"] == "RUNNING"
    for run in (long, other):
        end(api, run, "COMPLETED", "")


def test_a_live_run_that_was_ended_by_mistake_says_so_at_its_end(api: Api):
    """A server that was away for longer than the silence may end what lives: the run's own word comes after it and counts."""
    run = running(api, "live")
    end(api, run, "CRASHED", automations.SILENT)
    end(api, run, "COMPLETED", "")
    assert state(api, run)["type"] == "COMPLETED"


def test_broken_runs_are_posted_until_it_is_off(api: Api):
    said = 'StageFailed: pretrain "stopped" at {step: 3}\n<b>and</b> why'
    with pytest.raises(InputError, match="http"):
        automations.notify(api, "slack.example/hook")
    with listening() as (url, lines):
        assert automations.notify(api, "http://127.0.0.1:9/elsewhere")
        assert automations.notify(api, url), "another address replaces the first"
        assert not automations.notify(api, url)
        time.sleep(1)
        broken, gone = running(api, "broken"), running(api, "gone")
        end(api, broken, "FAILED", said)
        end(api, running(api, "well"), "COMPLETED", "")
        end(api, running(api, "of-others", tags=()), "FAILED", said)
        end(api, gone, "CRASHED", "its process is gone")
        wait_until(lambda: len(lines) >= 2, 30)
        ui = f"{api.url.removesuffix('/api')}/runs/flow-run"
        assert sorted(lines) == [f"toy (broken) Failed: {said} {ui}/{broken}", f"toy (gone) Crashed: its process is gone {ui}/{gone}"]
        assert automations.stop_notifying(api) and not automations.stop_notifying(api)
        time.sleep(1)
        end(api, running(api, "later"), "FAILED", said)
        time.sleep(3)
        assert len(lines) == 2
