"""A file of settings of the user's own: over its base, under the overrides, from a disk or S3, and named by line where it is wrong."""

from pathlib import Path

import boto3
import pytest
import yaml

from bessemer.config import Config, ask, load
from contract.errors import ConfigError, PipelineError
from flows.__main__ import main
from store.root import open_root
from store.run_records import records
from store.s3 import S3Storage


@pytest.fixture
def file(tmp_path: Path):
    def written(text: str, name: str = "my.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def test_a_file_stands_on_its_base_and_overrides_stand_on_the_file(file):
    asked = ask(None, file("base: smoke\ntrain: {max_steps: 7, warmup_steps: 2}\ndedup.threshold: 0.9\n"), {"train.max_steps": 9})
    assert asked.config == load("smoke", {"train.warmup_steps": 2, "dedup.threshold": 0.9, "train.max_steps": 9})
    assert (asked.scope, asked.preset) == ("my.yaml", "smoke")
    assert {key: str(asked.layers.origin(key)) for key in ("train.warmup_steps", "train.max_steps", "model.context")} == {
        "train.warmup_steps": "my.yaml line 2",
        "train.max_steps": "override",
        "model.context": "preset smoke",
    }


def test_a_report_is_told_the_base_and_every_setting_over_it_but_no_place_and_no_secret(file, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_API_KEY", "hidden-elsewhere")
    written = file("base: smoke\ntrain: {max_steps: 7, warmup_steps: 2}\nmix.weights.web: 0.5\nexport.name: of-hidden-elsewhere\n")
    asked = ask(None, written, {"train.max_steps": 9, "storage.root": "s3://our-bucket/x", "mix.seed": 3})
    assert asked.file is not None
    assert asked.to_show() == {
        "title": f"my.yaml ({asked.file.digest[:12]}) over preset smoke",
        "settings": [
            ("export.name", '"of-<MY_API_KEY>"', "my.yaml line 4"),
            ("mix.seed", "3", "override"),
            ("mix.weights.web", "0.5", "my.yaml line 3"),
            ("train.max_steps", "9", "override"),
            ("train.warmup_steps", "2", "my.yaml line 2"),
        ],
    }
    assert ask("smoke").to_show() == {"title": "preset smoke", "settings": []}
    plain = ask(None, file("sources: [{uri: /tmp, domain: web}]\n"))
    assert plain.to_show()["title"].endswith("over the built-in defaults") and plain.to_show()["settings"][0][0] == "sources"


def test_a_file_without_a_base_stands_on_the_built_in_defaults(file):
    assert ask(None, file("sources: [{uri: /tmp, domain: web}]\ntrain:\n")).config == Config.model_validate(
        {"sources": [{"uri": "/tmp", "domain": "web"}]}
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: smoke\ntrain:\n  max_stepz: 5\n", "my.yaml line 3: train.max_stepz is no setting; the nearest is train.max_steps"),
        ("base: smoke\ntrain:\n\n  max_steps: many\n", r"my.yaml line 4: train.max_steps: .*valid integer.* \(given: many\)"),
        ("base: smoke\nsources:\n  - {uri: a, domain: web}\n  - {uri: b, domain: weeb}\n", "my.yaml line 4: sources.1.domain"),
        ("trian: {max_steps: 5}\nbase: smoke\n", "my.yaml line 1: trian is no setting; the nearest is train"),
        ("\nbase: smoek\n", "my.yaml line 2: there is no preset smoek; the nearest is smoke"),
        ("base: 124\n", "my.yaml line 1: base is 124; write the name of a preset"),
        ("base: smoke\ntrain: {}\ntrain: {max_steps: 5}\n", r"my.yaml cannot be read as YAML \(line 3: train is there twice\)"),
        ("base: smoke\ntrain: {max_steps: 5\n", r"my.yaml cannot be read as YAML \(line 3: "),
        ("base: smoke\nx: &x [1]\ny: *x\n", r"line 3: aliases are not taken"),
        ("- base\n", "my.yaml holds no settings"),
        ("base: smoke\n1: 2\n", "my.yaml line 2: 1 is no setting"),
        ("{}\n", "sources: Field required"),
        ("base: smoke\ntrain: 5\n", "my.yaml line 2: train: "),
    ],
)
def test_what_is_wrong_in_it_is_named_by_file_line_and_nearest_setting(file, text: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        ask(None, file(text))


def test_a_preset_beside_it_is_its_base_or_is_refused(file):
    assert ask("smoke", file("base: smoke\n")).config == load("smoke")
    with pytest.raises(ConfigError, match="has base: smoke, and the preset beside it is laptop"):
        ask("laptop", file("base: smoke\n"))
    with pytest.raises(ConfigError, match="has no base, so it stands on the built-in defaults, and the preset beside it is smoke"):
        ask("smoke", file("sources: [{uri: /tmp, domain: web}]\n"))


def test_a_place_without_a_file_is_refused(tmp_path: Path):
    (tmp_path / "large.yaml").write_bytes(b" " * (2**20 + 1))
    for place, sentence in (
        (str(tmp_path / "absent.yaml"), "there is no file"),
        (str(tmp_path), "there is no file"),
        ("/dev/zero", "there is no file"),
        (str(tmp_path / "large.yaml"), "1,048,577 bytes"),
        ("ftp://host/my.yaml", "name a file"),
        ("s3://bucket", "name a file"),
        ("s3://me:secret@bucket/my.yaml", "credentials do not belong"),
        ("x\0y", "NUL"),
        ("~nobody-here/x.yaml", "nobody-here"),
        ("", ""),
    ):
        if place:
            with pytest.raises(PipelineError, match=sentence):
                ask(None, place)


@pytest.mark.parametrize("name", ["a b#c?.yaml", "ü%20.yml", "smoke"])
def test_any_name_is_read_and_none_is_taken_for_a_preset(file, name: str):
    asked = ask(None, file("base: smoke\n", name))
    assert asked.config == load("smoke") and asked.scope != "smoke" and "/" not in asked.scope
    assert ask(None, Path(asked.file.where).as_uri()).file.text == b"base: smoke\n"


def test_a_group_merges_and_the_value_of_a_setting_is_replaced(file):
    """Wherever it is written, and for a mapping too: its dotted key changes one entry."""
    defaults = load("smoke").mix.weights
    whole = {"web": 3.0, "code": 1.0}
    for asked in (
        ask("smoke", None, {"mix.weights": whole}),
        ask("smoke", None, {"mix": {"weights": whole}}),
        ask(None, file("base: smoke\nmix: {weights: {web: 3, code: 1}}\n")),
    ):
        assert asked.config == load("smoke", {"mix.weights": whole}) and asked.config.mix.weights == whole
        assert asked.config.mix.total_tokens == load("smoke").mix.total_tokens
        (note,) = asked.notes()
        assert note.startswith("mix.weights is replaced as a whole, without academic, books, conversation, reference")
    for preset, before in (("smoke", defaults), ("laptop", load("laptop").mix.weights)):
        asked = ask(preset, None, {"mix.weights.web": 7})
        assert asked.config.mix.weights == before | {"web": 7} and not asked.notes()
    over_file = ask(None, file("base: smoke\nmix: {weights: {web: 3, code: 1}}\n"), {"mix.weights.web": 5})
    assert over_file.config.mix.weights == {"web": 5, "code": 1}
    assert ask("laptop").notes() == []


def test_bounds_of_a_domain_go_over_our_own_however_they_are_written(file):
    want = load("smoke", {"filters.select.domains": {"code": {"min_words": 2}}})
    asked = ask(None, file("base: smoke\nfilters: {select: {domains: {code: {min_words: 2}}}}\n"))
    assert asked.config == want == load("smoke", {"filters.select.domains.code.min_words": 2})
    assert want.filters.select.domains["code"]["max_mean_word_chars"] == 30 and not asked.notes()


def test_a_run_by_a_file_is_recorded_with_it_and_explained_by_it(tmp_path: Path, file, capsys):
    (tmp_path / "a.txt").write_text("a text")
    root = (tmp_path / "root").as_uri()
    text = f"base: smoke\nstorage: {{root: {root}}}\nrun: {{workers: 1}}\nsources: [{{uri: {tmp_path / 'a.txt'}, domain: web}}]\n"
    own = file(text)
    assert main(["run", "curate", "--config", own, "--until", "ingest"]) == 0
    ((_, record),) = records(open_root(root))
    assert (record["preset"], record["overrides"]) == ("smoke", {})
    assert record["config"]["file"] == own and record["config"]["base"] == "smoke"
    assert Config.model_validate(record["config"]["settings"]) == ask(None, own).config
    assert (tmp_path / "root" / "last" / "my.yaml" / "ingest.json").exists()
    file(text + "ingest: {part_bytes: 5000}\n")
    capsys.readouterr()
    for command in (["plan", "curate"], ["status"]):
        assert main([*command, "--config", own]) == 0
        assert "ingest.part_bytes 1500000 -> 5000" in capsys.readouterr().out
    assert main(["verify", "--config", own]) == 0
    assert main(["plan", "curate", "--config", own, "--preset", "laptop"]) == 2
    assert "the preset beside it is laptop" in capsys.readouterr().err


def test_the_copy_that_a_run_keeps_is_the_same_configuration_and_is_held_to_its_bytes(tmp_path: Path, file):
    storage = open_root((tmp_path / "root").as_uri())
    asked = ask(None, file("base: smoke\ntrain: {max_steps: 7}\n"), {"run.workers": 1})
    kept = asked.kept(storage)
    file("base: laptop\n")
    again = ask(kept["preset"], kept["config"], kept["overrides"])
    assert again.config == load("smoke", {"train.max_steps": 7, "run.workers": 1, "storage.root": storage.uri})
    assert (again.scope, again.kept(storage)) == ("my.yaml", kept)
    Path(kept["config"].removeprefix("file://")).write_text("base: laptop\n")
    with pytest.raises(ConfigError, match="no longer what the run began with"):
        ask(None, kept["config"])


def test_a_file_on_s3_is_read_by_the_store_s_client(s3: S3Storage, s3_server: str):
    boto3.client("s3", endpoint_url=s3_server).put_object(Bucket=s3.bucket, Key="my.yaml", Body=b"base: smoke\ntrain: {max_steps: 7}\n")
    endpoint = {"storage.endpoint_url": s3_server}
    asked = ask(None, f"s3://{s3.bucket}/my.yaml", endpoint)
    assert asked.config == load("smoke", {"train.max_steps": 7} | endpoint)
    kept = asked.kept(s3)
    assert kept["config"].startswith(f"s3://{s3.bucket}/pre/fix/configs/") and kept["overrides"]["storage.root"] == s3.uri
    assert ask("smoke", kept["config"], kept["overrides"]).config.train.max_steps == 7
    for key, sentence in (("absent.yaml", "there is no file"), ("", "name a file")):
        with pytest.raises(ConfigError, match=sentence):
            ask(None, f"s3://{s3.bucket}/{key}", endpoint)


def test_yaml_of_a_preset_says_what_a_file_of_it_says(file):
    """A preset copied into a file of one's own, without a base, is the same configuration."""
    from bessemer.config import PRESETS

    for preset in PRESETS.glob("*.yaml"):
        assert yaml.safe_load(preset.read_text())
        assert ask(None, file(preset.read_text())).config == load(preset.stem)
