"""The command line on bad input: one message that says what to do, a status that is not zero, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.__main__ import main
from store.root import open_root
from store.run_records import records
from tests.store.fault_proxy import REFUSALS, FaultProxy


def run(tmp_path: Path, *more: str, flow: str = "curate") -> int:
    root = f"storage.root={(tmp_path / 'root').as_uri()}"
    return main(["run", flow, "--preset", "smoke", "--set", root, "--set", "run.workers=1", *more])


def corpus(tmp_path: Path, lines: list[dict]) -> str:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"sources=[{{uri: {file.as_uri()!r}, domain: web}}]"


def published(tmp_path: Path) -> list[str]:
    return [str(path) for path in (tmp_path / "root").rglob("manifest-*.json")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "nonsense"], "there is no preset nonsense"),
        (["--set", "train.max_stepz=5"], "the nearest is train.max_steps"),
        (["--set", "train.max_steps=-1"], "train.max_steps"),
        (["--set", "train.max_steps"], "write key=value"),
        (["--until", "nonsense"], "curate has no stage nonsense"),
        (["--set", "storage.root=ftp://x"], "storage.root ftp://x has the scheme ftp"),
        (["--set", "sources=[{uri: /does/not/exist.jsonl, domain: web}]"], "/does/not/exist.jsonl"),
        (["--set", "sources=[{uri: /tmp, domain: weeb}]"], "sources.0.domain"),
    ],
)
def test_bad_input_ends_with_2_and_a_sentence(tmp_path: Path, capsys, arguments: list[str], sentence: str):
    assert run(tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not published(tmp_path)


def test_an_empty_source_is_named(tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path, "--set", f"sources=[{{uri: {str(tmp_path / 'empty')!r}, domain: web}}]") == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err
    assert not published(tmp_path)


@pytest.mark.slow
def test_a_corpus_that_nothing_survives_in_says_which_rule_took_most(tmp_path: Path, capsys):
    lines = [{"text": f"short {i}"} for i in range(40)]
    assert run(tmp_path, "--set", corpus(tmp_path, lines), "--set", "split.trusted_domains=[]", "--set", "evaluate.items.items=0") == 2
    assert "words" in capsys.readouterr().err


def test_until_stops_after_the_stage_and_show_prints_its_ledger(tmp_path: Path, capsys):
    lines = [{"text": f"document number {i} has a few words of its own"} for i in range(12)]
    file = tmp_path / "corpus.jsonl"
    arguments = ["--set", corpus(tmp_path, lines)]
    file.write_bytes(file.read_bytes() + b"{broken\n")
    assert run(tmp_path, *arguments, "--until", "ingest") == 0
    assert "stopped after ingest" in capsys.readouterr().out
    assert len(published(tmp_path)) == 1
    place = ["--preset", "smoke", "--set", f"storage.root={(tmp_path / 'root').as_uri()}", *arguments]
    assert main(["show", "ingest", *place]) == 0
    assert "in 13 + added 0 = out 12 + dropped 0 + quarantined 1" in capsys.readouterr().out
    assert main(["show", "deduplicate", *place]) == 2
    assert main(["plan", "curate", *place]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert plan[0].startswith("ingest") and "cached" in plan[0]
    assert "run" in plan[1] and "first run" in plan[1]


def test_a_changed_setting_explains_the_miss(tmp_path: Path, capsys):
    arguments = ["--set", corpus(tmp_path, [{"text": f"document number {i} has a few words of its own"} for i in range(12)])]
    assert run(tmp_path, *arguments, "--until", "deduplicate") == 0
    assert run(tmp_path, *arguments, "--until", "deduplicate", "--set", "dedup.threshold=0.85") == 0
    assert "dedup.threshold 0.8 -> 0.85" in capsys.readouterr().out


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", "curate", "--preset", "smoke", "--set", f"storage.root={(tmp_path / 'file' / 'root').as_uri()}"]) == 2
    assert "cannot write under storage.root" in capsys.readouterr().err


def test_a_full_disk_is_said_and_publishes_nothing(tmp_path: Path, capsys):
    root = tmp_path / "root"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        assert run(tmp_path, "--set", corpus(tmp_path, [{"text": "a document"}])) == 1
        assert "bytes are free under" in capsys.readouterr().err
        assert not published(tmp_path)
    finally:
        subprocess.run(["umount", str(root)], check=True)


@pytest.mark.slow
def test_sigterm_however_often_ends_with_75_and_one_sentence(tmp_path: Path):
    """Whoever stops a process group sends it twice: `make`, systemd and a terminal do."""
    root = tmp_path / "root"
    place = ["--set", f"storage.root={root.as_uri()}", "--set", "run.workers=1"]
    command = [sys.executable, "-m", "flows", "run", "curate", "--preset", "smoke", *place]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 120
        while not list(root.glob("runs/*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 75, said
    assert said == "bessemer: stopped; the same command goes on from here\n"
    (record,) = (value for _, value in records(open_root(root.as_uri())))
    assert record["state"] == "checkpointed" and record["ended"] is not None


@pytest.mark.parametrize("kind", ["unknown_key", "invalid_token", "token_refresh", "request_expired"])
@pytest.mark.slow
def test_wrong_credentials_end_with_one_line(kind: str):
    """In a process of its own, in time: nothing of it may hang at its end."""
    with FaultProxy("http://127.0.0.1:9", rate=1.0, seed=1, kinds=[kind]) as proxy:
        place = ["--set", "storage.root=s3://bucket/x", "--set", f"storage.endpoint_url={proxy.url}"]
        wrong = os.environ | {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong", "AWS_DEFAULT_REGION": "us-east-1"}
        command = [sys.executable, "-m", "flows", "run", "curate", "--preset", "smoke", *place]
        done = subprocess.run(command, env=wrong, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("bessemer: S3 refused s3://bucket/x/") and REFUSALS[kind][1] in done.stderr
