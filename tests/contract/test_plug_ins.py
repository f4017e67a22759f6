"""A plug-in is found by its dotted name or its entry point, and what is wrong with it is one sentence."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.errors import ConfigError
from contract.plug_ins import load_plug_in

GROUP = "bessemer.tests"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that nobody has imported, with an entry point as pip would have installed it."""
    name = f"their_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "things.py").write_text("COUNT = 7\nclass Box:\n    COUNT = 8\n")
    (tmp_path / name / "broken.py").write_text("raise RuntimeError('no licence file')\n")
    (tmp_path / name / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nseven = {name}.things:COUNT [extra]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_dotted_name_and_an_entry_point_give_the_object(package: str):
    assert load_plug_in(f"{package}.things:COUNT", GROUP, int, "a.b") == 7
    assert load_plug_in(f"{package}.things:Box.COUNT", GROUP, int, "a.b") == 8
    assert load_plug_in("seven", GROUP, int, "a.b") == 7


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("{}.things:NONE", "cannot be loaded .*NONE"),
        ("{}.nothing:COUNT", r"cannot be loaded .*No module named .*\)$"),
        ("nobody.has_this:COUNT", "cannot be loaded .*PYTHONPATH"),
        ("{}.leaves:COUNT", "SystemExit: 3"),
        ("{}.broken:COUNT", "RuntimeError: no licence file"),
        ("{}.things:Box", "is a type; a builtins.int is expected"),
        ("eight", "'eight' is neither package.module:OBJECT nor an entry point; those in bessemer.tests: seven"),
        ("{}.things", "neither package.module:OBJECT"),
        (":COUNT", "cannot be loaded"),
        ("{}.things:", "cannot be loaded"),
    ],
)
def test_what_is_wrong_is_a_sentence_that_begins_with_the_setting(package: str, name: str, sentence: str):
    with pytest.raises(ConfigError, match=f"^a.b: .*{sentence}"):
        load_plug_in(name.format(package), GROUP, int, "a.b")


def test_a_name_that_two_packages_offer_is_refused_whatever_the_order_of_the_path(package: str, tmp_path: Path):
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nseven = {package}.things:Box.COUNT\n")
    with pytest.raises(ConfigError, match=f"seven is the entry point of {package}.things:Box.COUNT and {package}.things:COUNT; write"):
        load_plug_in("seven", GROUP, int, "a.b")
