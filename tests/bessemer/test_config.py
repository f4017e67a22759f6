"""Presets and overrides: what is right loads, what is wrong is refused with the key and the nearest right one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bessemer.config import PRESETS, Config, Preset, known_keys, load, parse_set
from contract.config import canonical_json
from contract.errors import ConfigError, PipelineError


def test_the_form_lists_exactly_the_preset_files():
    assert {preset.value for preset in Preset} == {path.stem for path in PRESETS.glob("*.yaml")}


@pytest.mark.parametrize("preset", [preset.value for preset in Preset])
def test_every_preset_loads(preset: str):
    assert isinstance(load(preset), Config)


def test_the_350m_preset_is_the_design_s():
    model = load("350m").model
    assert (model.hidden_size, model.intermediate_size, model.num_layers, model.num_heads, model.num_kv_heads, model.context) == (
        1024,
        2816,
        24,
        16,
        4,
        2048,
    )
    assert load("350m").tokenizer.vocab_size == 32000


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train.max_stepz", 5, "train.max_stepz is no setting; the nearest is train.max_steps"),
        ("max_steps", 5, "max_steps is no setting; the nearest is train.max_steps"),
        ("dedup.treshold", 0.8, "dedup.treshold is no setting; the nearest is dedup.threshold"),
        ("train.max_steps", "many", r"train.max_steps: .*valid integer.* \(given: many\)"),
        ("train.max_steps", 0, r"train.max_steps: .*greater than 0.* \(given: 0\)"),
        ("dedup.threshold", 1.5, r"dedup.threshold: .*less than or equal to 1"),
        ("align.methods", ["pppo"], r"align.methods.0: Input should be 'sft', 'reward', 'ppo'.* or '.*' \(given: pppo\)"),
        ("align.export", "reward", r"align.export: Input should be 'pretrain', 'sft', 'ppo'.* \(given: reward\)"),
        ("evaluate.scored", ["pppo"], r"evaluate.scored.0: Input should be 'base', 'sft', 'ppo'.* \(given: pppo\)"),
        ("sources", [], r"sources: .*at least 1"),
        ("train.max_steps.x", 1, "train.max_steps"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(key: str, value: object, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        load("smoke", {key: value})


def test_two_sources_of_one_name_are_refused():
    sources = [{"uri": "/a", "domain": "web"}, {"uri": "/b", "domain": "web"}]
    with pytest.raises(ConfigError, match="web"):
        load("smoke", {"sources": sources})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="there is no preset smoek; the nearest is smoke"):
        load("smoek")


def test_set_reads_yaml():
    assert parse_set("train.max_steps=50") == ("train.max_steps", 50)
    assert parse_set('sources=[{uri: "file:///x/*.jsonl", domain: web}]') == ("sources", [{"uri": "file:///x/*.jsonl", "domain": "web"}])
    for text in ("train.max_steps", "=3", "a=[1"):
        with pytest.raises(ConfigError, match="--set"):
            parse_set(text)


LEAVES = [key for key in known_keys() if not any(other.startswith(key + ".") for other in known_keys())]


@given(
    st.sampled_from(LEAVES),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers(), max_size=2),
)
def test_any_override_loads_or_is_refused_with_a_sentence(key: str, value: object):
    try:
        load("smoke", {key: value})
    except PipelineError as error:
        assert str(error).strip() and "Traceback" not in str(error)


def test_places_and_speed_are_no_identity():
    """Only `storage`, `run` and `run_on` may differ without any stage's slice differing; here the composed slices of the simple stages."""
    a = load("smoke")
    b = load("smoke", {"storage.root": "file:///elsewhere", "run.workers": 1, "run.dtype": "bfloat16", "run_on.train": "gpu"})
    names = [name for name in Config.model_fields if name not in ("storage", "run", "run_on")]
    assert [canonical_json(getattr(a, name)) for name in names] == [canonical_json(getattr(b, name)) for name in names]


def test_parts_after_training_run_where_it_does_unless_they_are_named():
    run_on = load("350m", {"run_on.export": "cpu"}).run_on
    assert run_on.pools() == {"curate": "cpu", "train": "gpu", "align": "gpu", "evaluate": "gpu", "export": "cpu"}
    assert load("laptop").run_on.pools() == {}
    assert load("smoke", {"run_on.curate": "cpu"}).run_on.pools() == {"curate": "cpu"}
