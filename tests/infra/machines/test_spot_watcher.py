"""The end of a machine, announced by a metadata service over HTTP, to a real worker of a real Prefect server."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.machines.instance_metadata import Metadata, MetadataDown
from infra.machines.spot_watcher import look, seconds_until, wait_for_notice
from services import background
from tests.infra.machines.worlds import FakeMetadata, Machine, Server, notice

ROOT = Path(__file__).parents[3]
STEPS = 8
FLOW = f"""
import os
import time
from pathlib import Path

from prefect import flow

from engine.prefect_runner import stop_on_sigterm

HERE = Path(os.environ["TOY_FOLDER"])  # the code itself is copied for each run


@flow
def toy():
    stop_on_sigterm()
    done = HERE / "steps.txt"
    for step in range(len(done.read_text().split()) if done.exists() else 0, {STEPS}):
        time.sleep(float((HERE / "seconds.txt").read_text()))
        with open(done, "a") as lines:
            lines.write(f"{{step}}:{{os.environ['PREFECT__WORKER_NAME']}}\\n")
"""


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    started: list[Machine] = []
    yield started
    for machine in started:
        machine.end()


def test_a_notice_hands_the_run_to_another_machine_which_finishes_it(
    prefect_server: Server, metadata: FakeMetadata, machines: list[Machine], tmp_path: Path
):
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "seconds.txt").write_text("0.5")
    steps = tmp_path / "steps.txt"
    pool, deployments = prefect_server.pool("flow.py:toy", str(tmp_path))
    first = Machine(prefect_server, pool, "i-first", tmp_path, metadata)
    machines.append(first)
    run = prefect_server.run(deployments["spot"])
    assert background.wait_until(lambda: steps.exists(), 60), background.last_lines(tmp_path / "i-first.log", 30)

    metadata.broken = 3
    metadata.answers["spot/instance-action"] = notice(120)
    noticed = time.monotonic()
    assert first.watcher is not None
    assert background.wait_until(lambda: not background.is_alive(first.watcher), 120), background.last_lines(tmp_path / "watcher.log")
    assert background.wait_until(lambda: not background.is_alive(first.worker), 120)
    assert time.monotonic() - noticed < 120
    said = (tmp_path / "watcher.log").read_text()
    assert "answers 503" in said and "1 flows stopped" in said and "no run is ours any more" in said, said
    assert not background.flow_processes(first.name)
    state = prefect_server.api.call("GET", f"/flow_runs/{run}")["state"]
    assert state["name"] == "AwaitingRetry", state

    (tmp_path / "seconds.txt").write_text("0.01")
    second = Machine(prefect_server, pool, "i-second", tmp_path)
    machines.append(second)
    finished = lambda: prefect_server.api.call("GET", f"/flow_runs/{run}")["state"]["type"] == "COMPLETED"  # noqa: E731
    assert background.wait_until(finished, 60), background.last_lines(tmp_path / "i-second.log", 30)
    lines = [line.split(":") for line in steps.read_text().split()]
    assert [int(step) for step, _ in lines] == list(range(STEPS)), "no step twice, none lost"
    assert {name for _, name in lines} == {first.name, second.name}


def test_the_group_ending_the_machine_is_a_notice_too(metadata: FakeMetadata):
    service = Metadata(metadata.endpoint)
    metadata.answers["autoscaling/target-lifecycle-state"] = "InService"
    assert look(service) is None
    metadata.answers["autoscaling/target-lifecycle-state"] = "Terminated"
    found = look(service)
    assert found is not None and found.why == "the group ends this machine"


def test_a_token_is_asked_for_and_asked_for_again_when_it_is_no_longer_known(metadata: FakeMetadata):
    service = Metadata(metadata.endpoint)
    metadata.answers["instance-id"] = "i-0"
    assert service.get("instance-id") == "i-0"
    assert metadata.refused == 0
    metadata.token = "another"
    assert service.get("instance-id") == "i-0"
    assert metadata.refused == 1


def test_faults_of_the_service_are_waited_out(metadata: FakeMetadata, capsys: pytest.CaptureFixture):
    metadata.broken = 4
    metadata.answers["spot/instance-action"] = "half of a docu"
    threading.Timer(1.0, lambda: metadata.answers.update({"spot/instance-action": notice(90)})).start()
    found = wait_for_notice(Metadata(metadata.endpoint), 0.05)
    assert 80 < found.seconds <= 90
    assert capsys.readouterr().out.count("asking again") == 1


def test_a_service_that_is_not_there_is_down_and_no_notice():
    with pytest.raises(MetadataDown, match="does not answer"):
        Metadata("http://127.0.0.1:9").get("instance-id")


def test_a_time_that_cannot_be_read_leaves_the_two_minutes_that_aws_promises():
    assert seconds_until("soon") == seconds_until("2999-01-01T00:00:00Z") == 120


@pytest.mark.slow
def test_the_programs_start_as_the_units_call_them():
    """By their module, found in the code's folder (PYTHONPATH, or the unit's working directory)."""
    units = "".join(unit.read_text() for unit in (ROOT / "infra" / "machines" / "systemd").iterdir())
    programs = set(re.findall(r"-m (infra\.machines\.\w+)", units))
    assert programs == {f"infra.machines.{name}" for name in ("connect", "prefect_server", "scaler", "spot_watcher")}
    for program in sorted(programs - {"infra.machines.prefect_server"}):  # that one takes a verb, and needs AWS
        command, place = [sys.executable, "-m", program, "--help"], os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=place, timeout=60)
        assert done.returncode == 0, done.stderr
