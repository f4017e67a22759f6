"""Parts of a run on pools of their own, as on GPU machines: sent, cancelled, taken back, moved by a spot notice, spread over two."""

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services import background
from services.automations import TAG
from store.artifact import Artifact
from store.catalogue import artifacts
from store.root import open_root
from store.storage import Storage
from tests.e2e.installation import ROOT, Installation, copied, is_final, on_demand
from tests.infra.machines.worlds import Machine, Server, metadata_service, notice

pytestmark = [pytest.mark.e2e, on_demand]


def test_parts_for_machines_that_cannot_see_the_root_are_refused(installed: Installation, undisturbed: Storage):
    def message(**run_on: str) -> str:
        settings = {"storage.root": undisturbed.uri} | {f"run_on.{part}": pool for part, pool in run_on.items()}
        run = installed.wait(installed.start("pretrain", **settings), is_final)
        assert run["state"]["name"] == "Failed"
        return run["state"]["message"]

    assert "run_on names the pool nowhere, which this server does not have" in message(train="nowhere")
    installed.api.call("POST", "/work_pools/gpu/workers/heartbeat", {"name": "gpu-i-far"})
    assert f"has workers on other machines (gpu-i-far), and storage.root is {undisturbed.uri}" in message(train="gpu/on-demand")


@pytest.fixture
def gpu_worker(installed: Installation, tmp_path: Path) -> Iterator[str]:
    """A worker of the pool of GPU machines, on this machine, beside the one of the pool cpu."""
    worker = installed.api.workers("gpu")  # one that only sent a heartbeat is deleted: it is nobody's
    for each in worker:
        installed.api.call("DELETE", f"/work_pools/gpu/workers/{each['name']}")
    variables = installed.client_environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    name = f"gpu-{tmp_path.name}"
    command = [sys.executable, str(ROOT / "deployments" / "worker.py"), "--pool", "gpu", "--name", name, "--queues", "spot", "--limit", "1"]
    process = background.start(command, tmp_path / "worker.pid", tmp_path / "worker.log", variables, tmp_path)
    assert background.wait_until(lambda: installed.api.has_worker("gpu", name, 0), 60), background.last_lines(tmp_path / "worker.log")
    yield name
    background.stop(process, 60)


def test_parts_run_in_their_pools_and_a_cancel_reaches_them_and_retry_keeps_what_is_done(
    installed: Installation, gpu_worker: str, undisturbed: Storage
):
    """The data part on one worker, then training on another; the run is cancelled in the middle of it, and goes on by Retry."""
    id = installed.start(
        "pretrain",
        **{"storage.root": undisturbed.uri, "run_on.curate": "cpu", "run_on.train": "gpu", "gates.max_share_deviation": 0.51},
        **{"train.max_steps": 60, "align.methods": [], "align.export": "pretrain", "evaluate.items.items": 4},
    )

    def trains(run: dict[str, Any]) -> bool:
        assert not is_final(run), run["state"]
        return any("training.child" in process.cmdline() for process in installed.working())

    installed.wait(id, trains)
    before = installed.children(id)
    assert all(TAG in run["tags"] for run in before.values()), "neither notice nor silence of these would be seen"
    assert {flow: (run["work_pool_name"], run["state"]["name"]) for flow, run in before.items()} == {
        "curate": ("cpu", "Completed"),
        "train": ("gpu", "Running"),
    }
    installed.api.call("POST", f"/flow_runs/{id}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
    assert installed.wait(id, is_final, 60)["state"]["name"] == "Cancelled"
    assert installed.wait(before["train"]["id"], is_final, 60)["state"]["name"] == "Cancelled"
    assert background.wait_until(lambda: not installed.working(), 30), [process.cmdline() for process in installed.working()]

    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    installed.api.call("POST", f"/flow_runs/{id}/set_state", retry)
    installed.wait(id, lambda run: not is_final(run))
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    after = installed.children(id)
    assert {flow: run["work_pool_name"] for flow, run in after.items()} == {
        "curate": "cpu", "train": "gpu", "evaluate": "gpu", "export": "gpu"
    }  # fmt: skip
    assert (after["curate"]["id"], after["curate"]["run_count"]) == (before["curate"]["id"], 1)
    assert (after["train"]["id"], after["train"]["run_count"]) == (before["train"]["id"], 2)


def test_a_spot_notice_moves_training_to_another_machine_with_the_same_losses(
    installed: Installation, undisturbed: Storage, tmp_path: Path
):
    """Metadata service, watcher, SIGTERM, checkpoint, AwaitingRetry, a second worker: the result is the undisturbed one, to the bit."""
    (want,) = [artifact for artifact in artifacts(undisturbed) if is_the_presets(artifact)]
    storage = copied(undisturbed, open_root((tmp_path / "root").as_uri()), "pretrain")
    server = Server(installed.api.url, installed.client_environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"})
    with metadata_service() as metadata, contextlib.ExitStack() as stack:
        first = Machine(server, "gpu", f"i-{secrets.token_hex(3)}", tmp_path, metadata)
        stack.callback(first.end)
        id = installed.start("train", "gpu", **{"storage.root": storage.uri, "run.checkpoint_every_steps": 1})
        installed.wait(id, lambda run: any(entry.path.endswith("/WHOLE") for entry in storage.list("artifacts/pretrain/")))
        (rank,) = [process for process in installed.working() if "training.child" in process.cmdline()]
        rank.suspend()  # forty steps may be over before a notice is read: it goes on when it is
        metadata.answers["spot/instance-action"] = notice(120)
        assert background.wait_until(lambda: "s left" in (tmp_path / "watcher.log").read_text(), 30)
        time.sleep(1)
        rank.resume()
        assert first.watcher is not None and background.wait_until(lambda: not background.is_alive(first.watcher), 120)
        run = installed.run(id)
        assert (run["state"]["name"], run["run_count"]) == ("AwaitingRetry", 1), (tmp_path / "watcher.log").read_text()
        assert not installed.working()
        assert not any("/manifest-" in entry.path for entry in storage.list("artifacts/pretrain/")), "it was done before the notice"
        second = Machine(server, "gpu", f"i-{secrets.token_hex(3)}", tmp_path)
        stack.callback(second.end)
        run = installed.wait(id, is_final)
    assert (run["state"]["name"], run["run_count"]) == ("Completed", 2), run["state"]
    (found,) = [artifact for artifact in artifacts(storage) if is_the_presets(artifact)]
    assert found.read("losses.jsonl") == want.read("losses.jsonl")
    assert found.digest == want.digest


def is_the_presets(artifact: Artifact) -> bool:
    """Pretraining as the preset has it: other tests leave longer ones."""
    return artifact.stage == "pretrain" and artifact.figures["steps"] == 40


def test_a_training_run_of_two_nodes_borrows_a_machine_of_its_pool(installed: Installation, undisturbed: Storage, tmp_path: Path):
    server = Server(installed.api.url, installed.client_environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"})
    with contextlib.ExitStack() as stack:
        machines = [Machine(server, "gpu", f"i-{secrets.token_hex(3)}", tmp_path) for _ in range(2)]
        for machine in machines:
            stack.callback(machine.end)
        settings = {"run.nodes": 2, "run.ranks": 2, "train.max_steps": 8}
        id = installed.start("train", "gpu", **{"storage.root": undisturbed.uri}, **settings)
        run = installed.wait(id, is_final)
        assert run["state"]["name"] == "Completed", run["state"]
        lent = installed.children(id)["join"]
        lent = installed.wait(lent["id"], is_final, 60)
        assert lent["state"]["name"] == "Completed", lent["state"]
        assert TAG in lent["tags"]
        assert {each["labels"]["prefect.worker.name"] for each in (run, lent)} == {machine.name for machine in machines}
        assert background.wait_until(lambda: not installed.working(), 30), [process.cmdline() for process in installed.working()]
    (found,) = [each for each in artifacts(undisturbed) if each.stage == "pretrain" and each.figures["steps"] == 8]
    assert (found.manifest["execution"]["ranks"], found.manifest["execution"]["nodes"]) == (2, 2)
