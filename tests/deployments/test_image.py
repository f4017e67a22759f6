"""The Dockerfile and `make test-fresh`: both run deployments/image.sh, on what a checkout has. No engine builds the image here."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

REPO = Path(__file__).parents[2]
FRESH = REPO / "tests" / "deployments" / "fresh.sh"


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in (REPO / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_one_step_of_the_image_is_the_script_that_is_tried_in_bare_systems() -> None:
    (step,) = [rest for name, rest in instructions() if name == "RUN"]
    script = re.sub(r"^--mount=\S+ ", "", step).split()[0]
    assert script == "deployments/image.sh" and os.access(REPO / script, os.X_OK)
    assert f"enter 0 /bessemer {script}" in FRESH.read_text() and os.access(FRESH, os.X_OK)
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "VOLUME", "USER", "CMD"}
    assert names.index("ARG") < names.index("FROM") < names.index("COPY") < names.index("RUN") < names.index("USER")
    assert dict(instructions())["USER"] == "${UID}:${UID}", "Kubernetes tells a user that is not root by its number"


def test_the_image_has_the_files_of_a_checkout_and_no_others(tmp_path: Path) -> None:
    """By the rules of Docker's own client, on a checkout in which everything was done that makes files."""
    listed = subprocess.run(["git", "-C", REPO, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git, or no repository")
    tracked = {name for name in listed.stdout.split("\0") if name and (REPO / name).exists()}
    made = [".venv/bin/python", ".cache/services/password", ".prefect/prefect.db", "runs/last/x", "build/x", "store/__pycache__/a.pyc",
            ".mypy_cache/x", ".hypothesis/x", "bessemer.egg-info/x", "infra/terraform/dev/.terraform/x", ".git/config"]  # fmt: skip
    for name in (*tracked, *made):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rules = [line for line in (REPO / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert {name for name in exclude_paths(str(tmp_path), rules) if (tmp_path / name).is_file()} == tracked


def test_what_a_bare_system_needs_here_is_said(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "id"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    refused = subprocess.run([tmp_path / "bash", FRESH], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert refused.returncode == 2 and refused.stdout == ""
    expected = "it needs debootstrap: apt-get install debootstrap" if os.geteuid() == 0 else "it needs root: "
    assert refused.stderr.startswith(f"test-fresh: {expected}") and refused.stderr.count("\n") == 1
