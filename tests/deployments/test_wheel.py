"""The project as a wheel, away from any clone: presets are in it, runs go to the current folder, and services say what they need."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bessemer.config import PRESETS

REPO = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "tests", "docs", "benchmarks", "__pycache__", "*.egg-info")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files on a path of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPO, folder / "source", ignore=LEFT_OUT)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*build, str(folder / "source")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def bessemer(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    gone = ("BESSEMER_HOME", "BESSEMER_STORAGE_ROOT", "PREFECT_API_URL")
    environment = {name: value for name, value in os.environ.items() if name not in gone} | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", "flows", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_every_preset_is_in_it(installed: Path):
    there = {path.name: path.read_bytes() for path in (installed / "deployments" / "presets").iterdir()}
    assert there == {path.name: path.read_bytes() for path in PRESETS.glob("*.yaml")}


def test_plan_and_run_work_in_any_folder_and_keep_their_runs_there(installed: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "my.yaml").write_text("base: smoke\nrun: {workers: 1}\nsources: [{uri: a.txt, domain: web}]\n")
    plan = bessemer(installed, tmp_path, "plan", "--preset", "smoke")
    assert (plan.returncode, plan.stdout.splitlines()[0][:20]) == (0, "ingest              "), plan.stderr
    done = bessemer(installed, tmp_path, "run", "curate", "--config", "my.yaml", "--until", "ingest")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "last" / "my.yaml" / "ingest.json").exists()
    assert not (installed / "runs").exists()


def test_services_say_that_they_need_a_clone(installed: Path, tmp_path: Path):
    done = bessemer(installed, tmp_path, "up")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the services need a clone of the project" in done.stderr and str(installed) in done.stderr
