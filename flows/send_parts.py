"""Sends parts of `pretrain/full` to pools of their own, as `run_on` says: `curate/full` to a CPU machine, then training to GPUs.

A part is a run of its own deployment, one for each part and parent run: a Retry of the parent finds the same child. The child publishes
artifacts, and the parent goes on with them as Cached.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import prefect.runtime
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.states import AwaitingRetry, Cancelling

from bessemer.config import Config
from contract.errors import ConfigError, StageFailed
from flows.this_run import name_of
from services.background import worker_processes
from services.prefect_api import Api
from services.take_up import most_times, will_go_on

log = logging.getLogger("bessemer")

POLL_S = 2.0
UNTAKEN_S = 60.0
"""After this wait for a worker the log says so, then after ten times as long: a GPU machine takes minutes to start."""


@dataclass
class PartSender:
    parameters: dict[str, Any]
    """Of the run itself: what a part is given too."""
    config: Config
    waited_for: list[UUID] = field(default_factory=list)

    def refuse_what_is_local(self) -> None:
        """Raise ConfigError, before anything runs, for a file:// root or steps from calibrate, if a part may run on another machine."""
        root = self.config.store().uri
        with get_client(sync_client=True) as client:
            for part, pool in self.config.run_on.pools().items():
                online = _workers(client, pool)
                far = [name for name in online if not worker_processes(name)]
                if online and not far:
                    continue
                where = f"has workers on other machines ({', '.join(far)})" if far else "may get its workers on other machines"
                goes = f"run_on sends {part} to the pool {pool}, which {where}"
                if root.startswith("file:"):
                    raise ConfigError(
                        f"{goes}, and storage.root is {root}, which other machines do not have. "
                        "Set storage.root to s3://BUCKET/PREFIX, or leave run_on out."
                    )
                if self.config.has_steps_to_fit() and part != "curate":
                    raise ConfigError(
                        f"{goes}, and calibrate would fit the steps to the speed there, which this machine cannot measure. "
                        "Set train.max_steps and those of align, or leave run_on out."
                    )

    def for_part(self, part: str) -> Callable[[], None] | None:
        place = self.config.run_on.pool(part)
        return None if place is None else lambda: self._send(part, place)

    def _send(self, part: str, place: str) -> None:
        """Run the part in its pool and wait for its end. Raises StageFailed unless it completes."""
        pool, _, queue = place.partition("/")
        parameters = self.parameters | {"overrides": self.parameters["overrides"] | {"storage.root": self.config.store().uri}}
        with get_client(sync_client=True) as client:
            deployment = deployment_in(client, part, pool)
            name = f"{part}/{deployment.name}"
            key = f"{prefect.runtime.flow_run.id}-{part}"
            found = run_deployment(
                name,
                flow_run_name=name_of(part, parameters),
                parameters=parameters,
                idempotency_key=key,
                timeout=0,
                work_queue_name=queue or None,
            )
            assert isinstance(found, FlowRun)
            child = client.read_flow_run(found.id)  # an earlier attempt of this run may have made it
            if child.state is not None and child.state.is_final():
                client.set_flow_run_state(child.id, AwaitingRetry(message="Retried by the run that waits for it"), force=True)
            log.info(f"{part} goes to the pool {place} as {name} ({child.name})")
            self.waited_for.append(child.id)
            child = _wait(client, child, f"{name} ({child.name})", pool)
            self.waited_for.remove(child.id)
        state = child.state
        assert state is not None
        if not state.is_completed():
            message = (state.message or "it says no more").removeprefix("Flow run encountered an exception: ")
            raise StageFailed(f"{name} ({child.name}) ended {state.name}: {message} Retry of this run goes on with it.")

    def cancel(self) -> None:
        """Pass a Cancel on. The server would do so too, but half a minute later, and a GPU would work until then."""
        with get_client(sync_client=True) as client:
            for child in self.waited_for:
                client.set_flow_run_state(child, Cancelling(message="The run that waited for it was cancelled"))


def _workers(client: SyncPrefectClient, place: str) -> list[str]:
    pool = place.partition("/")[0]
    if all(known.name != pool for known in client.read_work_pools()):
        raise ConfigError(f"run_on names the pool {pool}, which this server does not have; name one of prefect.yaml's, or add it there")
    return sorted(worker.name for worker in client.read_workers_for_work_pool(pool) if worker.status == "ONLINE")


def deployment_in(client: SyncPrefectClient, part: str, pool: str) -> DeploymentResponse:
    """The part's deployment in the pool: `full` if there are several."""
    found = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[part])))
    there = sorted((each for each in found if each.work_pool_name == pool), key=lambda each: (each.name != "full", each.name))
    if not there:
        known = ", ".join(sorted(f"{part}/{each.name} in {each.work_pool_name}" for each in found)) or "none"
        raise ConfigError(f"run_on sends {part} to the pool {pool}, where it has no deployment (it has {known}); add one to prefect.yaml")
    return there[0]


def _wait(client: SyncPrefectClient, child: FlowRun, name: str, pool: str) -> FlowRun:
    since, patience = time.monotonic(), UNTAKEN_S
    while True:
        child = client.read_flow_run(child.id)
        if child.state is None or not child.state.is_scheduled():
            since, patience = time.monotonic(), UNTAKEN_S
        elif time.monotonic() - since > patience:
            online = _workers(client, pool)
            log.warning(f"{name} waits for a worker of the pool {pool}; online: {', '.join(online) or 'none'}")
            patience *= 10
        if child.state is not None and child.state.is_final() and not _goes_on(client, child):
            return child
        time.sleep(POLL_S)


def _goes_on(client: SyncPrefectClient, child: FlowRun) -> bool:
    """Whether it crashed and is to be taken up again, as is this run when its own machine vanishes."""
    assert child.state is not None
    return child.state.is_crashed() and will_go_on(Api(str(client.api_url)), str(child.id), most_times())
