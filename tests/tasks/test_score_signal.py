"""A signal of the user's own, as docs/plug-ins.md has it, in a temporary package: measured, judged, and known by its version."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from contract.config import RunOptions
from contract.errors import ConfigError, StageFailed
from engine.parts import stop_ray
from filters.config import FiltersConfig, SignalConfig
from filters.signals import Signal, signals_of
from tasks.gate_select import gate_select
from tasks.report import collect
from tasks.score_language import score_language
from tasks.score_pii import score_pii
from tasks.score_rules import score_rules
from tasks.score_signal import OWN, signal_stages
from tasks.score_toxicity import score_toxicity
from tasks.select import select
from tests.tasks import corpus

PAGE = (Path(__file__).parents[2] / "docs" / "plug-ins.md").read_text().split("## A signal")[1].split("\n## ")[0]
CODE, SETTINGS = (re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1] for language in ("python", "yaml"))  # type: ignore[index]
CALM = (
    "The harbour was quiet that morning. Boats that had come in with the tide lay beside the wall, and nobody was to be seen. "
    "A clerk with papers under his arm went along the quay to the office of the company. He had been asked for the list of the goods "
    "and could not find it. When the bell of the church began to ring, two children ran out of a door and down to the water. "
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's package, where this process and Ray's workers find it."""
    folder = tmp_path / "theirs" / "my_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "signals.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    yield folder
    forget()


def forget() -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == "my_package"]:
        del sys.modules[module]


def rows() -> list[dict[str, Any]]:
    texts = {"web": [CALM, CALM.replace(". ", "!!! "), CALM + " Twice."], "code": [CALM.replace(". ", "!!! ") + " Again."]}
    fixed = {"split": "train", "trusted": False, "kept": True, "survivor": None, "license": None, "language": None, "extra": None}
    return [
        {**fixed, "text": text, "domain": domain, "source": "t", "locator": f"{domain}{i}", "group": f"{domain}{i}"}
        | {"id": corpus.document_id("t", f"{domain}{i}")}
        for domain, found in texts.items()
        for i, text in enumerate(found)
    ]


def curated(root: Path, filters: dict[str, Any], workers: int = 1) -> Any:
    """Everything up to the gate, as flows/curate.py calls it."""
    run = corpus.Run(root, rows(), rows_a_part=2, filters=filters)
    run.engine = replace(run.engine, run_options=RunOptions(workers=workers))
    for role, one in {"rules": score_rules, "language": score_language, "toxicity": score_toxicity, "pii": score_pii}.items():
        run.made[role] = run.run(one)
    own = {f"signal_{name}": run.run(one) for name, one in signal_stages(run.engine.config.filters).items()}
    built_in = {role: run.made[role] for role in select.roles if role in run.made}
    run.made |= own | {"selection": run.engine.run(run.engine.plan(select, built_in | own))}
    run.made["gate"] = run.run(gate_select)
    return run


def settings(**changes: Any) -> dict[str, Any]:
    filters = yaml.safe_load(SETTINGS)["filters"]
    filters["signals"][0] |= changes
    return filters


def test_the_pages_signal_is_measured_and_drops_by_its_bounds(package: Path, tmp_path: Path):
    run = curated(tmp_path / "root", settings())
    measured = run.whole("signal_excitement")
    assert run.made["signal_excitement"].stage == "score_excitement" and measured.schema.field("mark_fraction").type == pa.float32()
    assert measured["mark_fraction"].to_pylist() == pytest.approx([row["text"].count("!") / len(row["text"]) for row in rows()])
    assert run.whole("selection")["reason"].to_pylist() == [None, "excitement", None, None], "code has no bound"
    assert run.made["selection"].ledger.documents.dropped == {"excitement": 1}
    domains = {name: {"documents": 2, "bytes": 1} for name in ("web", "code")}
    run.made["documents"].manifest["figures"]["domains"] = domains  # as ingest has them
    drawn = {(row["family"], row["signal"]): row for row in collect(run.made, [])["signals"]}
    row = drawn["excitement", "mark_fraction"]
    assert (row["reason"], row["dropped"], row["bounds"]) == ("excitement", 1, [0.02]), "the report shows it"
    assert sum(row["counts"]) + row["beyond"] == 4
    totals = run.made["gate"].json("statistics.json")["totals"][0]
    assert (totals["largest_reason"], totals["kept_fraction"]) == ("excitement", 0.75), "the gate knows the reason as one of select's"


def test_select_refuses_to_run_without_a_configured_signal(package: Path, tmp_path: Path):
    """Its bound would drop nothing, and nobody would hear of it."""
    run = curated(tmp_path / "root", settings())
    planned = run.engine.plan(select, {role: run.made[role] for role in select.roles if role in run.made})
    with pytest.raises(StageFailed, match=r"given the signals \[\], and filters.signals has \['excitement'\]"):
        run.engine.run(planned)


def test_version_and_settings_are_in_the_fingerprint_and_a_bound_is_select_s_alone(package: Path, tmp_path: Path):
    first = curated(tmp_path / "root", settings())
    bound = curated(tmp_path / "root", settings(bounds={"max_mark_fraction": 0.5}))
    assert bound.made["signal_excitement"].fingerprint == first.made["signal_excitement"].fingerprint
    assert bound.made["selection"].fingerprint != first.made["selection"].fingerprint
    assert bound.made["selection"].ledger.documents.dropped == {}
    config = SimpleNamespace(**vars(bound.engine.config) | {"filters": FiltersConfig(**settings(bounds={"max_mark_fraction": 0.7}))})
    inputs = {role: made for role, made in bound.made.items() if role in select.roles or role.startswith(OWN)}
    planned = replace(bound.engine, config=config).plan(select, inputs)
    assert planned.why == "signals.excitement.bounds.max_mark_fraction 0.5 -> 0.7"
    other = curated(tmp_path / "root", settings(settings={"mark": "."}))
    assert other.made["signal_excitement"].fingerprint != first.made["signal_excitement"].fingerprint
    (package / "signals.py").write_text(CODE.replace("version=1", "version=2"))
    forget()
    stage = signal_stages(first.engine.config.filters)["excitement"]
    planned = first.engine.plan(stage, {role: first.made[role] for role in stage.roles})
    assert planned.reuse is None and planned.why == "settings.mark . -> !; signal_version 1 -> 2"


@pytest.mark.slow
def test_workers_of_ray_find_the_package_and_give_the_same_digests(package: Path, tmp_path: Path):
    one = curated(tmp_path / "one", settings())
    try:
        two = curated(tmp_path / "two", settings(), workers=2)
    finally:
        stop_ray()
    assert {role: made.digest for role, made in two.made.items()} == {role: made.digest for role, made in one.made.items()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bounds": {"max_mark_fractions": 1}}, "excitement: there is no bound max_mark_fractions; did you mean max_mark_fraction?"),
        ({"domains": {"webs": {}}}, "excitement: there is no domain webs; did you mean web?"),
        ({"use": "my_package.signals:measure"}, "is a function; a filters.signals.Signal is expected"),
        ({"use": "my_package.nowhere:IT"}, "cannot be loaded"),
        ({"use": "no_package.signals:IT"}, "put its folder on PYTHONPATH"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_planned(package: Path, changes: dict[str, Any], sentence: str):
    config = SignalConfig(**settings(**changes)["signals"][0])
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        signals_of((config,))


def test_two_signals_of_one_name_are_refused(package: Path):
    config = SignalConfig(**settings()["signals"][0])
    with pytest.raises(ConfigError, match="EXCITEMENT is listed twice"):
        signals_of((config, config))
    (package / "others.py").write_text(CODE)
    other = config.model_copy(update={"use": "my_package.others:EXCITEMENT"})
    with pytest.raises(ConfigError, match=r"signals:EXCITEMENT and my_package\.others:EXCITEMENT are both called excitement"):
        signals_of((config, other))


@pytest.mark.parametrize("name", ["Excitement", "rules", "toxicity", "word_length", "exact_duplicate", "a-b", ""])
def test_a_name_that_something_else_has_is_refused(name: str):
    with pytest.raises(ConfigError, match="cannot be called"):
        Signal(name, 1, {"x": pa.int32()}, lambda texts, settings: {"x": []})


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ({"y": [1]}, "measure returned ['y']; its columns are ['x']"),
        ({"x": [1, 2]}, "2 values for 1 texts"),
        ({"x": ["a"]}, "not of its columns' types"),
        ({"x": [2**40]}, "not of its columns' types"),
        ({"x": 1}, "not of its columns' types"),
        (None, "measure raised TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_what_measure_returns_is_held_to_the_columns(made: Any, sentence: str):
    signal = Signal("length", 1, {"x": pa.int32()}, lambda texts, settings: made)
    with pytest.raises(StageFailed, match=re.escape(sentence)):
        signal.table(pa.chunked_array([["one"]]), {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": None}, "its version is None"),
        ({"version": True}, "its version is True"),
        ({"version": 0}, "its version is 0"),
        ({"columns": {"x": float}}, "the type of column 'x' is no Arrow type"),
        ({"columns": ["x"]}, "`columns` names what is measured"),
        ({"columns": {"id": pa.int32()}}, "none of them is `id`"),
        ({"measure": "x"}, "`measure` is a str, which cannot be called"),
        ({"name": "a" * 41}, "at most 40"),
    ],
)
def test_what_is_no_signal_is_refused_when_it_is_made(changes: dict[str, Any], sentence: str):
    given: dict[str, Any] = {"name": "length", "version": 1, "columns": {"x": pa.int32()}, "measure": lambda texts, settings: {"x": []}}
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        Signal(**given | changes)


@pytest.mark.parametrize("error", [KeyError("nope"), RuntimeError("two\nlines"), SystemExit(3)])
def test_what_measure_raises_is_one_line_with_the_signal_and_the_place(error: BaseException):
    def measure(texts: pa.ChunkedArray, settings: dict[str, Any]) -> dict[str, Any]:
        settings["changed"] = True
        raise error

    settings = {"mark": "!"}
    with pytest.raises(
        StageFailed, match=rf"^signal length: measure raised {type(error).__name__}: .* of {re.escape(__file__)}\)$"
    ) as caught:
        Signal("length", 1, {"x": pa.int32()}, measure).table(pa.chunked_array([["one"]]), settings)
    assert "\n" not in str(caught.value) and settings == {"mark": "!"}, "the settings are its own copy"


def test_no_number_is_no_value_and_no_text_asks_nobody():
    signal = Signal("length", 1, {"x": pa.float32()}, lambda texts, settings: {"x": [float("nan"), None, 1.5]})
    assert signal.table(pa.chunked_array([["a", "b", "c"]]), {})["x"].to_pylist() == [None, None, 1.5]
    assert len(signal.table(pa.chunked_array([[]], pa.string()), {})) == 0


def test_a_column_that_is_no_number_can_have_no_bound():
    signal = Signal("kind", 1, {"x": pa.string()}, lambda texts, settings: {"x": []})
    with pytest.raises(ConfigError, match="it can have no bound max_x, as none of its columns is a number"):
        signal.check(SignalConfig(use="a:B", bounds={"max_x": 1}))
