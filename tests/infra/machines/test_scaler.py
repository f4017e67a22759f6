"""The size of the GPU groups: the rule by itself, and the whole of it on a real Prefect server and an autoscaling API over HTTP."""

import json
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.machines.scaler import Demand, Group, Groups, Memory, Pool, Scaler, Settings, decide
from tests.infra.machines.worlds import Server

SETTINGS = Settings(most={"spot": 4, "on-demand": 2}, fallback_s=900, idle_s=600, boot_s=1800, retry_spot_s=3600)
NOBODY = {"spot": Group(0, ()), "on-demand": Group(0, ())}


def machines(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"i-{prefix}{number}" for number in range(count))


# ---------------------------------------------------------------- the rule


@given(
    spot=st.integers(0, 9),
    on_demand=st.integers(0, 9),
    there=st.tuples(st.integers(0, 4), st.integers(0, 2)),
    busy=st.integers(0, 63),
    online=st.integers(0, 63),
    unclear=st.integers(0, 1),
    age=st.floats(0, 10_000),
    shifted=st.integers(0, 6),
    unfilled=st.one_of(st.none(), st.floats(0, 10_000)),
)
def test_no_busy_machine_ends_and_no_group_outgrows_its_maximum(spot, on_demand, there, busy, online, unclear, age, shifted, unfilled):
    groups = {"spot": Group(there[0], machines("s", there[0])), "on-demand": Group(there[1], machines("o", there[1]))}
    every = [*groups["spot"].machines, *groups["on-demand"].machines]
    demand = Demand(
        {"spot": spot, "on-demand": on_demand},
        busy=frozenset(each for number, each in enumerate(every) if busy >> number & 1),
        online=frozenset(each for number, each in enumerate(every) if online >> number & 1),
        unclear=unclear,
    )
    memory = Memory(dict.fromkeys(every, 0.0), dict.fromkeys(every, 0.0), unfilled, shifted, 0.0)
    decision = decide(age, demand, groups, memory, SETTINGS)
    for market, group in groups.items():
        assert not set(decision.leave[market]) & demand.busy
        assert not (unclear and decision.leave[market]), "the run without a name may be on any of them"
        assert set(decision.leave[market]) <= set(group.machines)
        assert len(group.machines) <= decision.desired[market] <= SETTINGS.most[market]


def test_what_spot_does_not_deliver_in_time_moves_to_on_demand_and_comes_back():
    demand = Demand({"spot": 2, "on-demand": 0})
    first = decide(0, demand, NOBODY, Memory(), SETTINGS)
    assert first.desired == {"spot": 2, "on-demand": 0}
    early = decide(899, demand, NOBODY, first.memory, SETTINGS)
    assert early.desired == {"spot": 2, "on-demand": 0}
    late = decide(900, demand, NOBODY, early.memory, SETTINGS)
    assert late.desired == {"spot": 0, "on-demand": 2}, "spot is given up, or both would come"
    served = {"spot": Group(0, ()), "on-demand": Group(2, ("i-o0", "i-o1"))}
    busy = Demand({"spot": 3, "on-demand": 0}, busy=frozenset({"i-o0", "i-o1"}), online=frozenset({"i-o0", "i-o1"}))
    then = decide(1000, busy, served, late.memory, SETTINGS)
    assert then.desired == {"spot": 1, "on-demand": 2}, "a third run asks spot again"
    done = decide(2000, Demand({"spot": 0, "on-demand": 0}, online=busy.online), served, then.memory, SETTINGS)
    assert done.memory.shifted == 0


def test_a_machine_that_came_late_counts_as_delivered():
    demand = Demand({"spot": 1, "on-demand": 0})
    waiting = decide(0, demand, NOBODY, Memory(), SETTINGS).memory
    there = {"spot": Group(1, ("i-s0",)), "on-demand": Group(0, ())}
    assert decide(901, demand, there, waiting, SETTINGS).desired == {"spot": 1, "on-demand": 0}


def test_without_spot_at_all_its_queue_is_served_on_demand_at_once():
    settings = Settings(most={"spot": 0, "on-demand": 2})
    assert decide(0, Demand({"spot": 1, "on-demand": 1}), NOBODY, Memory(), settings).desired == {"spot": 0, "on-demand": 2}


def test_a_machine_whose_worker_never_came_is_ended_although_runs_wait():
    groups = {"spot": Group(1, ("i-s0",)), "on-demand": Group(0, ())}
    demand = Demand({"spot": 3, "on-demand": 0})
    first = decide(0, demand, groups, Memory(), SETTINGS)
    assert decide(1800, demand, groups, first.memory, SETTINGS).leave["spot"] == ()
    assert decide(1801, demand, groups, first.memory, SETTINGS).leave["spot"] == ("i-s0",)


# ---------------------------------------------------------------- the whole


class World:
    """A pool with queues at the Prefect server, two groups at the autoscaling API, and the scaler between them."""

    def __init__(self, server: Server, marker: Path) -> None:
        self.server = server
        self.name, self.deployments = server.pool()
        self.autoscaling = boto3.client("autoscaling", region_name="us-east-1")
        mark = secrets.token_hex(3)
        self.groups = {market: f"{market}-{mark}" for market in ("spot", "on-demand")}
        self.autoscaling.create_launch_configuration(LaunchConfigurationName=mark, ImageId="ami-12c6146b", InstanceType="g4dn.xlarge")
        for group, most in zip(self.groups.values(), (4, 2), strict=True):
            self.autoscaling.create_auto_scaling_group(
                AutoScalingGroupName=group, LaunchConfigurationName=mark, MinSize=0, MaxSize=most, DesiredCapacity=0,
                AvailabilityZones=["us-east-1a"], NewInstancesProtectedFromScaleIn=True,
            )  # fmt: skip
        self.role, self.policy = f"scaler-{mark}", ""
        self.scaler = Scaler(
            Pool(server.api, self.name, marker), Groups("us-east-1", self.groups, None, None), Settings(most={}, idle_s=600), settle_s=0.2
        )

    def machines(self, market: str = "spot") -> list[str]:
        return list(self.scaler.groups.read()[0][market].machines)

    def limits(self) -> dict[str, tuple[int, int]]:
        found = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=list(self.groups.values()))["AutoScalingGroups"]
        return {group["AutoScalingGroupName"]: (group["DesiredCapacity"], group["MaxSize"]) for group in found}

    def worker(self, machine: str) -> str:
        name = f"{self.name}-{machine}"
        self.server.heartbeat(self.name, name)
        return name

    def is_paused(self, queue: str = "spot") -> bool:
        return self.server.api.call("GET", f"/work_pools/{self.name}/queues/{queue}")["is_paused"]


@pytest.fixture
def world(prefect_server: Server, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    return World(prefect_server, tmp_path / "state" / "paused.json")


def test_from_nothing_to_three_machines_to_the_busy_one_to_nothing(world: World):
    runs = [world.server.run(world.deployments["spot"]) for _ in range(3)]
    world.server.run(world.deployments["spot"], state_details={"scheduled_time": (datetime.now(UTC) + timedelta(days=1)).isoformat()})
    world.scaler.round(0)
    assert len(world.machines()) == 3, "tomorrow's run needs no machine today"
    assert world.machines("on-demand") == []

    workers = [world.worker(machine) for machine in world.machines()]
    for run, worker in zip(runs, workers, strict=True):
        world.server.take(run, worker)
    world.scaler.round(10)
    for run in runs[1:]:
        world.server.set_state(run, "COMPLETED")
    busy = world.machines()[0]
    world.scaler.round(300)
    assert len(world.machines()) == 3, "ten minutes idle are not over"
    world.scaler.round(700)
    assert world.machines() == [busy]
    world.scaler.round(100_000)
    assert world.machines() == [busy]

    world.server.set_state(runs[0], "COMPLETED")
    world.scaler.round(200_000)
    assert world.machines() == []
    assert world.limits()[world.groups["spot"]] == (0, 4)
    assert not world.is_paused()


def test_a_worker_that_takes_a_run_while_the_scaler_decides_is_spared(world: World):
    """The run is handed out after the first look; the pause and the second look are what sees it."""
    run = world.server.run(world.deployments["spot"])
    world.scaler.round(0)
    (machine,) = world.machines()
    worker = world.worker(machine)
    world.server.set_state(run, "COMPLETED")
    world.scaler.round(1)
    world.scaler.settle_s = 2
    handed = []

    def take_one_at_the_pause() -> None:
        deadline = time.monotonic() + 20
        while not world.is_paused() and time.monotonic() < deadline:
            time.sleep(0.02)
        late = world.server.run(world.deployments["spot"])
        body = {"work_queue_names": ["spot"], "scheduled_before": datetime.now(UTC).isoformat()}
        handed.extend(world.server.api.call("POST", f"/work_pools/{world.name}/get_scheduled_flow_runs", body))
        world.server.take(late, worker)  # as if it had been handed out the moment before

    thread = threading.Thread(target=take_one_at_the_pause)
    thread.start()
    world.scaler.round(10_000)  # the machine has been idle for hours at its first look
    thread.join(30)
    assert handed == [], "a paused queue hands out nothing"
    assert world.machines() == [machine]
    assert not world.is_paused()


def test_a_pause_left_by_a_killed_scaler_is_lifted_and_a_persons_pause_is_kept(world: World):
    world.server.api.call("PATCH", f"/work_pools/{world.name}/queues/on-demand", {"is_paused": True})
    world.scaler.pool.hold()
    assert world.is_paused("spot")
    assert json.loads(world.scaler.pool.marker.read_text()) == ["spot"]
    successor = Scaler(Pool(world.server.api, world.name, world.scaler.pool.marker), world.scaler.groups, Settings(most={}), 0)
    successor.round(0)
    assert not world.is_paused("spot")
    assert world.is_paused("on-demand")


def test_the_budgets_policy_on_its_role_ends_every_machine_and_starts_none(world: World):
    iam = boto3.client("iam")
    iam.create_role(RoleName=world.role, AssumeRolePolicyDocument="{}")
    deny = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "autoscaling:SetDesiredCapacity", "Resource": "*"}]}
    policy = iam.create_policy(PolicyName=f"{world.role}-stop", PolicyDocument=json.dumps(deny))["Policy"]["Arn"]
    world.scaler.groups.role, world.scaler.groups.stop_policy = world.role, policy
    run = world.server.run(world.deployments["spot"])
    world.server.run(world.deployments["on-demand"])
    world.scaler.round(0)
    assert len(world.machines("spot")) == len(world.machines("on-demand")) == 1
    world.server.take(run, world.worker(world.machines()[0]))

    iam.attach_role_policy(RoleName=world.role, PolicyArn=policy)
    assert "over budget" in world.scaler.round(10)[0]
    assert world.machines("spot") == world.machines("on-demand") == []
    assert set(world.limits().values()) == {(0, 0)}
    assert world.scaler.round(20) == [], "said once"
