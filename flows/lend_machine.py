"""The flow `join`: lends this machine to a training run over several machines (`run.nodes`), for as long as that run needs it.

The training run starts it in its own pool (flows/borrow_machines.py), so the machine starts, stays and ends like that of any run. People
do not start it.
"""

import hashlib
import hmac
import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any
from uuid import UUID

import prefect.runtime
import psutil
from prefect import flow, get_client
from prefect.client.schemas.objects import State

from contract.environment_variables import prepare_environment
from contract.errors import ConfigError, StageFailed
from engine.prefect_runner import ending_in_a_sentence
from engine.ranks import without_passwords
from flows.this_run import refuse_other_code
from services.background import die_with_parent, is_alive, send

log = logging.getLogger("bessemer")

POLL_S = 3.0
STORE_BYTES = 2**28  # it holds messages of 64 MB (engine/ranks_on_ray.py)
RELEASED = "released"
"""The training run gives this tag to a run of `join` when it no longer needs the machine."""


@flow(name="join")
def join(address: str, run: str, attempt: int) -> State | None:
    """Join the Ray cluster of a training run.

    Args:
        address: Where the head of its cluster listens.
        run: The id of the run that trains.
        attempt: Its run count; the next attempt asks for machines of its own.
    """
    return ending_in_a_sentence(lambda: lend(address, run, attempt))


def lend(address: str, run: str, attempt: int) -> None:
    refuse_other_code()
    prepare_environment()
    log.setLevel(logging.INFO)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", address, "--block", "--disable-usage-stats"]
    command += ["--object-store-memory", str(STORE_BYTES)]
    variables = without_passwords() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": shared_token(run)}
    node = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with_parent(signal.SIGTERM))
    signal.signal(signal.SIGTERM, lambda *_: checkpoint(node.pid))
    log.info(f"this machine is part of the Ray cluster at {address}")
    try:
        while node.poll() is None and is_wanted(run, attempt):
            time.sleep(POLL_S)
        if node.poll() is not None and is_wanted(run, attempt):
            raise StageFailed(
                f"this machine could not stay in the Ray cluster at {address}; Ray's own message is above. "
                "If the machines cannot reach each other, set span_machines = true."
            )
    finally:
        node.terminate()
        node.wait()
    log.info("given back")


def shared_token(run: str) -> str:
    """Ray's token of one training run, from the Prefect server's password: machines that know it can join, and nobody else."""
    secret = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_API_KEY")
    if not secret:
        raise ConfigError(
            "the machines of a run with several run.nodes know each other by the Prefect server's password, and this server has none. "
            "Start it with PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD and its workers with PREFECT_API_AUTH_STRING, "
            "or set run.ray_address to a Ray cluster of your own."
        )
    return hmac.new(secret.encode(), f"ray {run}".encode(), hashlib.sha256).hexdigest()


def checkpoint(node: int) -> None:
    """This machine is taken away: ask its ranks to stop. Then all ranks of the run checkpoint, and the run is resumed later."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for process in psutil.Process(node).children(recursive=True):
        if is_rank(process):
            send(process, signal.SIGTERM)


def is_rank(process: psutil.Process) -> bool:
    try:
        return is_alive(process) and "MASTER_PORT" in process.environ()
    except psutil.Error:
        return False


def is_wanted(run: str, attempt: int) -> bool:
    with get_client(sync_client=True) as client:
        waits: Any = client.read_flow_run(UUID(run))
        own = client.read_flow_run(UUID(str(prefect.runtime.flow_run.id)))
    return waits.state.is_running() and waits.run_count == attempt and RELEASED not in own.tags
