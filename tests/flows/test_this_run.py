"""The names of flow runs. That a run has its name, and is refused under other code, is seen on a real server in test_deployments.py."""

import pytest
from prefect.utilities.names import generate_slug

from flows.this_run import MOST_CHARS, is_drawn, name_of


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "pretrain laptop"),
        ({"preset": "smoke", "overrides": {"train.max_steps": 50}}, "pretrain smoke train.max_steps=50"),
        ({"preset": "smoke", "config": "/home/me/my.yaml", "overrides": None}, "pretrain my.yaml"),
        ({"config": "s3://bucket/root/configs/0123456789abcdef/my.yaml"}, "pretrain my.yaml"),
        ({"overrides": {"storage.root": "file:///r", "align.methods": []}}, "pretrain laptop align.methods=[] storage.root=file:///r"),
        ({"overrides": {"train.compile": False, "mix.seed": None}}, "pretrain laptop train.compile=false mix.seed=none"),
        ({"overrides": {"a": "two\nlines"}}, "pretrain laptop a=two lines"),
        ({"overrides": {f"mix.weights.domain{i}": i for i in range(9)}}, "pretrain laptop mix.weights.domain0=0 mix.weights.domain1=1 +7"),
        ({"overrides": {f"{'k' * 40}{i}": "v" * 100 for i in range(3)}}, "pretrain laptop +3"),
    ],
)
def test_a_name_says_flow_preset_and_the_first_overrides(parameters: dict, name: str):
    assert name_of("pretrain", parameters) == name


@pytest.mark.parametrize("size", [1, 10, 60, 100, 1000])
def test_no_name_is_longer_than_a_line(size: int):
    wide = {"preset": "x" * size, "config": "y" * size, "overrides": {"k" * size: "v" * size, "l": {"m" * size: [1] * size}}}
    assert len(name_of("pretrain", wide)) <= MOST_CHARS


def test_a_secret_of_the_environment_is_in_no_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_token")
    assert "planted" not in name_of("train", {"overrides": {"train.init_from": "me:hf_planted_token@hub"}})


def test_a_name_that_the_server_drew_is_told_from_one_that_a_person_gave():
    assert all(is_drawn(generate_slug(2)) for _ in range(200))
    assert not any(map(is_drawn, ("my-run", "pretrain smoke", "nightly", "lr-3e-4", "", "a-b-c")))
