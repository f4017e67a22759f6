"""The real deployments on a real server and worker, over the artifacts of an undisturbed run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from services.background import wait_until
from store.root import open_root
from store.run_records import records
from store.storage import Storage
from tests.e2e.installation import Installation, copied, is_final
from tests.services.receiver import listening

pytestmark = pytest.mark.e2e


def test_a_deployment_run_shows_every_stage_cached_and_ends_well(installed: Installation, undisturbed: Storage):
    id = installed.start("pretrain", **{"storage.root": undisturbed.uri})
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    tasks: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while len(tasks) < 26 and time.monotonic() < deadline:  # the server writes task runs down some seconds after they ended
        time.sleep(0.5)
        found = installed.api.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [id]}}})
        tasks = [task for task in found if task["state"] and task["state"]["type"] == "COMPLETED"]
    assert len(tasks) == 26
    assert {task["state"]["name"] for task in tasks} == {"Cached"}
    assert all(task["name"].endswith(" cached") for task in tasks)


def test_a_run_says_in_its_name_what_it_is_unless_a_person_named_it(installed: Installation, undisturbed: Storage):
    run = installed.wait(installed.start("curate", **{"storage.root": undisturbed.uri, "gates.max_share_deviation": 0.53}), is_final)
    assert run["name"].startswith("curate smoke gates.max_share_deviation=0.53 "), run["name"]
    parameters = ["-p", "preset=smoke", "-p", f'overrides={{"storage.root": "{undisturbed.uri}"}}']
    done = installed.prefect("deployment", "run", "curate/full", "--flow-run-name", "my-run", *parameters)
    assert done.returncode == 0, done.stdout + done.stderr
    run = installed.wait(next(line.split()[-1] for line in done.stdout.splitlines() if "UUID:" in line), is_final)
    assert (run["name"], run["state"]["name"]) == ("my-run", "Completed"), run["state"]


def test_code_that_changed_since_up_is_refused_in_a_sentence_and_retry_goes_on_after_up(installed: Installation, undisturbed: Storage):
    file = installed.home / "prefect.yaml"
    real = file.resolve()
    file.unlink()
    try:
        file.write_text(real.read_text() + "# another release\n")
        run = installed.wait(installed.start("curate", **{"storage.root": undisturbed.uri}), is_final)
        assert run["state"]["name"] == "Failed"
        assert re.match(r"curate/full was deployed from code \w{12}, but .* has code \w{12}: nothing was run", run["state"]["message"])
        assert not installed.tasks(run["id"]), "something ran before it was refused"
        installed.services("up")
        retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
        installed.api.call("POST", f"/flow_runs/{run['id']}/set_state", retry)
        run = installed.wait(run["id"], lambda run: run["run_count"] == 2 and is_final(run))
        assert run["state"]["name"] == "Completed", run["state"]
    finally:
        file.unlink()
        file.symlink_to(real)
        installed.services("up")


def test_the_commented_pools_for_containers_work_once_the_comments_are_off(installed: Installation, undisturbed: Storage, tmp_path: Path):
    """Prefect's loader and server accept them, by the schema of pools of these types. No engine is here: we run a container's command."""
    text = re.sub(r"(?m)^  # ((docker|kubernetes): &| {2})", r"  \1", (installed.home / "prefect.yaml").read_text())
    kinds = ("docker", "kubernetes")
    for kind in kinds:
        text += f"  - name: in-{kind}\n    entrypoint: flows/curate.py:curate\n    work_pool: *{kind}\n"
    file = tmp_path / "prefect.yaml"
    prefect = [str(Path(sys.executable).with_name("prefect")), "--no-prompt"]
    wanted = yaml.safe_load(text)["definitions"]

    def deploy(text: str) -> subprocess.CompletedProcess[str]:
        file.write_text(text)
        environment = {name: value for name, value in installed.client_environment.items() if name != "BESSEMER_HOME"}
        names = [part for kind in kinds for part in ("--name", f"curate/in-{kind}")]
        command = [*prefect, "deploy", "--prefect-file", str(file), *names]
        return subprocess.run(command, cwd=installed.home, env=environment, capture_output=True, text=True, timeout=120)

    try:
        for kind in kinds:
            done = installed.prefect("work-pool", "create", kind, "--type", kind)
            assert done.returncode == 0, done.stdout + done.stderr
        done = deploy(text)
        assert done.returncode == 0, done.stdout + done.stderr
        for kind in kinds:
            made = installed.api.call("GET", f"/deployments/name/curate/in-{kind}")
            assert (made["work_pool_name"], made["job_variables"]) == (kind, wanted[kind]["job_variables"])
            assert made["pull_steps"][0]["prefect.deployments.steps.set_working_directory"] == {"directory": "{{ $BESSEMER_HOME }}"}
            known = installed.api.call("GET", f"/work_pools/{kind}")["base_job_template"]["variables"]["properties"]
            newer = {"container_create_kwargs"}  # than the server's copy of prefect-docker's schema
            assert set(made["job_variables"]) - set(known) <= newer
        id = installed.start("curate", "in-docker", **{"storage.root": undisturbed.uri})
        environment = installed.client_environment | {"PREFECT__FLOW_RUN_ID": id}
        done = subprocess.run([*prefect, "flow-run", "execute"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        assert installed.run(id)["state"]["name"] == "Completed", done.stdout + done.stderr
        assert deploy(text.replace("image_pull_policy: Never", "image_pull_policy: Sometimes")).returncode == 1
    finally:
        for kind in kinds:
            for made in installed.api.call("POST", "/deployments/filter", {"deployments": {"name": {"any_": [f"in-{kind}"]}}}):
                installed.api.call("DELETE", f"/deployments/{made['id']}")
            installed.api.call("DELETE", f"/work_pools/{kind}")


def test_a_wrong_value_makes_no_run_and_a_wrong_key_is_named_with_the_nearest(installed: Installation, undisturbed: Storage):
    """In the run's message, and at the address that asked to be told."""
    refused = installed.prefect("deployment", "run", "train/full", "-p", "preset=smoek")
    assert refused.returncode == 1
    assert "'smoek' is not one of" in refused.stdout + refused.stderr
    sentence = "train.max_stepz is no setting; the nearest is train.max_steps"
    with listening() as (url, lines):
        assert installed.bessemer("notify", url).returncode == 0
        run = installed.wait(installed.start("train", **{"storage.root": undisturbed.uri, "train.max_stepz": 5}), is_final)
        assert (run["state"]["name"], run["state"]["message"]) == ("Failed", sentence)
        assert wait_until(lambda: bool(lines), 30)
        assert sentence in lines[0] and lines[0].endswith(f"/runs/flow-run/{run['id']}")
        assert installed.bessemer("notify", "--off").stdout == "off\n"


def test_a_file_of_settings_is_what_the_run_its_parts_and_its_retry_go_by(installed: Installation, undisturbed: Storage, tmp_path: Path):
    """The part is a run of its own. By the time of the Retry the file is another, and wrong."""
    file = tmp_path / "my.yaml"
    file.write_text(
        f"base: smoke\nstorage: {{root: {undisturbed.uri}}}\nrun_on: {{curate: cpu}}\n"
        "gates:\n  max_share_deviation: 0.52  # a stage of the part must run\n"
    )
    done = installed.prefect("deployment", "run", "pretrain/full", "-p", f"config={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    id = next(line.split()[-1] for line in done.stdout.splitlines() if "UUID:" in line)
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    kept = run["parameters"]["config"]
    assert kept.startswith(f"{undisturbed.uri}/configs/") and run["parameters"]["preset"] == "smoke"
    (child,) = installed.children(id).values()
    assert (child["state"]["name"], child["parameters"]["config"]) == ("Completed", kept)
    mine = [record for _, record in records(undisturbed) if (record.get("config") or {}).get("file") in (str(file), kept)]
    assert {record["flow"] for record in mine} == {"pretrain", "curate"}
    assert all(record["config"]["settings"]["gates"]["max_share_deviation"] == 0.52 for record in mine)
    file.write_text("base: smoke\ntrain: {max_stepz: 5}\n")
    installed.api.call("POST", f"/flow_runs/{id}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True})
    run = installed.wait(id, lambda run: run["run_count"] == 2 and is_final(run))
    assert run["state"]["name"] == "Completed", run["state"]
    done = installed.prefect("deployment", "run", "curate/full", "-p", f"config={file}")
    run = installed.wait(next(line.split()[-1] for line in done.stdout.splitlines() if "UUID:" in line), is_final)
    assert run["state"]["message"] == "my.yaml line 2: train.max_stepz is no setting; the nearest is train.max_steps"


def test_a_flow_that_gets_sigterm_checkpoints_awaits_retry_and_goes_on(installed: Installation, undisturbed: Storage):
    """A spot notice: the run is handed back to its pool, and a new process trains on from the checkpoint."""
    id = installed.pretrains(undisturbed, 120)
    first = int(installed.run(id)["infrastructure_pid"])
    os.kill(first, signal.SIGTERM)
    installed.wait(id, lambda run: run["state"]["name"] == "AwaitingRetry" or run["run_count"] > 1, 60)
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    assert run["run_count"] == 2
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    installed.shows(id, 2, {"pretrain": "Resumed"})
    assert installed.resumed(id, "pretrain") >= [1], "training began again from its first step"
    noted = [value["state"] for _, value in records(undisturbed) if value["overrides"].get("train.max_steps") == 120]
    assert noted == ["checkpointed", "completed"]


def test_worker_and_flow_killed_together_and_nobody_clicks(installed: Installation, undisturbed: Storage, tmp_path: Path):
    """The run goes on from its checkpoint in the worker that `make up` starts, with nothing done again."""
    storage = copied(undisturbed, open_root((tmp_path / "root").as_uri()), "pretrain")
    id = installed.pretrains(storage, 303)
    for process in installed.worker_family():
        process.kill()
    installed.services("up")
    run = installed.wait(id, lambda run: is_final(run) and run["state"]["type"] != "CRASHED")
    assert (run["state"]["name"], run["run_count"]) == ("Completed", 2), run["state"]
    installed.shows(id, 2, {"pretrain": "Resumed"})
    assert installed.resumed(id, "pretrain") >= [1], "training began again from its first step"
    states = installed.api.call("GET", f"/flow_run_states/?flow_run_id={id}")
    assert any((state["message"] or "").startswith("Taken up again (1 of 3) after: Its process is gone") for state in states)
