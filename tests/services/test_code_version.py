"""The digest that deployments carry: it changes with our code, and with nothing else that lies in a clone."""

import shutil
from pathlib import Path

import pytest

from services.code_version import ROOMS, code_digest, others
from tests.test_arrows import MAY_IMPORT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in (*ROOMS, "prefect.yaml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_every_room_counts():
    assert {*ROOMS} == {*MAY_IMPORT}


@pytest.mark.parametrize(
    "path", ["prefect.yaml", "flows/train.py", "infra/machines/scaler.py", "deployments/presets/smoke.yaml", "store/new.py"]
)
def test_other_code_is_another_version(clone: Path, path: str):
    before = code_digest(clone)
    assert before == code_digest(ROOT)
    with open(clone / path, "a") as file:
        file.write("\n")
    assert code_digest(clone) != before


def test_what_is_not_ours_is_no_other_version(clone: Path):
    before = code_digest(clone)
    for path in ("my_reader/reader.py", "tests/test_x.py", "flows/__pycache__/x.pyc", "notes.py"):
        (clone / path).parent.mkdir(exist_ok=True)
        (clone / path).write_text("x = 1\n")
    assert code_digest(clone) == before


def test_a_version_of_a_persons_own_is_compared_with_nothing():
    assert others([None, "", "1.2.0", "main", "0" * 40, "a" * 12, "b" * 12], "a" * 12) == ["b" * 12]
