"""A Prefect process worker that lets its flows checkpoint when it is stopped.

Prefect's own worker answers SIGTERM by killing its flows: their handlers never run and the runs stay `Running` for ever. This process
starts one. On SIGTERM or SIGINT it signals the flows first, waits until they are gone (they set AwaitingRetry), and then ends the worker.
At its start it ends what an earlier worker of the same name left behind, and while it works it takes up runs that crashed, whoever had
them (services/take_up.py). For systemd: KillMode=mixed.

    python deployments/worker.py --pool cpu --name NAME        with PREFECT_API_URL set
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from contract.environment_variables import prepare_environment
from contract.errors import InputError, PipelineError
from contract.own_folders import temporary_folder
from services import automations, background
from services.prefect_api import Api
from services.take_up import keep_taking_up, most_times


def main() -> int:
    parser = argparse.ArgumentParser(description="A Prefect process worker that lets its flows checkpoint when it is stopped.")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--name", required=True, help="unique among the workers of the server, the same after a restart")
    parser.add_argument("--queues", default="", help="queues of the pool to take runs from, with commas; all when not given")
    parser.add_argument("--limit", type=int, help="the most runs at once; a machine with GPUs needs 1")
    parser.add_argument("--grace", type=float, default=90, help="seconds that flows have to checkpoint on SIGTERM")
    parser.add_argument("--alone", action="store_true", help="no other worker uses this server: runs without a worker's name are ours too")
    options = parser.parse_args()
    os.environ.setdefault("BESSEMER_HOME", str(Path(__file__).resolve().parents[1]))  # the clone whose flows run: prefect.yaml, `pull`
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "bessemer")  # the run's log then has the lines of its stages
    try:
        prepare_environment()
        queues = [queue for queue in options.queues.split(",") if queue]
        return work(options.pool, options.name, options.grace, options.alone, queues, options.limit)
    except PipelineError as error:
        print(f"worker: {error}", file=sys.stderr)
        return error.exit_code


def work(pool: str, name: str, grace_s: float, alone: bool, queues: list[str], limit: int | None) -> int:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise InputError("PREFECT_API_URL is not set: the address of the Prefect server, such as http://127.0.0.1:4200/api")
    api = Api(url)
    most = most_times()
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stop.append(received))
    take_over(api, name, alone)
    watch_over(api)
    worker = start(pool, name, queues, limit)
    threading.Thread(target=keep_taking_up, args=(api, most), daemon=True).start()
    # Not worker.wait(): a second wait from inside a signal handler would block on the same lock.
    while not stop and worker.poll() is None:
        time.sleep(0.2)
    if worker.poll() is not None:
        print(f"worker: `prefect worker start` ended by itself with {worker.returncode}", file=sys.stderr)
    else:
        signalled = background.settle(name, grace_s)
        print(f"worker: {signalled} flows stopped, ending the worker", flush=True)
        end(worker)
    if api.is_healthy():
        for run in api.reconcile(name, alive=live_runs(name), alone=alone):
            print(f"worker: {run} did not say where it stopped: Crashed", flush=True)
    return 0 if stop else 1


def take_over(api: Api, name: str, alone: bool) -> None:
    """End the flows of a killed worker of this name, then correct their runs: nobody adopts them, and a Cancel does not reach them."""
    if orphans := background.settle(name, grace_s=20):
        print(f"worker: stopped {orphans} flows of an earlier worker", flush=True)
    for run in api.reconcile(name, alive=set(), alone=alone):
        print(f"worker: {run} had no process any more: Crashed", flush=True)


def watch_over(api: Api) -> None:
    """Have the server end the runs of a machine that vanishes, by their missing heartbeat: they would stay `Running`."""
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(automations.HEARTBEAT_S))
    try:
        automations.end_silent_runs(api)
    except PipelineError as error:  # a server that has no automations, or does not let us: everything else works
        print(f"worker: runs whose machine vanishes will stay Running until it comes back: {error}", file=sys.stderr)


def start(pool: str, name: str, queues: list[str], limit: int | None) -> subprocess.Popen[bytes]:
    command = background.prefect("worker", "start", "--pool", pool, "--type", "process", "--name", name)
    command += [part for queue in queues for part in ("--work-queue", queue)] + (["--limit", str(limit)] if limit else [])
    # If we are killed, the worker dies too: it would take runs beside the worker of our successor.
    # Prefect's runner has a folder of a fixed name in TMPDIR. Where another user has one, it could not start.
    variables = os.environ | {"TMPDIR": str(temporary_folder())}
    return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=background.die_with_parent)


def end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(20)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def live_runs(name: str) -> set[str]:
    return {process.environ()["PREFECT__FLOW_RUN_ID"] for process in background.flow_processes(name)}


if __name__ == "__main__":
    sys.exit(main())
