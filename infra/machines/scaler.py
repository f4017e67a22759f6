"""Sizes the two GPU groups from the depth of the Prefect queues, and ends machines that have nothing to do.

Every 20 s it reads how many runs wait or run in the pool's queues, which machines there are, and which worker has a run. It raises a group
by its desired capacity, and lowers it only by ending idle machines, by id. What spot does not deliver in N minutes moves to on-demand.

It ends no busy machine. Before it ends one, it pauses the pool's queues, so that no worker is handed a run, and reads everything again.
A live run without a worker's name may be on any machine, so then it ends none. The only exception is the budget: with its stop policy on
our role, both groups get a maximum of 0 and every machine ends, after its flow has checkpointed (spot_watcher.py and the groups'
lifecycle hook).

    python -m infra.machines.scaler --pool gpu --region us-east-1 --spot GROUP --on-demand GROUP      with PREFECT_API_URL set
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from contract.errors import PipelineError
from services.prefect_api import LIVE, Api
from services.take_up import most_times, take_up

QUEUES = ("spot", "on-demand")


@dataclass(frozen=True)
class Settings:
    most: dict[str, int]
    fallback_s: float = 900
    idle_s: float = 600
    boot_s: float = 1800  # packages of 3 GB and their set-up; a machine without a worker after that is broken
    retry_spot_s: float = 3600


@dataclass(frozen=True)
class Group:
    desired: int
    machines: tuple[str, ...]  # pending or in service, not terminating


@dataclass(frozen=True)
class Demand:
    queues: dict[str, int]
    """Runs that wait for a machine or have one, by queue."""
    busy: frozenset[str] = frozenset()
    online: frozenset[str] = frozenset()
    unclear: int = 0
    """Live runs without a worker's name: some machine has each of them."""


@dataclass(frozen=True)
class Memory:
    """What a round hands to the next. It is lost with the process; then the minutes are counted anew, which costs money but no run."""

    seen: dict[str, float] = field(default_factory=dict)
    active: dict[str, float] = field(default_factory=dict)
    unfilled_since: float | None = None
    shifted: int = 0
    shifted_at: float = 0


@dataclass(frozen=True)
class Decision:
    desired: dict[str, int]
    leave: dict[str, tuple[str, ...]]
    memory: Memory


def decide(now: float, demand: Demand, groups: dict[str, Group], memory: Memory, settings: Settings) -> Decision:
    """Decide what to do. It is a pure function, so that a test runs through hours in a millisecond."""
    spot, on_demand, most = groups["spot"], groups["on-demand"], settings.most
    there = {*spot.machines, *on_demand.machines}
    seen = {machine: memory.seen.get(machine, now) for machine in there}
    active = {machine: now if machine in demand.busy else memory.active.get(machine, now) for machine in there}

    # Runs of the queue spot that on-demand machines serve: those shifted, or those that an idle one has taken by itself.
    taken = max(0, len(demand.busy & set(on_demand.machines)) - demand.queues["on-demand"])
    shifted = min(memory.shifted, demand.queues["spot"])
    if shifted and now - memory.shifted_at > settings.retry_spot_s:
        shifted = min(shifted, taken)
    if most["spot"] == 0:
        shifted = demand.queues["spot"]
    wanted_spot = min(most["spot"], max(0, demand.queues["spot"] - max(shifted, taken)))

    unfilled = max(0, wanted_spot - len(spot.machines))
    since = None if unfilled == 0 else memory.unfilled_since if memory.unfilled_since is not None else now
    shifted_at = memory.shifted_at
    if since is not None and now - since >= settings.fallback_s:
        more = min(unfilled, max(0, most["on-demand"] - demand.queues["on-demand"] - shifted))
        if more:
            shifted, wanted_spot, shifted_at, since = shifted + more, wanted_spot - more, now, None
    wanted = {"spot": wanted_spot, "on-demand": min(most["on-demand"], demand.queues["on-demand"] + shifted)}

    desired, leave = {}, {}
    for market, group in groups.items():
        gone = to_leave(now, group, len(group.machines) - wanted[market], demand, seen, active, settings)
        # Never below the number that there is: we choose which machine ends, not the group.
        leave[market], desired[market] = gone, max(len(group.machines), wanted[market])
    return Decision(desired, leave, Memory(seen, active, since, shifted, shifted_at))


def to_leave(
    now: float, group: Group, surplus: int, demand: Demand, seen: dict[str, float], active: dict[str, float], settings: Settings
) -> tuple[str, ...]:
    if demand.unclear:
        return ()
    free = [machine for machine in group.machines if machine not in demand.busy]
    broken = [machine for machine in free if machine not in demand.online and now - seen[machine] > settings.boot_s]
    idle = [machine for machine in free if machine in demand.online and now - active[machine] >= settings.idle_s]
    # Machines that are still starting end first: they would be idle once they are up.
    starting = [machine for machine in free if machine not in demand.online and now - active[machine] >= settings.idle_s]
    spare = [machine for machine in (*starting, *sorted(idle, key=lambda machine: (active[machine], machine))) if machine not in broken]
    return (*broken, *spare[: max(0, surplus - len(broken))])


# ---------------------------------------------------------------- the pool


class Pool:
    """The queues of one work pool, and which machines have runs. A worker's name is POOL-INSTANCE-ID."""

    def __init__(self, api: Api, name: str, marker: Path) -> None:
        self.api, self.name, self.marker = api, name, marker

    def demand(self) -> Demand:
        ours = {"work_pools": {"name": {"any_": [self.name]}}}
        live = [run for run in self.api.runs(LIVE) if run.get("work_pool_name") == self.name]
        names = [(run.get("labels") or {}).get("prefect.worker.name") for run in live]
        return Demand(
            queues={queue: self._depth(queue, ours) for queue in QUEUES},
            busy=frozenset(self._machine(name) for name in names if name),
            online=frozenset(self._machine(worker["name"]) for worker in self.api.workers(self.name)),
            unclear=sum(name is None for name in names),
        )

    def _depth(self, queue: str, ours: dict[str, Any]) -> int:
        """Scheduled runs count when their time has come: one that waits for tomorrow needs no machine today."""
        total = 0
        for state in (
            {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": {"before_": datetime.now(UTC).isoformat()}},
            {"state": {"type": {"any_": LIVE}}},
        ):
            body = {**ours, "work_pool_queues": {"name": {"any_": [queue]}}, "flow_runs": state}
            total += int(self.api.call("POST", "/flow_runs/count", body) or 0)
        return total

    def _machine(self, worker: str) -> str:
        return worker.removeprefix(f"{self.name}-")

    def hold(self) -> None:
        """Pause the queues that are not paused. If this process dies, the marker tells the next one which they are."""
        found = self.api.call("POST", f"/work_pools/{quote(self.name)}/queues/filter", {}) or []
        held = [queue["name"] for queue in found if queue["name"] in QUEUES and not queue["is_paused"]]
        self.marker.parent.mkdir(parents=True, exist_ok=True)
        self.marker.write_text(json.dumps(held))
        for queue in held:
            self._pause(queue, True)

    def release(self) -> None:
        if not self.marker.exists():
            return
        for queue in json.loads(self.marker.read_text() or "[]"):
            self._pause(queue, False)
        self.marker.unlink()

    def _pause(self, queue: str, paused: bool) -> None:
        self.api.call("PATCH", f"/work_pools/{quote(self.name)}/queues/{quote(queue)}", {"is_paused": paused})


# ---------------------------------------------------------------- the groups


class Groups:
    def __init__(self, region: str, names: dict[str, str], role: str | None, stop_policy: str | None) -> None:
        self.names, self.role, self.stop_policy = names, role, stop_policy
        self.autoscaling = boto3.client("autoscaling", region_name=region)
        self.iam = boto3.client("iam", region_name=region)

    def read(self) -> tuple[dict[str, Group], dict[str, int]]:
        found = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=list(self.names.values()))["AutoScalingGroups"]
        by_name = {group["AutoScalingGroupName"]: group for group in found}
        if missing := [name for name in self.names.values() if name not in by_name]:
            raise PipelineError(
                f"no autoscaling group {', '.join(missing)} in {self.autoscaling.meta.region_name}; see the outputs of Terraform"
            )
        groups = {market: group_of(by_name[name]) for market, name in self.names.items()}
        return groups, {market: by_name[name]["MaxSize"] for market, name in self.names.items()}

    def raise_to(self, market: str, desired: int) -> None:
        self.autoscaling.set_desired_capacity(AutoScalingGroupName=self.names[market], DesiredCapacity=desired, HonorCooldown=False)

    def end(self, machine: str, decrement: bool = True) -> None:
        self.autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=machine, ShouldDecrementDesiredCapacity=decrement)

    def is_over_budget(self) -> bool:
        if not (self.role and self.stop_policy):
            return False
        pages = self.iam.get_paginator("list_attached_role_policies").paginate(RoleName=self.role)
        return any(policy["PolicyArn"] == self.stop_policy for page in pages for policy in page["AttachedPolicies"])

    def stop(self, groups: dict[str, Group]) -> list[str]:
        """Set the maximum to 0 first, so that no machine replaces one that ends. `terraform apply` restores it."""
        for name in self.names.values():
            self.autoscaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, MaxSize=0, DesiredCapacity=0)
        machines = [machine for group in groups.values() for machine in group.machines]
        for machine in machines:
            self.end(machine, decrement=False)
        return machines


def group_of(found: dict[str, Any]) -> Group:
    there = [each["InstanceId"] for each in found["Instances"] if not each["LifecycleState"].startswith(("Terminat", "Detach"))]
    return Group(found["DesiredCapacity"], tuple(sorted(there)))


# ---------------------------------------------------------------- rounds


class Scaler:
    def __init__(self, pool: Pool, groups: Groups, settings: Settings, settle_s: float) -> None:
        self.pool, self.groups, self.settings, self.settle_s = pool, groups, settings, settle_s
        self.memory = Memory()
        self.stopped = False

    def round(self, now: float) -> list[str]:
        """Read everything once and act on it; the lines say what was done."""
        self.pool.release()  # of a process that died between pause and release
        groups, most = self.groups.read()
        if self.groups.is_over_budget():
            return self._stop(groups, most)
        self.stopped = False
        settings = replace(self.settings, most=most)
        demand = self.pool.demand()
        decision = decide(now, demand, groups, self.memory, settings)
        lines: list[str] = []
        if any(decision.leave.values()):
            decision, lines = self._shrink(now, settings)
            groups = self.groups.read()[0]
        if decision.memory.shifted > self.memory.shifted and settings.most["spot"]:
            more = decision.memory.shifted - self.memory.shifted
            lines.append(f"spot did not deliver in {settings.fallback_s / 60:.0f} min: {more} more on demand")
        for market, desired in decision.desired.items():
            wanted = max(len(groups[market].machines), desired - len(decision.leave[market]))
            if wanted != groups[market].desired:
                self.groups.raise_to(market, wanted)
                lines.append(f"{market} {groups[market].desired} -> {wanted} (runs: {demand.queues})")
        self.memory = decision.memory
        return lines

    def _shrink(self, now: float, settings: Settings) -> tuple[Decision, list[str]]:
        """Pause the queues, so that no worker is handed a run, look again, and end the machines that are still idle."""
        lines: list[str] = []
        self.pool.hold()
        try:
            time.sleep(self.settle_s)  # what was handed out before the pause is Pending by then
            decision = decide(now, self.pool.demand(), self.groups.read()[0], self.memory, settings)
            for market, machines in decision.leave.items():
                for machine in machines:
                    self.groups.end(machine)
                    lines.append(f"{market} {machine} ended: idle, or without a worker")
        finally:
            self.pool.release()
        return decision, lines

    def _stop(self, groups: dict[str, Group], most: dict[str, int]) -> list[str]:
        if self.stopped and not any(most.values()) and not any(group.machines for group in groups.values()):
            return []
        machines = self.groups.stop(groups)
        self.stopped = True
        return [f"over budget: both groups have a maximum of 0, {len(machines)} machines end; runs wait as AwaitingRetry"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.machines.scaler", description="Sizes the GPU groups from the depth of the Prefect queues."
    )
    parser.add_argument("--pool", default="gpu")
    parser.add_argument("--region", required=True)
    parser.add_argument("--spot", required=True, help="name of the autoscaling group of spot machines")
    parser.add_argument("--on-demand", required=True, help="name of the autoscaling group of on-demand machines")
    parser.add_argument("--fallback-minutes", type=float, default=15)
    parser.add_argument("--idle-minutes", type=float, default=10)
    parser.add_argument("--role", help="name of the scaler's role")
    parser.add_argument("--stop-policy", help="ARN of the policy that the budget attaches to the role")
    parser.add_argument("--every", type=float, default=20, help="seconds between two rounds")
    parser.add_argument("--settle", type=float, default=5, help="seconds between the pause of the queues and the second look")
    parser.add_argument("--marker", type=Path, default=Path("/var/lib/bessemer/paused-by-scaler.json"))
    options = parser.parse_args()
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        print("scaler: PREFECT_API_URL is not set", file=sys.stderr)
        return 2
    settings = Settings(most={}, fallback_s=options.fallback_minutes * 60, idle_s=options.idle_minutes * 60)
    groups = Groups(options.region, {"spot": options.spot, "on-demand": options.on_demand}, options.role, options.stop_policy)
    api = Api(url)
    scaler = Scaler(Pool(api, options.pool, options.marker), groups, settings, options.settle)
    while True:
        try:
            # First the runs of machines that vanished: they need a machine again, when no worker may be there to say so.
            for line in [*take_up(api, most_times()), *scaler.round(time.monotonic())]:
                print(f"scaler: {line}", flush=True)
        except (PipelineError, BotoCoreError, ClientError) as error:
            print(f"scaler: {type(error).__name__}: {error}; asking again in {options.every:.0f} s", file=sys.stderr, flush=True)
        time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
