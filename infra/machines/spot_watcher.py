"""Watches for the notice that this machine will end, and lets its flow checkpoint before.

There are two notices: AWS takes a spot machine back (in two minutes), or the group ends the machine (its lifecycle hook waits three). Then
the worker stops polling, its flows get SIGTERM, their runs become AwaitingRetry, the unit is stopped, and the group is told to go on.
All this takes at most 120 s; another machine resumes the runs. The watcher never ends a machine by itself.

    python -m infra.machines.spot_watcher --name NAME --stop "systemctl stop bessemer-worker"      with PREFECT_API_URL set
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from contract.errors import PipelineError
from infra.machines.instance_metadata import Metadata, MetadataDown
from services import background
from services.prefect_api import LIVE, Api

NOTICE_S = 120.0
STOP_S = 25.0  # reserved for stopping the unit, which waits 20 s for a worker that does not end


@dataclass(frozen=True)
class Notice:
    why: str
    seconds: float  # until the machine is gone


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.machines.spot_watcher", description="Lets the flow checkpoint before this machine is taken away."
    )
    parser.add_argument("--name", required=True, help="the worker's name")
    parser.add_argument("--stop", required=True, help="command that stops the worker's unit")
    parser.add_argument("--group", help="autoscaling group, told when we are done")
    parser.add_argument("--every", type=float, default=5, help="seconds between two checks; AWS advises 5")
    options = parser.parse_args()
    api = Api(os.environ["PREFECT_API_URL"])
    metadata = Metadata()
    notice = wait_for_notice(metadata, options.every)
    say(f"{notice.why}, {notice.seconds:.0f} s left")
    drain(api, options.name, notice.seconds, shlex.split(options.stop))
    if options.group:
        complete_lifecycle(options.group, metadata)
    return 0


def wait_for_notice(metadata: Metadata, every_s: float) -> Notice:
    """Wait for the notice. If the metadata service fails, ask again; say so once until it answers."""
    failing = False
    while True:
        try:
            notice = look(metadata)
            failing = False
            if notice:
                return notice
        except MetadataDown as error:
            if not failing:
                say(f"{error}; asking again")
            failing = True
        time.sleep(every_s)


def look(metadata: Metadata) -> Notice | None:
    action = metadata.document("spot/instance-action")
    if action and action.get("action") in ("terminate", "stop", "hibernate"):
        return Notice(f"spot notice ({action['action']} at {action.get('time')})", seconds_until(str(action.get("time"))))
    if metadata.get("autoscaling/target-lifecycle-state") == "Terminated":
        return Notice("the group ends this machine", NOTICE_S)
    return None


def seconds_until(moment: str) -> float:
    """The seconds until then, at most the two minutes that AWS promises. For a time in an unknown form: two minutes."""
    try:
        return min(NOTICE_S, (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return NOTICE_S


def drain(api: Api, name: str, seconds: float, stop: list[str]) -> None:
    """Stop polling, signal the flows, wait until the runs are handed back. Then stop the unit, whatever happened before."""
    end = time.monotonic() + seconds
    try:
        frozen = freeze(name)
        signalled = background.settle(name, max(5.0, seconds - STOP_S - 10))
        say(f"{signalled} flows stopped")
        left = handed_back(api, name, end - STOP_S)
        say(f"not handed back, the next worker of this name corrects it: {', '.join(left)}" if left else "no run is ours any more")
        for worker in frozen:  # SIGTERM first: it arrives before the worker can poll again
            background.send(worker, signal.SIGTERM)
            background.send(worker, signal.SIGCONT)
    finally:
        try:
            done = subprocess.run(stop, timeout=max(5.0, end - time.monotonic()), capture_output=True, text=True)
            say("worker stopped" if done.returncode == 0 else f"{shlex.join(stop)} ended with {done.returncode}: {done.stderr.strip()}")
        except (OSError, subprocess.TimeoutExpired) as error:
            say(f"{shlex.join(stop)}: {error}")


def freeze(name: str) -> list[psutil.Process]:
    """Hold Prefect's worker process by SIGSTOP: it stops polling, and does not kill its flows as it would on SIGTERM."""
    found = background.worker_processes(name)
    for process in found:
        background.send(process, signal.SIGSTOP)
    return found


def handed_back(api: Api, name: str, until: float) -> list[str]:
    """Wait until no run of this worker is live at the server; returns the names of those that still are."""
    while True:
        try:
            left = [run["name"] for run in api.runs(LIVE) if (run.get("labels") or {}).get("prefect.worker.name") == name]
        except PipelineError as error:
            left = [f"(the server does not answer: {error})"]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.5)


def complete_lifecycle(group: str, metadata: Metadata) -> None:
    """Tell the group to go on, which saves the rest of the hook's three minutes. If it fails, only they are lost."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        boto3.client("autoscaling").complete_lifecycle_action(
            LifecycleHookName="drain",
            AutoScalingGroupName=group,
            LifecycleActionResult="CONTINUE",
            InstanceId=metadata.get("instance-id") or "",
        )
    except (BotoCoreError, ClientError, MetadataDown) as error:
        say(f"the group was not told: {error}")


def say(sentence: str) -> None:
    print(f"spot: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
