"""One undisturbed run of every stage, which the whole-flow tests compare with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from store.root import open_root
from store.storage import Storage
from tests.e2e.installation import PLANTED, Installation, where

ROOT = Path(__file__).parents[2]


def arguments(storage: Storage, flow: str = "pretrain") -> list[str]:
    settings = (("--set", f"{key}={value}") for key, value in where(storage).items())
    return ["run", flow, "--preset", "smoke", *chain.from_iterable(settings)]


def command(storage: Storage) -> list[str]:
    return [sys.executable, "-m", "flows", *arguments(storage)]


def run(storage: Storage, **more: str) -> subprocess.CompletedProcess:
    """The whole flow in the foreground, which needs no Prefect server: the address is that of a closed port."""
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"} | more
    return subprocess.run(command(storage), env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Made with secrets in its environment; what the run said lies beside the root."""
    folder = tmp_path_factory.mktemp("undisturbed")
    storage = open_root((folder / "root").as_uri())
    done = run(storage, **PLANTED)
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return storage


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("installed"))
    try:
        installation.services("up")
        yield installation
    finally:
        installation.services("down")
