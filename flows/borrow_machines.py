"""Gets the other machines of a training run with several `run.nodes`: for each it starts a run of `join` in this run's pool.

So they start, cost and end like the machine of any run: the scaler counts them, no other run gets their GPUs, and a notice to one of them
lets the whole run checkpoint. The flow `join` is in flows/lend_machine.py.
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

from contract.errors import ConfigError, StageFailed, TransientError
from flows.lend_machine import RELEASED
from flows.send_parts import PartSender, deployment_in
from services.take_up import BORROWED

log = logging.getLogger("bessemer")


@dataclass
class BorrowedMachines:
    sender: PartSender
    """It passes a Cancel on to the machines' runs."""

    @contextmanager
    def __call__(self, address: str, count: int) -> Iterator[Callable[[], None]]:
        """Ask for `count` machines that join Ray's head at `address`, and give them back. Yields a call that raises if one has ended."""
        with get_client(sync_client=True) as client:
            own = client.read_flow_run(UUID(str(prefect.runtime.flow_run.id)))
            if own.work_pool_name is None:
                raise ConfigError("run.nodes asks for machines of the run's pool, and this run is in none: start it as a deployment")
            name = f"join/{deployment_in(client, 'join', own.work_pool_name).name}"
            parameters = {"address": address, "run": str(own.id), "attempt": own.run_count}
            joined = []
            for number in range(1, count + 1):
                title = f"join {number} of {count} for {own.name}"
                found = run_deployment(
                    name, flow_run_name=title, parameters=parameters, timeout=0, work_queue_name=own.work_queue_name, tags=[BORROWED]
                )
                assert isinstance(found, FlowRun)
                joined.append(found.id)
                self.sender.waited_for.append(found.id)
        log.info(f"asked for {count} more machines of the pool {own.work_pool_name}, to join {address}")
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
            if run.state is not None and run.state.is_crashed():
                raise TransientError(f"{run.name}: the machine that it lent has vanished ({run.state.message})")
            if run.state is not None and run.state.is_final():
                raise StageFailed(f"{run.name}, which should lend its machine, ended {run.state.name}: {run.state.message}")
