"""A run that breaks in curation, in pretraining and in PPO, and is continued each time: by the UI's Retry, by `prefect flow-run retry`,
and by a new run of the deployment. Nothing is cleaned up by hand, nothing that was done is done again, and the bytes are those of an
undisturbed run, learning rates of every step among them: a second warm-up would show there.
"""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from store.storage import Storage, open_root
from tests.e2e.browser import PROGRAM, Browser
from tests.e2e.installation import Installation, is_final, on_demand
from tests.e2e.test_smoke import digests

PICTURES = os.environ.get("BESSEMER_PICTURES")
"""A folder for what the browser saw: how docs/img was made."""

pytestmark = [pytest.mark.e2e, on_demand]


@pytest.fixture
def root(undisturbed: Storage, tmp_path: Path) -> Storage:
    """A copy of the undisturbed root without selection, base model and aligned model: those three stages must run."""
    place = tmp_path / "root"
    shutil.copytree(undisturbed.local(""), place)  # type: ignore[arg-type]
    for stage in ("select", "pretrain", "ppo"):
        shutil.rmtree(place / "artifacts" / stage)
    return open_root(place.as_uri())


def kill_child(installed: Installation, id: str, storage: Storage, stage: str) -> None:
    """SIGKILL to the training child once it has a whole checkpoint: what the kernel does when memory runs out."""

    def checkpointed(run: dict[str, Any]) -> bool:
        assert not is_final(run), run["state"]
        return any(entry.path.endswith("/WHOLE") for entry in storage.list(f"artifacts/{stage}/"))

    run = installed.wait(id, checkpointed)
    children = psutil.Process(int(run["infrastructure_pid"])).children(recursive=True)
    with contextlib.suppress(psutil.Error):
        next(child for child in children if "spec.json" in " ".join(child.cmdline())).send_signal(signal.SIGKILL)


def failed(installed: Installation, id: str, words: str) -> None:
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Failed" and words in run["state"]["message"], run["state"]


def retry_in_the_ui(installed: Installation, id: str, folder: Path) -> None:
    """By the button, where there is a browser; else by the call that the button makes."""
    if PROGRAM is None:
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        installed.api.call("POST", f"/flow_runs/{id}/set_state", {"state": state, "force": True})
        return
    with Browser(folder / "browser", height=1500) as browser:
        browser.open(f"{installed.api.url.removesuffix('/api')}/runs/flow-run/{id}")
        browser.wait_for("Failed")
        look(browser, "failed-run", "Details")
        browser.click("Retry")
        browser.wait_for("will retry")
        browser.click("Retry")
        installed.wait(id, lambda run: run["state"]["name"] != "Failed", 30)


def look(browser: Browser, name: str, tab: str) -> None:
    if PICTURES:
        browser.click(tab)
        time.sleep(3)  # the page draws its graph after its text
        browser.picture(Path(PICTURES) / f"{name}.png")


def test_a_broken_stage_is_continued_by_retry_in_the_ui_on_the_command_line_and_by_a_new_run(
    installed: Installation, undisturbed: Storage, root: Storage, tmp_path: Path
):
    in_the_way = tmp_path / "root" / "artifacts" / "select"
    in_the_way.write_text("no folder can be made here")
    id = installed.start("pretrain", **{"storage.root": root.uri})
    failed(installed, id, "select")
    in_the_way.unlink()
    retry_in_the_ui(installed, id, tmp_path)
    kill_child(installed, id, root, "pretrain")
    failed(installed, id, "pretrain: rank 0 was ended by SIGKILL")

    again = installed.prefect("flow-run", "retry", id)
    assert again.returncode == 0, again.stdout + again.stderr
    kill_child(installed, id, root, "ppo")
    failed(installed, id, "ppo: rank 0 was ended by SIGKILL")
    assert installed.run(id)["run_count"] == 3

    last = installed.start("pretrain", **{"storage.root": root.uri})
    run = installed.wait(last, is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    assert run["run_count"] == 1
    tasks = wait_for_tasks(installed, last)
    assert [name.split()[0] for name, state in tasks if state != "Cached"] == ["ppo"]
    assert digests(root) == digests(undisturbed)
    if PICTURES:
        with Browser(tmp_path / "looking", height=1500) as browser:
            for name, run_id in (("resumed-run", id), ("flow-run", last)):
                browser.open(f"{installed.api.url.removesuffix('/api')}/runs/flow-run/{run_id}")
                browser.wait_for("Completed" if run_id == last else "Failed")
                look(browser, name, "Task Runs")


def wait_for_tasks(installed: Installation, id: str) -> list[tuple[str, str]]:
    """The server writes task runs down some seconds after they ended."""
    deadline = time.monotonic() + 60
    while len(tasks := installed.tasks(id)) < 26 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(tasks) == 26
    return tasks
