"""/metrics of the report server, scraped over HTTP while and after real runs, and the dashboard that reads it."""

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bessemer.live_figures import LiveJournal, live_figures
from engine.stage_lines import Note
from services import report_server, run_metrics
from services.paths_and_ports import Clone
from store.root import open_root
from store.run_records import recorded
from tests.bessemer.test_summary import Silent
from tests.services.test_report_server import ask

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "infra" / "grafana" / "bessemer.json"
Labels = frozenset[tuple[str, str]]


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("BESSEMER_HOME", str(tmp_path))
    monkeypatch.setattr(run_metrics, "_GPUS", run_metrics._Gpus())  # what an earlier test found is not asked for again
    with report_server.server(0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def scrape(port: int) -> tuple[set[str], dict[str, dict[Labels, float]]]:
    """(names of all families, samples by name and labels)."""
    status, body, headers = ask(port, "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(body.decode()))
    samples: dict[str, dict[Labels, float]] = {}
    for family in families:
        for sample in family.samples:
            found = samples.setdefault(sample.name, {})
            assert frozenset(sample.labels.items()) not in found, "a series is there twice: Prometheus refuses the whole scrape"
            found[frozenset(sample.labels.items())] = sample.value
    return {family.name for family in families}, samples


def at(samples: dict[str, dict[Labels, float]], name: str, **labels: str) -> list[float]:
    return [value for key, value in samples.get(name, {}).items() if labels.items() <= dict(key).items()]


def queries() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    return [t["expr"] for panel in board["panels"] for t in panel["targets"]] + [
        v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"
    ]


def test_every_query_of_the_dashboard_names_a_metric_that_is_exported_even_before_the_first_run(port: int) -> None:
    names, _ = scrape(port)
    asked = [set(re.findall(r"\bbessemer_\w+", query)) for query in queries()]
    assert len(asked) > 15 and all(asked)
    assert set().union(*asked) <= names
    assert names <= set().union(*asked), "a metric that no panel shows"


@pytest.mark.slow
def test_a_real_run_in_the_foreground_is_shown_and_neither_its_text_nor_its_secrets(port: int, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    words = "Zanzibar ordered forty-one copper kettles and nobody asked why. "
    lines = [json.dumps({"text": f"{i} {words * 8}{i}"}) for i in range(80)] + ["no json"]
    (tmp_path / "text" / "web.jsonl").write_text("\n".join(lines) + "\n")
    root = (tmp_path / "root").as_uri()
    sources = f'sources=[{{uri: "{(tmp_path / "text" / "web.jsonl").as_uri()}", domain: web}}]'
    command = [sys.executable, "-m", "flows", "run", "curate", "--preset", "smoke", "--until", "ingest"]
    secret = {"AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
    done = subprocess.run(
        [*command, "--set", sources, "--set", f"storage.root={root}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **secret},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, samples = scrape(port)
    here = {"flow": "curate", "preset": "smoke"}
    assert at(samples, "bessemer_stage_state", **here, stage="ingest", state="ran") == [1.0]
    assert at(samples, "bessemer_stage_documents", **here, stage="ingest", outcome="quarantined") == [1.0]
    assert at(samples, "bessemer_stage_documents", **here, stage="ingest", outcome="out") == [80.0]
    assert at(samples, "bessemer_run_state", **here, state="completed") == [1.0]
    body = ask(port, "/metrics")[1].decode() + "".join(file.read_text() for file in run_metrics.folder().iterdir())
    assert not [word for word in ("Zanzibar", "hunter2", str(tmp_path), "web.jsonl") if word in body]


def test_a_training_stage_shows_its_figures_while_it_works_and_a_failed_run_says_so(port: int) -> None:
    with pytest.raises(RuntimeError), live("train", "laptop") as journal:
        journal.started("pretrain", "0" * 64, "first run")
        journal.progress("pretrain", 30, 40, "steps", Note.of({"loss": 2.5, "lr": 1e-3, "tokens_per_s": 12345.0}))
        journal._write()
        _, samples = scrape(port)
        found = {name: at(samples, name, stage="pretrain") for name in samples}
        assert found["bessemer_training_loss"] == [2.5] and found["bessemer_training_tokens_per_second"] == [12345.0]
        assert found["bessemer_stage_progress_ratio"] == [0.75] and at(samples, "bessemer_stage_state", state="running") == [1.0]
        raise RuntimeError
    _, samples = scrape(port)
    assert at(samples, "bessemer_run_state", state="failed") == [1.0] and at(samples, "bessemer_stage_state", state="failed") == [1.0]


@contextlib.contextmanager
def live(flow: str, preset: str) -> Iterator[LiveJournal]:
    """A run's journal and record, as the command line and the flows make them."""
    storage = open_root((run_metrics.folder().parents[2] / "root").as_uri())
    with recorded(storage, flow, preset, {}) as record:
        yield live_figures(Silent(), record)


ENDS = """
import os, sys
from tests.services.test_run_metrics import live
from store.run_records import CHECKPOINTED, end_open
with live("train", "smoke") as journal:
    journal.started("mix", "", "")
    if "in order" in sys.argv:
        end_open(*CHECKPOINTED)
    os._exit(9)
"""


def test_a_killed_run_is_vanished_and_the_newest_run_of_a_flow_and_preset_counts(port: int) -> None:
    assert subprocess.run([sys.executable, "-c", ENDS], cwd=ROOT).returncode == 9
    _, samples = scrape(port)
    assert at(samples, "bessemer_run_state", state="vanished") == [1.0] and at(samples, "bessemer_run_state", state="running") == [0.0]
    assert at(samples, "bessemer_stage_state", stage="mix", state="vanished") == [1.0]
    with live("train", "smoke"):
        _, samples = scrape(port)
        assert at(samples, "bessemer_run_state", state="running") == [1.0] and not at(samples, "bessemer_stage_state", stage="mix")


def test_a_run_that_sigterm_stopped_is_checkpointed_though_its_process_left_at_once(port: int) -> None:
    assert subprocess.run([sys.executable, "-c", ENDS, "in order"], cwd=ROOT).returncode == 9
    _, samples = scrape(port)
    assert at(samples, "bessemer_run_state", state="checkpointed") == [1.0]
    assert at(samples, "bessemer_stage_state", stage="mix", state="checkpointed") == [1.0]


def test_files_that_are_no_runs_and_runs_of_long_ago_are_left_out_and_removed_by_the_next_run(port: int) -> None:
    with live("curate", "smoke"):
        pass
    (file,) = run_metrics.folder().glob("*.json")
    old = json.loads(file.read_text()) | {"updated": time.time() - run_metrics.ENDED_S - 1}
    file.write_text(json.dumps(old))
    os.utime(file, (old["updated"], old["updated"]))
    for i, junk in enumerate(["", "[]", "{}", '{"state": "running"}', '{"updated": "x", "state": 3, "pid": "y"}']):
        (run_metrics.folder() / f"junk{i}.json").write_text(junk)
    _, samples = scrape(port)
    assert not samples
    with live("train", "smoke"):
        assert not file.exists()


@pytest.mark.parametrize("change", [{"started": "x"}, {"stages": []}, {"stages": {"mix": 3}}, {"stages": {"mix": {"progress": "x"}}}])
def test_a_file_that_somebody_else_wrote_breaks_no_scrape(port: int, change: dict[str, Any]) -> None:
    with live("curate", "smoke"):
        pass
    (file,) = run_metrics.folder().glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    scrape(port)


def test_a_preset_of_any_name_is_one_bounded_label(port: int) -> None:
    with live("curate", 'my"\n{preset}\\' + "x" * 500):
        _, samples = scrape(port)
    (key,) = samples["bessemer_run_started_timestamp_seconds"]
    assert dict(key)["preset"].startswith("my___preset__x") and len(dict(key)["preset"]) == 100


def test_a_run_goes_on_where_its_file_cannot_be_written(port: int, tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file in the way")
    with live("curate", "smoke") as journal:
        journal.started("mix", "", "")


NVIDIA_SMI = """#!/bin/sh
test "$1" = --query-gpu=index,utilization.gpu,memory.used,memory.total && test "$2" = --format=csv,noheader,nounits || exit 2
echo "0, 87, 1024, 143771"
echo "1, [N/A], 0, 143771"
"""


def test_gpus_are_asked_of_nvidia_smi_where_it_is(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    _, samples = scrape(port)
    assert at(samples, "bessemer_gpu_utilization_ratio", gpu="0") == [pytest.approx(0.87)]
    assert at(samples, "bessemer_gpu_utilization_ratio", gpu="1") == []
    assert at(samples, "bessemer_gpu_memory_used_bytes", gpu="0") == [1024 * 2**20]
    assert at(samples, "bessemer_gpu_memory_bytes", gpu="1") == [143771 * 2**20]


def test_our_server_has_its_own_metrics_switched_on() -> None:
    assert Clone.from_environment().child_environment("http://127.0.0.1:4200/api")["PREFECT_SERVER_METRICS_ENABLED"] == "true"
