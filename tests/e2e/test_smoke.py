"""Whole flows with the smoke preset, as a person runs them: other processes, real stores, real kills."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bessemer.config import load
from engine.runner import PlanRunner
from engine.stage import Engine, Planned
from flows.__main__ import main
from store.root import open_root
from store.storage import Storage
from tests.e2e.conftest import ROOT, arguments, command, run
from tests.e2e.installation import on_demand

MARK = "BESSEMER_TEST_RUN"

pytestmark = pytest.mark.e2e


def plans(storage: Storage) -> dict[str, Planned]:
    """Every stage of the smoke preset by name, with what the store has of it."""
    from flows.pretrain import body

    config = load("smoke")
    runner = PlanRunner(Engine(storage, config, config.run, None, "test"))  # type: ignore[arg-type]
    body(runner, config)
    return {planned.stage.name: planned for planned in runner.plans}


def digests(storage: Storage) -> dict[str, str]:
    found = {name: planned.reuse for name, planned in plans(storage).items()}
    assert None not in found.values(), f"not there: {[name for name, artifact in found.items() if artifact is None]}"
    return {name: artifact.digest for name, artifact in found.items() if artifact is not None}


def test_every_stage_makes_its_artifact_and_its_ledger_balances(undisturbed: Storage):
    for name, planned in plans(undisturbed).items():
        assert planned.reuse is not None, f"{name}: {planned.why}"
        planned.reuse.ledger.check(name)


def test_a_second_run_is_cached_throughout_and_says_where_things_are(undisturbed: Storage):
    done = run(undisturbed)
    lines = done.stdout.splitlines()
    rows = [line for line in lines if " cached " in line]
    assert done.returncode == 0, done.stderr
    assert len(rows) == len(plans(undisturbed))
    assert not done.stderr.strip()
    places = dict(line.split(maxsplit=1) for line in lines if line.startswith(("checks  ", "claims  ", "export  ", "report  ")))
    assert not [line for line in lines if line.startswith("not  ")]
    total, *kinds = map(int, re.findall(r"(\d+) (?:of the machinery|balances|digests|bounds|answers)", lines[-2]))
    assert lines[-2].startswith("checks  ") and total == sum(kinds) > 100 and len(kinds) == 4
    assert lines[-1].startswith("claims  none: a model of 40 steps claims nothing")
    report = Path(places["report"])
    assert report.read_text().lstrip().lower().startswith("<!doctype html")
    assert lines[-1].removeprefix("claims  none: ") in report.read_text()
    assert (Path(places["export"]) / "model.safetensors").exists()


@pytest.mark.parametrize("flow", ["curate", "train", "align", "evaluate", "export"])
def test_partial_flows_take_what_is_there(undisturbed: Storage, flow: str, capsys: pytest.CaptureFixture):
    assert main(arguments(undisturbed, flow)) == 0
    assert not re.search(r" (ran|resumed) ", capsys.readouterr().out)


def test_a_partial_flow_says_which_flow_makes_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(arguments(open_root((tmp_path / "empty").as_uri()), "train")) == 2
    assert "no artifact of ingest for this configuration (first run): run curate/full first" in capsys.readouterr().err


def test_in_the_foreground_run_on_is_said_to_have_no_effect(undisturbed: Storage, capsys: pytest.CaptureFixture):
    assert main([*arguments(undisturbed), "--set", "run_on.train=gpu", "--until", "ingest"]) == 0
    assert "run_on is for runs under Prefect and has no effect here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "killed",
    [["deduplicate", "ppo"], pytest.param(["deduplicate", "pretrain", "ppo", "evaluate"], marks=on_demand)],
    ids=["two", "four"],
)
def test_the_smoke_flow_on_s3_killed_in_every_family_ends_with_the_same_digests(undisturbed: Storage, s3: Storage, killed: list[str]):
    """SIGKILL to the flow process inside these stages, one after the other; nothing is left behind, nothing differs."""

    def sealed(stage: str) -> bool:
        return any(entry.path.endswith(".seal") for entry in s3.list(f"artifacts/{stage}/"))

    def checkpointed(stage: str) -> bool:
        return any(entry.path.endswith("/WHOLE") for entry in s3.list(f"artifacts/{stage}/"))

    def published(stage: str) -> bool:
        return any("/manifest-" in entry.path for entry in s3.list(f"artifacts/{stage}/"))

    moments: dict[str, Callable[[], bool]] = {
        "deduplicate": lambda: sealed("deduplicate"),
        "pretrain": lambda: checkpointed("pretrain"),
        "ppo": lambda: checkpointed("ppo"),
        "evaluate": lambda: published("dpo"),
    }
    for stage in killed:
        kill_when(moments[stage], command(s3), signal.SIGKILL)
        assert not published(stage), f"{stage} was done before the kill; the moment must come earlier"
    done = run(s3)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert digests(s3) == digests(undisturbed)


def kill_when(moment: Callable[[], bool], line: list[str], number: signal.Signals) -> None:
    """Start the flow, signal it at the moment, and see that no process of it stays."""
    mark = f"{os.getpid()}-{time.time_ns()}"
    process = subprocess.Popen(line, env=os.environ | {MARK: mark}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 600
        while not moment():
            assert process.poll() is None, process.stdout.read()[-3000:] if process.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(number)
        process.wait(30)
    deadline = time.monotonic() + 20
    while (left := list(marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, [other.cmdline() for other in left]


def marked(mark: str) -> Iterator[psutil.Process]:
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if other.environ().get(MARK) == mark and other.status() != psutil.STATUS_ZOMBIE:
                yield other
