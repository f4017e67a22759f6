"""KenLM's programs end with the process that uses them, also in the three places where that is in the middle of a stage."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contract.child_processes import die_with_parent
from contract.config import RunOptions
from contract.errors import StageFailed
from engine.installed_tools import tool
from engine.stage import Output
from evaluation.baselines import train_kenlm
from filters.config import PerplexityConfig
from filters.perplexity import train
from services.background import wait_until
from sources.config import AlignDataConfig
from sources.preferences import Pair
from store.attempt import Attempt
from store.root import open_root
from tasks.align_data import _write_gold
from tests.engine.test_launch import ROOT, Heard, alive, wait_for

pytestmark = pytest.mark.slow

SLOW = """#!/bin/sh
echo $$ > "$(dirname "$0")/pid"
exec sleep 60
"""
PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.prefix = sys.argv[2]  # where set-up puts tools
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))  # as a run leaves
from tests.engine.test_child_programs import USES
USES[sys.argv[1]](Path(sys.argv[2]))
"""


def perplexity(folder: Path) -> None:
    train(["one two three"], tool("lmplz"), tool("build_binary"), folder, PerplexityConfig())


def baselines(folder: Path) -> None:
    train_kenlm(np.ones((2, 5), np.int64), 3, tool("lmplz"), tool("build_binary"), folder)


def gold_judge(folder: Path) -> None:
    out = Output(Attempt.new(open_root(folder.as_uri()), "align_data", "f" * 64, ""), RunOptions(), Heard(), adopt=False)
    _write_gold([Pair("a", f"answer {n}", (), "g", None) for n in range(40)], AlignDataConfig(), out)


USES: dict[str, Callable[[Path], None]] = {use.__name__: use for use in (perplexity, baselines, gold_judge)}


@pytest.mark.parametrize(
    ("use", "number"), [("perplexity", signal.SIGKILL), ("baselines", signal.SIGTERM), ("gold_judge", signal.SIGKILL)], ids=USES
)
def test_a_tool_at_work_ends_with_the_process_that_started_it(tmp_path: Path, use: str, number: int):
    (tmp_path / "bin").mkdir()
    for name in ("lmplz", "build_binary"):
        (tmp_path / "bin" / name).write_text(SLOW)
        (tmp_path / "bin" / name).chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, use, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    pid = int(wait_for(tmp_path / "bin" / "pid"))
    try:
        assert alive(pid)
        process.send_signal(number)
        assert process.wait(10) == (75 if number == signal.SIGTERM else -number)
        assert wait_until(lambda: not alive(pid), 2), "left behind"
    finally:
        process.kill()
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


TELLS = """#!/bin/sh
tr '\\0' '\\n' < /proc/self/environ > "$(dirname "$0")/environment"
exit 1
"""
TOLD = {"PATH": os.environ["PATH"], "TMPDIR": "/tmp", "LD_LIBRARY_PATH": "/opt/boost/lib"}
SECRETS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "OWN_KEY")


@pytest.mark.parametrize("use", USES)
def test_a_tool_is_told_where_things_are_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str):
    (tmp_path / "bin").mkdir()
    for name in ("lmplz", "build_binary"):
        (tmp_path / "bin" / name).write_text(TELLS)
        (tmp_path / "bin" / name).chmod(0o755)
    for name, value in (TOLD | dict.fromkeys(SECRETS, "s3cret")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))  # where set-up puts tools
    with pytest.raises(StageFailed, match="lmplz ended with 1"):
        USES[use](tmp_path)
    told = dict(line.split("=", 1) for line in (tmp_path / "bin" / "environment").read_text().splitlines())
    assert TOLD.items() <= told.items()
    assert not [name for name, value in told.items() if name in SECRETS or "s3cret" in value]


def test_a_child_whose_parent_died_before_it_asked_ends():
    nobody = 0
    assert subprocess.run(["true"], preexec_fn=lambda: die_with_parent(nobody)).returncode == 1
    us = os.getpid()
    assert subprocess.run(["true"], preexec_fn=lambda: die_with_parent(us)).returncode == 0
