"""`make down`: lets the active runs checkpoint, stops worker, reports and server, and selects the former profile again."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from contract.errors import InputError
from services import background, profiles
from services.paths_and_ports import Clone, one_at_a_time, say
from services.prefect_api import Api
from services.up import SETTLE_S


def down() -> None:
    """Pause the pools, let the flows report where they stopped, stop worker, reports and server, and restore the profile.

    The order matters: the worker would kill its flows at once, and a flow cannot report to a server that is gone.
    """
    clone = Clone.from_environment()
    with one_at_a_time(clone):
        state = clone.state()
        api = clone.api(state["api_url"]) if state.get("api_url") else None
        alone = api is not None and not state.get("external") and api.lets_us_in()
        with paused(api) if api and alone else contextlib.nullcontext():
            stop_worker(clone, api if alone or (api and api.lets_us_in()) else None, bool(alone))
        if (reports := background.running(clone.reports_pid)) is not None:
            background.stop(reports, 5)
        server = background.running(clone.server_pid)
        if server is not None:
            background.stop(server, 15)
            say("server", "stopped")
        restore_profiles(clone)
        forget(clone)
        if server is None and not state:
            say("server", "nothing runs")


def restore_profiles(clone: Clone) -> None:
    """Take the profile and its password out of every Prefect home; one file that cannot be read keeps none of the others."""
    selected = clone.selected_profiles()
    for file, former in selected.items():
        where = f" in {file}" if len(selected) > 1 else ""
        try:
            active = profiles.restore(Path(file), former)
            say("profile", f"{active or 'Prefect’s default'} is selected again{where}")
        except (InputError, OSError) as error:
            say("profile", f"{profiles.NAME} stays in {file}, with the server's password ({error}): remove it there")


@contextlib.contextmanager
def paused(api: Api) -> Iterator[None]:
    """Pause the pools, so that no worker resumes a run that was just asked to stop."""
    pools = [pool["name"] for pool in api.pools() if not pool["is_paused"]]
    for pool in pools:
        api.pause(pool, True)
    try:
        yield
    finally:
        for pool in pools:
            api.pause(pool, False)


def stop_worker(clone: Clone, api: Api | None, alone: bool) -> None:
    worker = background.running(clone.worker_pid)
    flows = len(background.flow_processes(clone.worker_name))
    if worker is not None:
        if flows:
            say("runs", f"{flows} active: stopping, at most {SETTLE_S} s")
        background.stop(worker, SETTLE_S + 30)
        say("worker", "stopped")
    background.settle(clone.worker_name, grace_s=15)  # flows of a worker that was killed before
    if api is not None:
        for name in api.reconcile(clone.worker_name, alive=set(), alone=alone):
            say("runs", f"{name} is Crashed: its process did not say where it stopped; the next worker takes it up again")


def forget(clone: Clone) -> None:
    for path in (clone.server_pid, clone.worker_pid, clone.reports_pid, clone.folder / "state.json"):
        path.unlink(missing_ok=True)
