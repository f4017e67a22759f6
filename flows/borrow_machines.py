"""The other machines of a training run with several `run.nodes`: each takes a run of `join` in the pool that this run is in.

So that they come, are paid for and go like the machine of any run: the scaler counts them, no other run gets their GPUs, and a notice to
one of them lets the whole run checkpoint.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import prefect.runtime
from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from contract.errors import ConfigError, StageFailed
from flows.lend_machine import RELEASED
from flows.send_parts import PartSender, deployment_in

log = logging.getLogger("bessemer")


@dataclass
class BorrowedMachines:
    sender: PartSender
    """Passes a Cancel on to them."""

    @contextmanager
    def __call__(self, address: str, count: int) -> Iterator[Callable[[], None]]:
        """Asks for `count` machines that join Ray's head at `address`, and gives them back; a look at them raises where one has ended."""
        with get_client(sync_client=True) as client:
            own = client.read_flow_run(UUID(str(prefect.runtime.flow_run.id)))
            if own.work_pool_name is None:
                raise ConfigError("run.nodes asks for machines of the run's pool, and this run is in none: start it as a deployment")
            name = f"join/{deployment_in(client, 'join', own.work_pool_name).name}"
            parameters = {"address": address, "run": str(own.id), "attempt": own.run_count}
            joined = []
            for _ in range(count):
                found = run_deployment(name, parameters=parameters, timeout=0, work_queue_name=own.work_queue_name)
                assert isinstance(found, FlowRun)
                joined.append(found.id)
                self.sender.waited_for.append(found.id)
        log.info(f"{count} more machines of the pool {own.work_pool_name} are asked for, to join {address}")
        try:
            yield lambda: _refuse_ended(joined)
        finally:
            with get_client(sync_client=True) as client:
                for each in joined:
                    self.sender.waited_for.remove(each)
                    client.update_flow_run(each, tags=[*client.read_flow_run(each).tags, RELEASED])


def _refuse_ended(joined: list[UUID]) -> None:
    with get_client(sync_client=True) as client:
        for each in joined:
            run = client.read_flow_run(each)
            if run.state is not None and run.state.is_final():
                raise StageFailed(f"{run.name}, which should lend its machine, ended {run.state.name}: {run.state.message}")
