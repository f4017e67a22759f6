"""`make status`: which of this clone's services run, and which server its commands talk to."""

from dataclasses import dataclass

from contract.errors import PipelineError
from services import background
from services.paths_and_ports import POOL, Clone, say, ui
from services.prefect_api import LIVE, Api


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
    clone = Clone.from_environment()
    url = clone.external or clone.state().get("api_url")
    if url is None or not (api := clone.api(url)).is_healthy():
        return Status(url, False, False, 0)
    return Status(url, True, worker_is_up(api_url=url), len(api.runs(LIVE)))


def running_api() -> Api:
    """The server of this clone, or the one that PREFECT_API_URL names; PipelineError when none answers."""
    clone = Clone.from_environment()
    url = clone.external or clone.state().get("api_url")
    if url is None or not (api := clone.api(url)).is_healthy():
        raise PipelineError("no Prefect server of this clone runs; start it: make up")
    return api


def worker_is_up(pool: str = POOL, api_url: str | None = None) -> bool:
    """Whether a run in this pool would be taken. A worker of ours is judged by its process, others by their last heartbeat."""
    clone = Clone.from_environment()
    url = api_url or clone.external or clone.state().get("api_url")
    if url is None:
        return False
    try:
        workers = clone.api(url).workers(pool)
    except PipelineError:
        return False
    ours = background.running(clone.worker_pid) is not None
    return any(ours if worker["name"] == clone.worker_name else True for worker in workers)


def print_status() -> None:
    status = services_status()
    say("server", f"up at {status.ui_url}" if status.server_is_up else "down; start it: make up")
    if status.server_is_up:
        say("worker", f"up, pool {POOL}" if status.worker_is_up else f"down, so runs in pool {POOL} wait; start it: make up")
        say("runs", f"{status.active_runs} active")
    clone = Clone.from_environment()
    if status.server_is_up and not clone.external:
        say("login", f"the UI asks for a password: the line in {clone.password_file}")
    if background.running(clone.reports_pid) is not None:
        say("reports", f"at {clone.state()['reports_url']}")
