"""`bessemer init` and `bessemer config`: what they write is the configuration that they say it is."""

import json
import re
from pathlib import Path

import pytest

from bessemer.config import Config, Preset, ask, known_keys, load, value_at
from flows.__main__ import main

GROUPS = {key.rpartition(".")[0] for key in known_keys()}
SETTINGS = [key for key in known_keys() if key not in GROUPS]
PRESETS = [preset.value for preset in Preset]


@pytest.mark.parametrize("whole", [(), ("--all",)])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_to_start_from_is_its_preset(preset: str, whole: tuple[str, ...], tmp_path: Path):
    file = tmp_path / "my.yaml"
    assert main(["init", str(file), "--from", preset, *whole]) == 0
    asked = ask(None, str(file))
    assert (asked.config, asked.preset) == (load(preset), preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_it_says_is_a_default_is_one_and_it_has_every_setting(preset: str, tmp_path: Path):
    """Each line that begins with # and no space is made a setting."""
    file = tmp_path / "my.yaml"
    assert main(["init", str(file), "--from", preset, "--all"]) == 0
    file.write_text(re.sub(r"^( *)#(?=[^ \n])", r"\1", file.read_text(), flags=re.MULTILINE))
    asked = ask(None, str(file))
    assert asked.config == load(preset)
    assert {key for key in SETTINGS if str(asked.layers.origin(key)).startswith("my.yaml line ")} == set(SETTINGS)


def test_it_is_short_and_says_what_is_yours_to_set(tmp_path: Path, capsys):
    file = tmp_path / "my.yaml"
    assert main(["init", str(file), "--from", "124m"]) == 0
    assert "sources and storage.root are yours to set" in capsys.readouterr().out
    text = file.read_text()
    assert text.count("\n") < 110 and max(map(len, text.splitlines())) < 140
    assert "YOUR-BUCKET" in text and "#root: null" in text and "# Sequences a rank and forward pass" in text


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path, capsys):
    (tmp_path / "my.yaml").write_text("mine")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere")
    for name, sentence in (("my.yaml", "is there already"), ("link.yaml", "is there already"), ("absent/my.yaml", "No such file")):
        assert main(["init", str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["init", str(tmp_path / "other.yaml"), "--from", "smoek"]) == 2
    assert "the nearest is smoke" in capsys.readouterr().err
    assert main(["init", "s3://bucket/my.yaml"]) == 2
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link.yaml", "my.yaml"] and (tmp_path / "my.yaml").read_text() == "mine"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_printed_configuration_is_the_whole_of_it(preset: str, tmp_path: Path, capsys):
    assert main(["config", "--preset", preset, "--set", "storage.root=/tmp/x", "--set", "mix.weights.web=3"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    asked = ask(None, str(tmp_path / "printed.yaml"))
    assert asked.config == load(preset, {"storage.root": "/tmp/x", "mix.weights.web": 3})
    assert all(asked.layers.origin(key) for key in SETTINGS)


def test_it_says_where_each_value_comes_from(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("BESSEMER_STORAGE_ROOT", "s3://bucket/there")
    (tmp_path / "my.yaml").write_text("base: smoke\ntrain:\n  warmup_steps: 3\n")
    arguments = ["config", "--config", str(tmp_path / "my.yaml"), "--set", "train.seed=4", "--set", "mix.weights.web=3"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = {
        "storage.root": ("s3://bucket/there", "environment BESSEMER_STORAGE_ROOT"),
        "train.warmup_steps": (3, "my.yaml line 3"),
        "train.seed": (4, "--set"),
        "train.max_steps": (40, "preset smoke"),
        "train.grad_clip": (1.0, "default"),
    }
    settings = Config.model_validate(found["settings"])
    assert {key: (value_at(settings, key), found["from"][key]) for key in wanted} == wanted
    assert set(SETTINGS) <= set(found["from"])
    assert (found["from"]["mix.weights"], found["from"]["mix.weights.web"]) == ("default", "--set")
    assert main(arguments) == 0
    lines = {line.partition("#")[0].strip(): line.partition("#")[2].strip() for line in capsys.readouterr().out.splitlines()}
    assert lines["root: s3://bucket/there"] == "environment BESSEMER_STORAGE_ROOT"
    assert lines["warmup_steps: 3"] == "my.yaml line 3"
    assert "default; web: --set" in lines.values()


def test_credentials_in_the_environment_are_not_printed(capsys, monkeypatch):
    monkeypatch.setenv("BESSEMER_STORAGE_ROOT", "s3://AKIAPLANTED:planted-secret@bucket")
    assert main(["config"]) == 2
    said = capsys.readouterr()
    assert "credentials do not belong in a URI" in said.err and "planted-secret" not in said.err + said.out
