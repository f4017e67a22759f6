"""A run that breaks in curation, in pretraining and in PPO, and is continued each time: by the UI's Retry on a narrow page, by the API
call that it makes, by `prefect flow-run retry`, and by a new run of the deployment. Nothing is cleaned up by hand, nothing that was done
is done again, and the bytes are those of an undisturbed run, learning rates of every step among them: a second warm-up would show there.
"""

import contextlib
import os
import re
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest

from store.root import open_root
from store.storage import Storage
from tests.e2e.browser import PROGRAM, Browser
from tests.e2e.installation import Installation, copied, is_final, on_demand, where
from tests.e2e.test_smoke import digests, plans

PICTURES = os.environ.get("BESSEMER_PICTURES")
"""A folder for what the browser saw: how docs/img was made."""
WIDE, NARROW = (1280, 1060), (390, 1200)
KILLED = "{}: rank 0 was ended by SIGKILL: out of memory? Make room, or lower run.micro_batch_size, and run it again"

pytestmark = [pytest.mark.e2e, on_demand]


@pytest.fixture
def root(undisturbed: Storage, tmp_path: Path) -> Storage:
    """A copy of the undisturbed root without selection, base model and aligned model: those three stages must run."""
    return copied(undisturbed, open_root((tmp_path / "root").as_uri()), "select", "pretrain", "ppo")


def kill_child(installed: Installation, id: str, storage: Storage, stage: str) -> None:
    """SIGKILL to the training child once it has a whole checkpoint of its own: what the kernel does when memory runs out."""
    before = checkpoints(storage, stage)

    def checkpointed(run: dict[str, Any]) -> bool:
        assert not is_final(run), run["state"]
        return bool(checkpoints(storage, stage) - before)

    run = installed.wait(id, checkpointed)
    children = psutil.Process(int(run["infrastructure_pid"])).children(recursive=True)
    with contextlib.suppress(psutil.Error):
        next(child for child in children if "spec.json" in " ".join(child.cmdline())).send_signal(signal.SIGKILL)


def checkpoints(storage: Storage, stage: str) -> set[str]:
    return {entry.path for entry in storage.list(f"artifacts/{stage}/") if entry.path.endswith("/WHOLE")}


def failed(installed: Installation, id: str, message: str) -> None:
    run = installed.wait(id, is_final)
    assert (run["state"]["name"], run["state"]["message"]) == ("Failed", message)


def until(undisturbed: Storage, stage: str, **ended: str) -> dict[str, str]:
    """All stages before this one Cached, but those of which something else is said."""
    order = list(plans(undisturbed))
    return dict.fromkeys(order[: order.index(stage)], "Cached") | ended


def page(installed: Installation, id: str) -> str:
    return f"{installed.api.url.removesuffix('/api')}/runs/flow-run/{id}"


def retry(installed: Installation, id: str) -> None:
    attempt = installed.run(id)["run_count"]
    done = installed.prefect("flow-run", "retry", id)
    assert done.returncode == 0, done.stdout + done.stderr
    installed.wait(id, lambda run: run["run_count"] > attempt)


def retry_in_the_ui(installed: Installation, id: str, message: str, folder: Path) -> None:
    """Read the message and press Retry, on a page as narrow as a telephone's."""
    with Browser(folder / "browser") as browser:
        browser.log_in(installed.ui, installed.password)
        browser.resize(*WIDE)
        browser.open(page(installed, id))
        browser.wait_for("Failed")
        browser.click("Details")
        read_message(browser, message)
        look(browser, "failed-run")
        browser.resize(*NARROW)
        browser.choose("Details")
        read_message(browser, message)
        assert not browser.is_wider_than_the_page()
        look(browser, "failed-run-narrow")
        browser.press(".flow-run-menu button")
        browser.click("Retry")
        browser.wait_for("will retry")
        browser.click("Retry")
        installed.wait(id, lambda run: run["state"]["name"] != "Failed", 30)


def read_message(browser: Browser, message: str) -> None:
    """A new width draws the page anew, which may fold the message again."""
    browser.wait_for("State Message")
    deadline = time.monotonic() + 30
    while message not in browser.text():
        assert time.monotonic() < deadline, browser.text()
        browser.press(".p-text-truncate--action-text")  # See More
        time.sleep(0.5)


def picture(installed: Installation, id: str, name: str, folder: Path) -> None:
    if PICTURES:
        with Browser(folder / name) as browser:
            browser.log_in(installed.ui, installed.password)
            browser.resize(*WIDE)
            browser.open(page(installed, id))
            browser.wait_for(installed.run(id)["state"]["name"])
            browser.click("Task Runs")
            look(browser, name)


def look(browser: Browser, name: str) -> None:
    if PICTURES:
        time.sleep(3)  # the page draws its graph after its text
        browser.picture(Path(PICTURES) / f"{name}.png")


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here to press Retry with")
def test_a_broken_stage_is_continued_by_retry_in_the_ui_by_the_api_on_the_command_line_and_by_a_new_run(
    installed: Installation, undisturbed: Storage, root: Storage, tmp_path: Path
):
    in_the_way = tmp_path / "root" / "artifacts" / "select"
    in_the_way.write_text("no folder can be made here")
    settings = {"storage.root": root.uri, "run.checkpoint_every_steps": 1}
    id = installed.start("pretrain", **settings)
    message = f"a file stands where a folder must be: {in_the_way}. Move it away and run again."
    failed(installed, id, message)
    installed.shows(id, 1, until(undisturbed, "select", select="Failed"))
    in_the_way.unlink()
    retry_in_the_ui(installed, id, message, tmp_path)
    kill_child(installed, id, root, "pretrain")
    failed(installed, id, KILLED.format("pretrain"))
    installed.shows(id, 2, until(undisturbed, "pretrain", select="Completed", pretrain="Failed"))

    state = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}  # the UI's own call
    installed.api.call("POST", f"/flow_runs/{id}/set_state", state)
    kill_child(installed, id, root, "ppo")
    failed(installed, id, KILLED.format("ppo"))
    installed.shows(id, 3, until(undisturbed, "ppo", pretrain="Resumed", ppo="Failed"))
    picture(installed, id, "resumed-run", tmp_path)

    retry(installed, id)
    kill_child(installed, id, root, "ppo")
    failed(installed, id, KILLED.format("ppo"))
    installed.shows(id, 4, until(undisturbed, "ppo", ppo="Failed"))
    assert installed.run(id)["run_count"] == 4

    last = installed.start("pretrain", **settings)
    run = installed.wait(last, is_final)
    assert (run["state"]["name"], run["run_count"]) == ("Completed", 1), run["state"]
    installed.shows(last, 1, dict.fromkeys(plans(undisturbed), "Cached") | {"ppo": "Resumed"})
    first, second, third = [*installed.resumed(id, "pretrain"), *installed.resumed(id, "ppo"), *installed.resumed(last, "ppo")]
    assert first >= 1 and 1 <= second < third, "each went on from the last checkpoint"
    assert digests(root) == digests(undisturbed)
    picture(installed, last, "flow-run", tmp_path)


def test_on_s3_a_missing_bucket_and_killed_children_are_said_and_retry_goes_on(
    installed: Installation, undisturbed: Storage, s3_server: str
):
    bucket = f"bucket-{secrets.token_hex(6)}"
    storage = open_root(f"s3://{bucket}/pre/fix", s3_server)
    id = installed.start("pretrain", **where(storage), **{"run.workers": 1, "run.checkpoint_every_steps": 1})
    path = rf"there is no bucket for s3://{bucket}/pre/fix/\.probe-\w+: make it, or correct storage\.root\."
    run = installed.wait(id, is_final)
    assert run["state"]["name"] == "Failed" and re.fullmatch(path, run["state"]["message"]), run["state"]
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    for stage in ("pretrain", "ppo"):
        retry(installed, id)
        kill_child(installed, id, storage, stage)
        failed(installed, id, KILLED.format(stage))
    retry(installed, id)
    run = installed.wait(id, is_final)
    assert (run["state"]["name"], run["run_count"]) == ("Completed", 4), run["state"]
    installed.shows(id, 4, until(undisturbed, "ppo", ppo="Resumed"))
    first, second = [*installed.resumed(id, "pretrain"), *installed.resumed(id, "ppo")]
    assert first >= 1 and second >= 1, "training began again from its first step"
    assert digests(storage) == digests(undisturbed)


def test_a_corrected_parameter_is_a_new_run_whose_earlier_stages_are_cached(installed: Installation, undisturbed: Storage, root: Storage):
    nothing = {"min_mean_word_chars": 0, "max_mean_word_chars": 0}
    domains = dict.fromkeys(("code", "conversation", "reference"), nothing)  # which have bounds of their own
    settings = {"storage.root": root.uri, "filters.select.default": nothing, "filters.select.domains": domains}
    run = installed.wait(wrong := installed.start("curate", **settings), is_final)
    assert run["state"]["name"] == "Failed"
    said = (
        r"select keeps none of the \d+ train documents; \d+ of them were dropped for 'word_length'\. "
        r"Look at the text, or at filters\.select\.default\.max_mean_word_chars \(and by domain in filters\.select\.domains\)\."
    )
    assert re.fullmatch(said, run["state"]["message"]), run["state"]
    installed.shows(wrong, 1, until(undisturbed, "select", select="Failed"))
    run = installed.wait(right := installed.start("curate", **{"storage.root": root.uri}), is_final)
    assert run["state"]["name"] == "Completed", run["state"]
    installed.shows(right, 1, until(undisturbed, "select", select="Completed"))
