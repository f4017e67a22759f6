"""Crashed runs are taken up again, a few times and ever later, and nothing else is. On a real server; whole in e2e/test_deployments.py."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contract.errors import ConfigError
from services import take_up as product
from services.background import wait_until
from services.prefect_api import Api
from services.take_up import BORROWED, FIRST_PAUSE_S, GROWTH, Due, most_times, next_time, take_up
from tests.infra.machines.worlds import Server
from tests.services.test_automations import beat, end, state

START = datetime(2026, 11, 1, tzinfo=UTC)


def history(*words: str) -> list[dict[str, Any]]:
    """A state a minute: TYPE, or TYPE:message."""
    return [
        {"type": word.partition(":")[0], "message": word.partition(":")[2] or None, "timestamp": (START + timedelta(minutes=i)).isoformat()}
        for i, word in enumerate(words)
    ]


ONCE = ("SCHEDULED", "PENDING", "RUNNING", "CRASHED")
FIRST, SECOND, THIRD = ((f"SCHEDULED:Taken up again ({n} of 3) after: x", "PENDING", "RUNNING", "CRASHED") for n in (1, 2, 3))
NOTICE = ("SCHEDULED:Stopped by SIGTERM; goes on from here", "PENDING", "RUNNING")
BY_HAND = ("SCHEDULED", "PENDING", "RUNNING", "CRASHED")


@pytest.mark.parametrize(
    ("states", "number"),
    [
        (ONCE, 1),
        ((*ONCE, *FIRST), 2),
        ((*ONCE, *FIRST, *SECOND), 3),
        ((*ONCE, *FIRST, *SECOND, *THIRD), None),
        ((*ONCE, *FIRST, *SECOND, *THIRD, *BY_HAND), 1),  # a person's Retry begins the count anew
        ((*ONCE, *FIRST[:-1], *NOTICE, "CRASHED"), 2),  # a notice is no person
        ((*ONCE[:-1], "FAILED", *BY_HAND, *FIRST), 2),
        ((*ONCE, FIRST[0], FIRST[0], *FIRST[1:]), 2),  # two workers at once
        (("SCHEDULED", "PENDING", "CRASHED"), 1),  # its process never started
        (("CRASHED",), 1),
        ((*ONCE[:-1], "CANCELLING", "CRASHED"), None),
        ((*ONCE[:-1], "CANCELLING", "CANCELLED", *BY_HAND), 1),
        (ONCE[:-1], None),
        ((*ONCE[:-1], "FAILED"), None),
        ((*ONCE[:-1], "CANCELLED"), None),
        ((*ONCE[:-1], "COMPLETED"), None),
        ((), None),
    ],
)
def test_when_a_run_is_due_follows_from_its_states_alone(states: tuple[str, ...], number: int | None):
    found = next_time(history(*states), 3)
    crashed = START + timedelta(minutes=len(states) - 1)
    assert found == (number and Due(number, crashed, crashed + timedelta(seconds=FIRST_PAUSE_S * GROWTH ** (number - 1))))
    assert next_time(history(*states), 0) is None


def test_pauses_grow_and_the_first_is_longer_than_a_heartbeat():
    times = [next_time(history(*ONCE, *(FIRST, SECOND)[0] * (n > 0), *SECOND * (n > 1)), 3) for n in range(3)]
    pauses = [(due.when - due.crashed).total_seconds() for due in times if due]
    assert pauses == [45, 180, 720]


@pytest.mark.parametrize(("value", "number"), [("", 3), ("0", 0), ("12", 12)])
def test_how_often_is_a_variable(monkeypatch: pytest.MonkeyPatch, value: str, number: int):
    monkeypatch.setenv("BESSEMER_RESUMES", value)
    assert most_times() == number


@pytest.mark.parametrize("value", ["many", "-1", "1.5", "٣", " "])
def test_what_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("BESSEMER_RESUMES", value)
    with pytest.raises(ConfigError, match=r"BESSEMER_RESUMES is .*; give the number of times"):
        most_times()


@pytest.fixture
def api(prefect_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """No test leaves a crashed run to another one."""
    monkeypatch.setattr(product, "FIRST_PAUSE_S", 0)
    yield prefect_server.api
    for run in prefect_server.api.runs(["CRASHED"]):
        prefect_server.api.call("DELETE", f"/flow_runs/{run['id']}")


@pytest.fixture
def deployment(prefect_server: Server) -> str:
    return prefect_server.pool()[1]["spot"]


def started(api: Api, deployment: str, *tags: str) -> str:
    body = {"tags": list(tags), "state": {"type": "RUNNING", "name": "Running"}}
    return str(api.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])


@pytest.mark.e2e
def test_a_crashed_run_of_ours_goes_on_and_no_other(api: Api, deployment: str):
    gone, failed, done, lent, others, cancelled, lives = (
        started(api, deployment, *tags)
        for tags in (["bessemer"], ["bessemer"], ["bessemer"], ["bessemer", BORROWED], ["x"], ["bessemer"], ["bessemer"])
    )
    end(api, failed, "FAILED", "gate_mix does not hold")
    end(api, done, "COMPLETED", "")
    end(api, cancelled, "CANCELLING", "by a person")
    for run in (gone, lent, others, cancelled, lives):
        end(api, run, "CRASHED", "its machine vanished")
    beat(api, lives, "bessemer")
    assert all(state(api, run)["type"] == "CRASHED" for run in (gone, lent, others, lives))
    before = datetime.now(UTC) - timedelta(minutes=1)
    assert wait_until(lambda: product.is_alive(api, lives, before, datetime.now(UTC)), 30), "the server stores events in batches"
    lines = take_up(api, 3)
    assert len(lines) == 1 and lines[0].endswith(" crashed and is taken up again (1 of 3)"), lines
    now = state(api, gone)
    assert (now["name"], now["message"]) == ("AwaitingRetry", "Taken up again (1 of 3) after: its machine vanished")
    assert datetime.fromisoformat(now["state_details"]["scheduled_time"]) < datetime.now(UTC) + timedelta(seconds=5)
    kinds = [state(api, run)["type"] for run in (failed, done, lent, others, lives)]
    assert kinds == ["FAILED", "COMPLETED", "CRASHED", "CRASHED", "CRASHED"]
    assert state(api, cancelled)["type"].startswith("CANCELL")
    assert take_up(api, 3) == [], "it waits for a worker"


@pytest.mark.e2e
def test_it_is_left_after_so_many_times_until_a_person_retries_it(api: Api, deployment: str):
    run = started(api, deployment, "bessemer")
    for number in (1, 2, None):
        end(api, run, "CRASHED", "out of memory")
        assert take_up(api, 2) == ([f"{name(api, run)} crashed and is taken up again ({number} of 2)"] if number else [])
        end(api, run, "RUNNING", "") if number else None
    api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True})
    end(api, run, "RUNNING", "")
    end(api, run, "CRASHED", "out of memory")
    assert len(take_up(api, 2)) == 1


@pytest.mark.e2e
def test_workers_that_look_at_the_same_moment_count_once(api: Api, deployment: str):
    run = started(api, deployment, "bessemer")
    end(api, run, "CRASHED", "gone")
    together = threading.Barrier(4)

    def look() -> None:
        together.wait()
        take_up(api, 3)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state(api, run)["name"] == "AwaitingRetry"
    end(api, run, "RUNNING", "")
    end(api, run, "CRASHED", "gone")
    assert take_up(api, 3) == [f"{name(api, run)} crashed and is taken up again (2 of 3)"]


@pytest.mark.e2e
def test_a_run_is_not_taken_up_before_its_pause_is_over(api: Api, deployment: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(product, "FIRST_PAUSE_S", 60)
    run = started(api, deployment, "bessemer")
    end(api, run, "CRASHED", "gone")
    assert take_up(api, 3) == [] and state(api, run)["type"] == "CRASHED"


def name(api: Api, run: str) -> str:
    return str(api.call("GET", f"/flow_runs/{run}")["name"])
