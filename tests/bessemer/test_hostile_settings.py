"""Whatever is typed after --set or written into a preset, and whatever the machine refuses: a sentence and a status, never a traceback."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bessemer import config
from bessemer.config import known_keys, load, parse_set
from contract.errors import ConfigError, PipelineError
from flows.__main__ import main

PROJECT = Path(__file__).parents[2]
BILLION = "[" + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'] * 9)}]" for i in range(10)) + "]"
WRONG_YAML = ["2001-99-99", "0x_", "[" * 1500, '!!int ""', "!!bool x", "!!timestamp x", "{[]: 1}", "\0", "!!binary a", "9" * 5000, BILLION]

keys = st.sampled_from(known_keys()) | st.text(max_size=12) | st.from_regex(r"[a-z]{1,8}(\.[a-z_]{0,8}){0,3}", fullmatch=True)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | leaves, inner, max_size=3))
place = st.sampled_from(["", "/absent", "x\0y", "file:///x%00y", "~nobody-here/x", "file://[", "http://[", "ftp://x", "y" * 5000, "[z-a]*"])
source = st.fixed_dictionaries(
    {"uri": place | leaves},
    optional={
        name: leaves | st.sampled_from(["web", "txt", "utf-8"]) for name in ("domain", "name", "format", "encoding", "max_bytes", "x")
    },
)
overrides = st.tuples(keys, values) | st.tuples(st.sampled_from(["sources", "align_data.sources"]), st.lists(source | values, max_size=3))
texts = st.text() | st.builds("{}={}".format, keys, st.text("[]{}&*!?|>-:,'\"#%@`0x_\n 1a", max_size=30) | st.sampled_from(WRONG_YAML))


@settings(max_examples=50)
@given(texts)
@example("=")
def test_any_text_after_set_is_read_or_refused(text: str):
    with contextlib.suppress(ConfigError):
        parse_set(text)


@pytest.mark.parametrize("value", WRONG_YAML)
def test_a_value_that_yaml_cannot_have_is_refused_by_its_key(value: str):
    with pytest.raises(ConfigError, match=r"--set train\.max_steps: .* cannot be read as YAML"):
        parse_set(f"train.max_steps={value}")


@settings(max_examples=60)
@given(overrides)
def test_any_key_and_value_load_or_are_refused_with_a_sentence(override: tuple[str, object]):
    try:
        load("smoke", dict([override]))
    except PipelineError as error:
        assert str(error).strip() and "Traceback" not in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=80) | texts.map(str.encode) | st.dictionaries(keys, values, max_size=3).map(lambda d: yaml.safe_dump(d).encode()))
@example(BILLION.encode())
@example(b"- a list")
def test_any_preset_file_loads_or_is_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes):
    (tmp_path / "mine.yaml").write_bytes(text)
    monkeypatch.setattr(config, "PRESETS", tmp_path)
    with contextlib.suppress(ConfigError):
        load("mine")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(texts | overrides.map(lambda o: f"{o[0]}={yaml.safe_dump(o[1])}"))
@example("sources=[{uri: '~nobody-here/x', domain: web}]")
@example("storage.root=file:///x%00y")
@example("storage.root=file:///" + "y" * 5000)
@example("evaluate.items.tasks=[{name: a, uri: 'x://['}]")
def test_a_plan_of_any_setting_ends_with_a_status_and_no_traceback(tmp_path: Path, text: str):
    (tmp_path / "a.txt").write_text("a text")
    small = ["--set", f"sources=[{{uri: {tmp_path}, domain: web}}]", "--set", f"storage.root={(tmp_path / 'root').as_uri()}"]
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(["plan", "curate", "--preset", "smoke", *small, f"--set={text}"])
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert code in (0, 1, 2) and (code == 0 or said.getvalue().strip())
    assert "Traceback" not in said.getvalue()


def bessemer(*arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "flows", *arguments]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, **how)  # type: ignore[call-overload]


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    (tmp_path / "a.txt").write_text("a text")
    root = f"storage.root={(tmp_path / 'root').as_uri()}"
    return ["--preset", "smoke", "--set", root, "--set", "run.workers=1", "--set", f"sources=[{{uri: {tmp_path / 'a.txt'}, domain: web}}]"]


def one_sentence(said: str, *words: str) -> None:
    assert said.startswith("bessemer: ") and said.count("\n") == 1 and all(word in said for word in words), said


@pytest.mark.slow
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, small: list[str]):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "artifacts").write_text("a file")
    done = bessemer("run", "curate", *small, stdout=subprocess.DEVNULL)
    assert done.returncode == 2
    one_sentence(done.stderr, str(tmp_path / "root" / "artifacts"), "Move it away")


@pytest.mark.slow
def test_a_disk_that_fails_is_said(tmp_path: Path, small: list[str]):
    """Reading another process's memory at address 0 is a true EIO."""
    (tmp_path / "root" / "last" / "smoke").mkdir(parents=True)
    (tmp_path / "root" / "last" / "smoke" / "ingest.json").symlink_to("/proc/self/mem")
    done = bessemer("plan", "curate", *small, stdout=subprocess.DEVNULL)
    assert done.returncode == 1
    one_sentence(done.stderr, "Input/output error", "Check the disk")


@pytest.mark.slow
def test_an_output_that_is_full_or_closed_is_no_traceback(small: list[str]):
    with Path("/dev/full").open("w") as full:
        done = bessemer("plan", "curate", *small, stdout=full)
    assert done.returncode == 1
    one_sentence(done.stderr, "No space left on device")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert bessemer("plan", "curate", *small, stdout=writer).stderr == ""
    finally:
        os.close(writer)
