"""The table of ways to align: each row has what the rest of the code takes for granted, and a method is found everywhere by its row."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

from bessemer.config import load
from engine.runner import plan
from engine.stage import Engine
from flows.pretrain import body
from store.storage import Storage
from tasks.dpo import direct, dpo
from tasks.report import TITLES
from training.config import METHODS, POLICIES, AlignConfig, DpoConfig, FineTuneConfig, Method, Optimisation, settings_of
from training.objectives import DIRECT


def test_rows_settings_and_losses_are_of_the_same_methods():
    settings = {name for name, default in AlignConfig() if isinstance(default, Optimisation)}
    assert settings == METHODS.keys() and all(hasattr(settings_of(name)(), "max_steps") for name in METHODS)
    assert DIRECT.keys() == {name for name, method in METHODS.items() if method.direct}
    assert len(set(TITLES.values())) == len(METHODS) + 1, "the report's tables tell models apart by their titles"


@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_objective_takes_the_settings_that_its_class_adds(name: str):
    own = settings_of(name).model_fields.keys() - FineTuneConfig.model_fields.keys()
    inspect.signature(DIRECT[name]).bind("pairs", "pad_id", "device", "most_validation", reference="reference", **dict.fromkeys(own))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_trained_scored_exported_and_reported(local: Storage, tmp_path: Path, name: str):
    (tmp_path / "corpus.jsonl").write_text('{"text": "A document."}\n')
    sources = [{"uri": (tmp_path / "corpus.jsonl").as_uri(), "domain": "web"}]
    config = load("smoke", {"sources": sources, "align.methods": [name], "align.export": name, "evaluate.scored": [name]})
    plans = {planned.stage.name: planned for planned in plan(Engine(local, config, config.run, None, "smoke"), body)}  # type: ignore[arg-type]
    assert METHODS.keys() & plans.keys() == set(config.align.stages())
    assert plans[name].identity["config"]["method"] == getattr(config.align, name).model_dump(mode="json")
    for reader, role in (("evaluate", name), ("export", "model"), ("report", name)):
        assert plans[reader].inputs[role].fingerprint == plans[name].fingerprint


def test_a_further_direct_method_is_dpos_stage_with_a_name_a_version_and_settings_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "further", Method("Further", "moved further", direct=True, version=3))

    class Align(AlignConfig):
        further: DpoConfig = DpoConfig(beta=0.7)

    align = Align(methods=("further",), export="sft")
    made = direct("further")
    assert align.stages() == ["sft", "further"]
    assert (made.name, made.version, made.work, made.roles) == ("further", 3, dpo.work, dpo.roles)
    assert made.config(SimpleNamespace(align=align)).model_dump(mode="json")["method"] == align.further.model_dump(mode="json")
