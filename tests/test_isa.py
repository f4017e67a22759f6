"""What `make test-isa` promises: no numeric test is left out, libraries do what they are told, a failure says with whose kernels."""

from pathlib import Path

import pytest

from tests.isa import KINDS, NUMERIC, ROOT, Kind, ask, judge, unheeded
from tests.test_arrows import imports, modules

COMPUTING = {"torch", "numba", "scipy", "fasttext", "kenlm"}
OLDEST = next(kind for kind in KINDS if kind.name == "SSE4.2")


def test_no_room_that_computes_is_left_out():
    rooms = {path.parts[0] for path in modules() if COMPUTING & {name.partition(".")[0] for name in imports(path)}}
    bounded = {path for path in (ROOT / "tests").glob("*/**/*.py") if "tests.rounding" in imports(path)}
    assert rooms and bounded
    assert rooms | {path.relative_to(ROOT).parts[1] for path in bounded} <= set(NUMERIC), "tests/isa.py has the list"


@pytest.mark.slow
def test_each_library_keeps_to_the_oldest_instruction_set_when_it_is_told_and_not_otherwise():
    told = {name: value for variables, _ in OLDEST.libraries.values() for name, value in variables.items()}
    assert unheeded(OLDEST.libraries, ask(told)) == []
    deaf = unheeded(OLDEST.libraries, ask({}))
    assert [line.split(": ")[1].split()[0] for line in deaf] == list(OLDEST.libraries), "whatever processor this is, it is a newer one"


PASSES_HERE_ALONE = """
import numpy, torch

def test_of_this_processor():
    assert torch.backends.cpu.get_cpu_capability() != "DEFAULT"

def test_of_any():
    assert numpy.float64(1) + 1 == 2
"""


@pytest.mark.slow
def test_a_test_that_passes_on_this_processor_alone_fails_and_the_library_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "test_it.py").write_text(PASSES_HERE_ALONE)
    kind = Kind("old", "sse4_2", {name: OLDEST.libraries[name] for name in ("torch", "NumPy")})
    _, is_well = judge(kind, "AnyMaker", [str(tmp_path / "test_it.py")], plain=set())
    lines = capsys.readouterr().out.splitlines()
    assert not is_well
    assert lines[0].startswith("old           1 failed, 1 passed in ")
    assert [line.partition("::")[2] for line in lines if "FAILED" in line] == ["test_of_this_processor: with torch alone"]
