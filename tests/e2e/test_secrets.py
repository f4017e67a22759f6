"""What the environment holds as secrets is in nothing that whole runs leave behind."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from store.storage import Storage
from tests.e2e.installation import PLANTED, Installation, is_final

pytestmark = pytest.mark.e2e

SECRETS = [value.split("@")[0].rsplit(":", 1)[-1] for value in PLANTED.values()]


def found_in(folder: Path) -> Iterator[str]:
    """Files with a secret in them, tables decoded; no link is followed."""
    for file in (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()):
        data = file.read_bytes()
        if file.suffix == ".parquet":
            data += repr(pq.read_table(file, partitioning=None).to_pydict()).encode()
        yield from (f"{file} has {secret}" for secret in SECRETS if secret.encode() in data)


def test_no_file_of_a_whole_run_and_no_line_that_it_said_holds_a_secret(undisturbed: Storage):
    folder = Path(str(undisturbed.local(""))).parent
    assert (folder / "said.txt").stat().st_size > 1000 and len(list(folder.rglob("*.parquet"))) > 50
    assert not list(found_in(folder))


def test_neither_prefects_database_nor_a_log_holds_a_secret(installed: Installation, undisturbed: Storage):
    """After a run over what is there; logs, states and artifacts of runs are in the database."""
    installed.wait(installed.start("curate", **{"storage.root": undisturbed.uri}), is_final)
    folder = installed.home.parent
    assert list((installed.home / ".prefect").glob("prefect.db*")) and list(folder.rglob("*.log"))
    assert not list(found_in(folder))
