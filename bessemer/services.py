"""Server, worker and reports in the background, on loopback: what `make up`, `make down` and `make status` call.

    python -m bessemer.services up | down | status

Pid files and logs lie in .cache/services/ of the clone. The server's port is BESSEMER_PORT (4200), that of the reports
BESSEMER_REPORTS_PORT (the next one). Where PREFECT_API_URL is set, that server (or Prefect Cloud) is used and none is started.
Settings that the user has made in the environment win over ours.

`up` reuses what runs. `down` lets active runs say where they stopped (AwaitingRetry), so that the next `up` goes on with them.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bessemer import processes, profiles
from bessemer.api import LIVE, Api
from bessemer.environment import prepare_environment
from bessemer.place import POOL, Place, one_at_a_time, say, ui
from bessemer.starting import SETTLE_S, up
from contract.errors import InputError, PipelineError, exit_code_of, said


def down() -> None:
    """Pause, let the flows say where they stopped, then worker, server and the former profile. In this order: the worker would
    kill its flows without a word, and a flow cannot report to a server that is gone."""
    place = Place.from_environment()
    with one_at_a_time(place):
        state = place.state()
        api = Api(state["api_url"]) if state.get("api_url") else None
        alone = api is not None and not state.get("external") and api.is_healthy()
        with paused(api) if api and alone else contextlib.nullcontext():
            stop_worker(place, api if alone or (api and api.is_healthy()) else None, bool(alone))
        if (reports := processes.running(place.reports_pid)) is not None:
            processes.stop(reports, 5)
        server = processes.running(place.server_pid)
        if server is not None:
            processes.stop(server, 15)
            say("server", "stopped")
        if "profile" in state:
            active = profiles.restore(Path(state["profiles_file"]), state["profile"])
            say("profile", f"{active or 'Prefect’s default'} is selected again")
        forget(place)
        if server is None and not state:
            say("server", "nothing runs")


@contextlib.contextmanager
def paused(api: Api) -> Iterator[None]:
    """No worker takes up again what is asked to stop."""
    pools = [pool["name"] for pool in api.pools() if not pool["is_paused"]]
    for pool in pools:
        api.pause(pool, True)
    try:
        yield
    finally:
        for pool in pools:
            api.pause(pool, False)


def stop_worker(place: Place, api: Api | None, alone: bool) -> None:
    worker = processes.running(place.worker_pid)
    flows = len(processes.flow_processes(place.worker_name))
    if worker is not None:
        if flows:
            say("runs", f"{flows} active: stopping, at most {SETTLE_S} s")
        processes.stop(worker, SETTLE_S + 30)
        say("worker", "stopped")
    processes.settle(place.worker_name, grace_s=15)  # of a worker that was killed before
    if api is not None:
        for name in api.reconcile(place.worker_name, alive=set(), alone=alone):
            say("runs", f"{name} is Crashed: its process did not say where it stopped; Retry continues it")


def forget(place: Place) -> None:
    for path in (place.server_pid, place.worker_pid, place.reports_pid, place.folder / "state.json"):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Status:
    api_url: str | None
    server_is_up: bool
    worker_is_up: bool
    active_runs: int

    @property
    def ui_url(self) -> str | None:
        return ui(self.api_url) if self.api_url else None


def services_status() -> Status:
    place = Place.from_environment()
    url = place.external or place.state().get("api_url")
    if url is None or not (api := Api(url)).is_healthy():
        return Status(url, False, False, 0)
    return Status(url, True, worker_is_up(api_url=url), len(api.runs(LIVE)))


def running_api() -> Api:
    """The server of this clone, or the one that PREFECT_API_URL names; PipelineError when none answers."""
    place = Place.from_environment()
    url = place.external or place.state().get("api_url")
    if url is None or not (api := Api(url)).is_healthy():
        raise PipelineError("no Prefect server of this clone runs; start it: make up")
    return api


def worker_is_up(pool: str = POOL, api_url: str | None = None) -> bool:
    """Whether a run in this pool would be taken. A worker of ours is judged by its process, others by their last heartbeat."""
    place = Place.from_environment()
    url = api_url or place.external or place.state().get("api_url")
    if url is None:
        return False
    try:
        workers = Api(url).workers(pool)
    except PipelineError:
        return False
    ours = processes.running(place.worker_pid) is not None
    return any(ours if worker["name"] == place.worker_name else True for worker in workers)


def print_status() -> None:
    status = services_status()
    say("server", f"up at {status.ui_url}" if status.server_is_up else "down; start it: make up")
    if status.server_is_up:
        say("worker", f"up, pool {POOL}" if status.worker_is_up else f"down, so runs in pool {POOL} wait; start it: make up")
        say("runs", f"{status.active_runs} active")
    place = Place.from_environment()
    if processes.running(place.reports_pid) is not None:
        say("reports", f"at {place.state()['reports_url']}")


def main(arguments: list[str]) -> int:
    prepare_environment()
    verb, *rest = arguments or [""]
    try:
        verbs: dict[str, Callable[[], object]] = {"up": up, "down": down, "status": print_status}
        if verb not in verbs or rest:
            raise InputError("usage: python -m bessemer.services up | down | status")
        verbs[verb]()
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(said(error), file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
