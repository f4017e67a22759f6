"""Every setting with values of a wrong kind: refused when it is loaded, by its name, or listed here with why it may have them."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from bessemer.config import Config, known_keys, load
from bessemer.layers import setting_at
from bessemer.preflight import refuse_what_would_fail_later
from contract.errors import ConfigError, PipelineError, StageFailed
from engine.installed_tools import language_model
from filters.config import LANGUAGES
from tasks.evaluate import evaluate

GROUPS = {key.rpartition(".")[0] for key in known_keys()}
SETTINGS = [key for key in known_keys() if key not in GROUPS]
WRONG: dict[str, list[Any]] = {
    "a truth": [True, False],
    "a mapping": [{"x": 1}],
    "an empty mapping": [{}],
    "a list": [[1.5], ["nonsense"], [{}]],
    "an empty list": [[]],
    "a text": ["nonsense", "\0"],
    "an empty text": [""],
    "negative": [-1, -0.5],
    "zero": [0],
    "a fraction": [0.5],
    "not finite": [math.nan, math.inf],
    "absurd": [2**70, 1e30],
}

FINE: dict[str, dict[str, tuple[str, ...]]] = {
    "a truth": {"it is what these are": ("run.compile", "model.tie_embeddings", "evaluate.baselines")},
    "a mapping": {},
    "an empty mapping": {"nothing differs from our own bounds": ("filters.select.domains",)},
    "a list": {
        "texts of any kind": (
            "filters.rules.unwanted_phrases",
            "filters.rules.stop_words",
            "filters.toxicity.labels",
            "filters.toxicity.exempt",
        )
    },
    "an empty list": {
        "none is preferred, trusted or looked for": ("dedup.prefer", "split.trusted_sources", "split.trusted_domains"),
        "the rule finds none": ("filters.rules.unwanted_phrases", "filters.pii.labels", "filters.toxicity.exempt"),
        "no model reads them": ("filters.toxicity.labels",),
        "there are none by default": ("filters.signals", "evaluate.items.tasks"),
    },
    "a text": {
        "words of the model card": ("export.name", "export.description", "export.license"),
        "a folder of that name; probed before anything runs": ("storage.root",),
        "a pool of that name; looked up before anything runs": tuple(key for key in SETTINGS if key.startswith("run_on.")),
        "a path; looked up before anything runs": ("filters.toxicity.model", "train.init_from"),
    },
    "an empty text": {},
    "negative": {},
    "zero": {
        "false": ("run.compile", "model.tie_embeddings", "evaluate.baselines"),
        "a seed": tuple(key for key in SETTINGS if key.endswith("seed")),
        "a bound that lets nothing, or everything, through": tuple(
            key
            for key in SETTINGS
            if key.startswith(("filters.select.default.", "gates.")) and not key.endswith(("perplexity_middle", "max_mean_word_chars"))
        ),
        "a share": ("dedup.estimate_margin", "filters.contamination.max_overlap_fraction", "evaluate.overlap"),
        "none are asked for": ("split.least_documents", "evaluate.items.items", "evaluate.samples"),
        "it turns this off": tuple(
            key
            for key in SETTINGS
            if key.rpartition(".")[2]
            in (
                "grad_clip",
                "spike_sigmas",
                "weight_decay",
                "warmup_steps",
                "decay_fraction",
                "final_fraction",
                "beta1",
                "beta2",
                "momentum",
            )
            or key.rpartition(".")[2]
            in ("most_rollbacks", "validation_blocks", "validation_pairs", "value_iterations", "patience", "top_k")
            or key.rpartition(".")[2] in ("kl_coefficient", "gamma", "gae_lambda", "zero_stage")
        ),
    },
    "a fraction": {"it is a number with a fraction": tuple(key for key in SETTINGS)},
    "not finite": {},
    "absurd": {},
}
"""By kind of value: why settings may have it. Everything else is refused."""


def kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) in (Literal, dict, tuple):
        return {get_origin(annotation)}
    inner = get_args(annotation)
    return set().union(*map(kinds, inner)) if inner else {annotation}


def takes(key: str) -> set[Any]:
    setting = setting_at(Config, tuple(key.split(".")))
    assert setting is not None
    return kinds(setting.annotation)


def may_have(kind: str, key: str) -> bool:
    if kind == "a fraction" and float not in takes(key):
        return False
    return any(key in keys for keys in FINE[kind].values())


@pytest.mark.parametrize("key", SETTINGS)
def test_a_value_of_a_wrong_kind_is_refused_by_the_setting_s_name(key: str):
    for kind, values in WRONG.items():
        for value in values:
            try:
                load("smoke", {key: value})
            except ConfigError as error:
                assert all(key.rpartition(".")[2] in line for line in str(error).splitlines()), f"{kind} {value!r}: {error}"
            else:
                assert may_have(kind, key), f"{kind} {value!r} is taken"


def test_what_is_listed_as_fine_is_taken():
    """No reason outlives its setting."""
    for kind, reasons in FINE.items():
        for keys in reasons.values():
            for key in keys:
                assert key in SETTINGS
                if kind not in ("a fraction", "a truth"):
                    assert any(_loads(key, value) for value in WRONG[kind]), f"{key} does not take {WRONG[kind]}"


def _loads(key: str, value: Any) -> bool:
    try:
        return bool(load("smoke", {key: value}))
    except ConfigError:
        return False


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"run.device": "gpu"}, r"run.device: Input should be 'cpu' or 'cuda' \(given: gpu\)"),
        ({"filters.language.target": "english"}, "filters.language.target: 'english' is no language"),
        ({"filters.language.target": "zz"}, "filters.language.target: 'zz' is no language"),
        ({"train.max_steps": True}, "train.max_steps: Input should be no true"),
        ({"sources": [{"uri": "/tmp", "domain": "web", "max_bytes": True}]}, "sources.0.max_bytes: Input should be no true"),
        ({"mix.weights.web": 1e300}, "mix.weights.web: Input should be less than"),
        ({"dedup.prefer": ["wikipedia"]}, "dedup.prefer: there is no wikipedia among academic, books"),
        ({"split.trusted_sources": ["wikipedia"]}, "split.trusted_sources: there is no wikipedia"),
        ({"split.trusted_domains": ["book"]}, "split.trusted_domains.0: Input should be 'web', 'books'"),
        ({"evaluate.scored": ["dpo"], "align.methods": ["ppo"]}, "evaluate.scored: nothing is scored, as none of dpo is made"),
        ({"evaluate.scored": []}, "evaluate.scored: .*at least 1"),
        ({"train.global_batch_tokens": 1000}, "train.global_batch_tokens: 1000 is no multiple of model.context 128"),
        ({"run.ranks": 3}, r"run.ranks: 3 ranks cannot share the 8 rows of a step \(train.global_batch_tokens / model.context\)"),
        ({"run.ranks": 8, "align.sft.batch_size": 12}, r"run.ranks: 8 .* 12 rows of a step \(align.sft.batch_size\)"),
        ({"align.ppo.minibatches": 3}, "align.ppo.minibatches: 3 must divide align.ppo.batch_size 16"),
        ({"align.ppo.max_new_tokens": 128}, "align.ppo.max_new_tokens: 128 leaves no room"),
        ({"evaluate.max_new_tokens": 500}, "evaluate.max_new_tokens: 500 leaves no room"),
        ({"split.validation": 0}, "split.validation: 0 leaves alignment no prompts"),
        ({"split.test": 0}, "split.test: 0 leaves alignment no prompts"),
        ({"align_data.sources": []}, "align_data.sources: alignment needs"),
        ({"align_data.min_response_chars": 300}, "align_data: min_response_chars is 300 and max_response_chars 200"),
        ({"filters.rules.stop_words": []}, "filters: rules.stop_words is empty"),
        ({"filters.toxicity": {"model": "/x", "labels": []}}, "filters.toxicity: model has an effect with labels only"),
        ({"filters.select.default.min_mean_word_chars": 11}, "filters.select: min_mean_word_chars 11 is above max_mean_word_chars 10"),
        ({"storage.root": "ftp://x"}, "storage.root ftp://x has the scheme ftp"),
        ({"storage.endpoint_url": "127.0.0.1:9000"}, "storage.endpoint_url 127.0.0.1:9000 has the scheme"),
        ({"run.ray_address": "somewhere"}, "run.ray_address: String should match pattern"),
        ({"evaluate.items.tasks": [{"name": "a", "uri": "ftp://x"}]}, "evaluate.items.tasks.0.uri: ftp://x has the scheme ftp"),
        ({"tokenizer.sample_bytes": 2**60}, "tokenizer.sample_bytes: .* is larger than any size"),
    ],
)
def test_what_would_fail_hours_later_is_refused_when_it_is_loaded(overrides: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        load("smoke", overrides)


def test_the_languages_are_those_that_the_model_tells_apart():
    import fasttext

    model = fasttext.load_model(str(language_model()))
    assert sorted(label.removeprefix("__label__") for label in model.get_labels()) == sorted(LANGUAGES)


NO_ALIGNMENT = {"align.methods": [], "align.export": "pretrain"}
DEEPSPEED_ALONE = {"align.engine": "plain", "train.engine": "deepspeed"}


@pytest.mark.parametrize(
    ("flow", "overrides", "sentence"),
    [
        ("pretrain", NO_ALIGNMENT | {"split.validation": 0}, "split.validation: 0 leaves evaluation nothing to score"),
        ("evaluate", NO_ALIGNMENT | {"split.validation": 0}, "split.validation: 0 leaves evaluation nothing to score"),
        ("train", {"train.init_from": "/absent"}, "train.init_from /absent holds no config.json"),
        ("curate", {"filters.toxicity.model": "/absent"}, "filters.toxicity.model is /absent, where no file is"),
        ("curate", {"evaluate.items.tasks": [{"name": "a", "uri": "/absent"}]}, "/absent of the task a"),
        ("pretrain", {"align_data.sources": [{"uri": "/absent", "domain": "conversation"}]}, "/absent does not exist"),
        ("curate", {"run.memory_bytes": 2**49}, "run.memory_bytes: .* is more than this machine's memory"),
    ],
)
def test_what_is_not_there_is_named_before_anything_runs(tmp_path: Path, flow: str, overrides: dict[str, Any], sentence: str):
    config = load("smoke", overrides | {"storage.root": tmp_path.as_uri()})
    with pytest.raises(PipelineError, match=sentence):
        refuse_what_would_fail_later(config, flow)
    if flow == "pretrain" and "align_data.sources" in overrides:
        refuse_what_would_fail_later(config, flow, elsewhere=("curate",))


def test_parts_that_need_nothing_of_it_are_not_refused(tmp_path: Path):
    config = load("smoke", NO_ALIGNMENT | {"split.validation": 0, "storage.root": tmp_path.as_uri()})
    for flow in ("curate", "train", "export"):
        refuse_what_would_fail_later(config, flow)


@pytest.mark.slow
def test_an_engine_that_is_not_installed_is_named(tmp_path: Path):
    """In an interpreter that sees every package of this one but DeepSpeed."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in (Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        for each in path.iterdir():
            if not each.name.startswith("deepspeed") and not (packages / each.name).exists():
                (packages / each.name).symlink_to(each)
    (tmp_path / "a.txt").write_text("a text")
    root = Path(__file__).parents[2]
    start = f"import sys; sys.prefix = {sys.prefix!r}\n"
    start += f"sys.path += [{str(root)!r}, {str(packages)!r}]; from flows.__main__ import main; sys.exit(main(sys.argv[1:]))"
    settings = [f"storage.root={(tmp_path / 'root').as_uri()}", f"sources=[{{uri: {tmp_path / 'a.txt'}, domain: web}}]", "run.workers=1"]

    def run(flow: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = [word for setting in (*settings, *more) for word in ("--set", setting)]
        command = [sys.executable, "-I", "-S", "-c", start, "run", flow, "--preset", "smoke", *words, "--until", "ingest"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    refused = run("pretrain")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "train.engine: deepspeed is not installed here" in refused.stderr and not (tmp_path / "root" / "artifacts").exists()
    for done in (run("curate"), run("pretrain", "train.engine=plain", "align.engine=plain")):
        assert done.returncode == 0, done.stderr


def test_evaluate_names_a_model_that_it_does_not_know():
    with pytest.raises(StageFailed, match="evaluate has no input raft; what can be aligned is sft, reward, ppo, dpo"):
        evaluate.work(*[None] * 7, raft=None)
