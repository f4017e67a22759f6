"""Runs a deployment and follows the run in the terminal: what `make pretrain` does once server and worker are up.

    python -m services.watch pretrain/full preset=laptop

It calls `prefect deployment run --watch` on this clone's server, whatever profile is selected, and returns its exit status: 0 when the run
completed. It shows our lines of the run's log in place of Prefect's own events, and it ends when no worker is left to take the run.
"""

import contextlib
import logging
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from typing import Any

from contract.environment_variables import prepare_environment
from contract.errors import PipelineError
from services import background
from services.paths_and_ports import POOL, Clone, ui
from services.prefect_api import Api
from services.status import running_api, worker_is_up
from services.take_up import most_times, will_go_on

EVENT_MARKS = ("●", "▪", "prefect.flow-run.")  # the start of each line of `--watch` that is not about the whole run
WORKER_GONE_S = 10  # a `make up` may be restarting it


def main(arguments: list[str]) -> int:
    try:
        prepare_environment()
        if not arguments:
            raise PipelineError("usage: python -m services.watch FLOW/DEPLOYMENT [NAME=VALUE ...]")
        return run(arguments[0], arguments[1:])
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\nNo longer watching; the run goes on. Stop it: make down (it resumes at the next make up), or Cancel in the UI.",
            file=sys.stderr,
        )
        return 130


def run(deployment: str, parameters: list[str]) -> int:
    clone, api = Clone.from_environment(), running_api()
    url = api.url
    if not worker_is_up(api_url=url):
        raise PipelineError(f"no worker takes runs from the pool {POOL} at {url}; start one: make up")
    if api.is_paused(POOL):
        raise PipelineError(f"the pool {POOL} at {url} is paused, no run of it starts; resume it: prefect work-pool resume {POOL}")
    settings = [part for parameter in parameters for part in ("-p", parameter)]
    command = background.prefect("deployment", "run", deployment, *settings, "--watch")
    child = subprocess.Popen(
        command,
        env=clone.child_environment(url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        start_new_session=True,
    )
    try:
        code = follow(child, Follower(api), clone)
    finally:
        end(child)
    print(f"UI      {ui(url)}")
    return code


def follow(child: "subprocess.Popen[str]", follower: "Follower", clone: Clone) -> int:
    """Print until `prefect deployment run --watch` ends; returns its exit status."""
    assert child.stdout is not None
    head: list[str] = []
    for line in child.stdout:  # until the run's id is known, or the run was refused
        head.append(line.rstrip())
        if "UUID:" in line:
            follower.run_id = line.split()[-1]
        if "URL:" in line:
            print(f"run     {line.split()[-1]}", flush=True)
            break
    else:
        print("\n".join(head), flush=True)
        return child.wait()
    gone_since: float | None = None
    while child.poll() is None or follower.goes_on():
        time.sleep(0.5)
        follower.print_new()
        there = background.running(clone.worker_pid) is not None or worker_is_up(api_url=follower.api.url)
        gone_since = None if there else gone_since or time.monotonic()
        if gone_since and time.monotonic() - gone_since > WORKER_GONE_S:
            raise PipelineError(
                f"no worker takes runs from the pool {POOL} any more, so the run waits; make up starts one, and goes on with it"
            )
    follower.print_rest()
    last = [line.rstrip() for line in child.stdout if line.strip() and not line.startswith(EVENT_MARKS)]
    last = last[-1:] if not follower.crashes else [f"the run ended {follower.state()['name']}"]
    print("\n".join([*follower.reason(), *last]), flush=True)
    code = child.returncode if not follower.crashes else int(follower.state()["type"] != "COMPLETED")
    if code and not clone.external:
        print(f"log     {clone.folder / 'worker.log'}")
    return code


def end(child: "subprocess.Popen[str]") -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()
    child.wait()


class Follower:
    """Prints our lines of a run's log as they reach the server, each once."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.run_id = ""
        self._seen: set[str] = set()
        self._after = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
        self._flow_has_ended = False
        self._last_error = ""
        self.crashes: set[str] = set()
        """The crashes after which the run went on: Prefect's own `--watch` ends at the first."""

    def goes_on(self) -> bool:
        """Whether the run crashed, and is to be taken up or has been. Say so, once for each crash."""
        state = self.state()
        if not (self.crashes or state["type"] == "CRASHED") or not will_go_on(self.api, self.run_id, most_times()):
            return False
        if state["type"] == "CRASHED" and state["id"] not in self.crashes:
            self.crashes.add(state["id"])
            print("\n".join([*self.reason(), "it crashed, and is taken up again from its last checkpoint"]), flush=True)
        return True

    def print_new(self) -> None:
        for entry in self._fetch():
            if entry["id"] in self._seen:
                continue
            self._seen.add(entry["id"])
            self._flow_has_ended |= entry["name"] == "prefect.flow_runs" and entry["message"].startswith("Finished in state")
            if entry["level"] >= logging.ERROR:
                self._last_error = entry["message"].strip().splitlines()[-1]
            if entry["name"].split(".")[0] == "bessemer":
                print(entry["message"], flush=True)

    def print_rest(self) -> None:
        """Print the rest. The flow's process sends its log in batches, and the last batch comes after its state."""
        deadline = time.monotonic() + 5
        while not self._flow_has_ended and time.monotonic() < deadline:
            self.print_new()
            time.sleep(0.2)
        self.print_new()

    def reason(self) -> list[str]:
        """Why the run did not complete. The message of a crash holds only an exit status; the last line of its traceback says more."""
        state = self.state()
        if state.get("type") == "COMPLETED":
            return []
        lines = [state.get("message") or "", self._last_error if state.get("type") == "CRASHED" else ""]
        return [line for line in lines if line]

    def state(self) -> dict[str, Any]:
        run = self.api.call("GET", f"/flow_runs/{self.run_id}") or {}
        return run.get("state") or {"id": "", "type": "", "name": "no more: the server does not know it", "message": ""}

    def _fetch(self) -> list[dict[str, Any]]:
        """The log since a little before the last known line: batches may overtake one another."""
        found: list[dict[str, Any]] = []
        since = (self._after - timedelta(seconds=10)).isoformat()
        asked = {"flow_run_id": {"any_": [self.run_id]}, "level": {"ge_": logging.INFO}, "timestamp": {"after_": since}}
        while True:
            body = {"logs": asked, "limit": 200, "offset": len(found), "sort": "TIMESTAMP_ASC"}
            page = self.api.call("POST", "/logs/filter", body) or []
            found += page
            if len(page) < 200:
                break
        if found:
            self._after = datetime.fromisoformat(found[-1]["timestamp"])
        return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
