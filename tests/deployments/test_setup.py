"""What set-up refuses, repeats and leaves alone, and that entry points name what exists. CI tries it from nothing."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

REPO = Path(__file__).parents[2]
LOCKS = REPO / "deployments" / "locks"


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bessemer_setup", REPO / "deployments" / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load_setup()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in which every step is done already."""
    for name in ("run", "gpu", "test"):
        setup.put(tmp_path / "deployments" / "locks" / f"{name}.lock", b"# 1 packages, 1 MB to download\ntoml==0.10.2\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for step in setup.steps(tmp_path, tmp_path / ".venv", with_tests=True):
        for product in step.products:
            setup.put(product, b"")
        setup.record(tmp_path / ".venv", {**setup.recorded(tmp_path / ".venv"), step.name: step.digest})
    return tmp_path


def due(clone: Path) -> list[str]:
    return [step.name for step in setup.steps(clone, clone / ".venv", with_tests=True) if not step.is_done()]


def test_setup_is_a_no_op_when_nothing_changed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup.setup(clone)
    assert capsys.readouterr().out == "setup   up to date\n"


def test_a_clone_where_nothing_can_be_written_is_up_to_date_or_says_whose_it_is(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make up` and `make pretrain` begin with set-up. A file where .cache must be stops root as well."""
    (clone / ".cache").write_text("in the way")
    setup.setup(clone)
    assert capsys.readouterr().out == "setup   up to date\n"
    (clone / ".venv/share/bessemer/lid.176.ftz").unlink()
    with pytest.raises(setup.SetupError, match=r"^language must be installed, and .*/\.cache cannot be written .*: run make setup as"):
        setup.setup(clone)


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ("deployments/locks/run.lock", ["packages", "imports"]),
        ("deployments/locks/gpu.lock", ["torch", "imports"]),
        ("deployments/locks/test.lock", ["tests"]),
        ("pyproject.toml", ["project"]),
        (".venv/share/bessemer/lid.176.ftz", ["language"]),
    ],
)
def test_only_what_hangs_on_a_change_is_done_again(clone: Path, changed: str, steps: list[str]) -> None:
    path = clone / changed
    if changed.startswith(".venv"):
        path.unlink()
    else:
        path.write_text(path.read_text() + "# changed\n")
    assert due(clone) == steps


def test_a_moved_clone_is_set_up_again(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Scripts in .venv/bin and the editable install hold absolute paths."""
    moved = tmp_path_factory.mktemp("moved") / "clone"
    clone.rename(moved)
    assert due(moved) == ["packages", "torch", "tests", "project", "kenlm", "imports"]


def test_the_other_build_of_torch_is_taken_when_asked_for_and_then_kept(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH", "gpu")
    assert due(clone) == ["torch", "imports"]
    setup.note(clone / ".venv", "TORCH", "gpu")
    asked_for = {step.name: step.digest for step in setup.steps(clone, clone / ".venv")}
    monkeypatch.delenv("TORCH")
    assert {step.name: step.digest for step in setup.steps(clone, clone / ".venv")} == asked_for


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (2, 7)])
def test_another_python_is_refused_in_a_sentence(version: tuple[int, int]) -> None:
    with pytest.raises(setup.SetupError, match=rf"Python {version[0]}\.{version[1]} .* is not supported, 3\.11 to 3\.13 are") as refused:
        setup.check_python(version)
    assert refused.value.exit_code == 2


def other_pythons() -> list[Path]:
    """Pythons that are too old or too new, as pyenv or the system has them. 2.7 is one: its answer must be a sentence as well."""
    known = [*Path("/usr/bin").glob("python3.[0-9]*"), *Path.home().glob(".pyenv/versions/*/bin/python")]
    ask = "import sys; sys.exit((3, 11) <= sys.version_info[:2] <= (3, 13))"
    return [
        path
        for path in sorted(known)
        if "config" not in path.name and subprocess.run([path, "-c", ask], capture_output=True).returncode == 0
    ]


def refusal(python: str) -> str:
    refused = subprocess.run([REPO / "deployments" / "setup.sh"], capture_output=True, text=True, env={**os.environ, "PYTHON": python})
    assert refused.returncode == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1, refused
    return refused.stderr


def test_pythons_of_other_versions_are_refused() -> None:
    if not (pythons := other_pythons()):
        pytest.skip("no other Python on this machine")
    assert all("is no Python 3.11, 3.12 or 3.13" in refusal(str(python)) for python in pythons)


def test_a_python_that_is_not_there_is_said() -> None:
    assert "/no/such/python is no Python 3.11, 3.12 or 3.13 that runs here" in refusal("/no/such/python")


def test_where_no_python_is_and_none_can_be_fetched_one_sentence_names_the_packages(tmp_path: Path) -> None:
    """A clone without .venv, another user's PATH with the few tools that setup.sh calls, and no uv."""
    (tmp_path / "deployments").mkdir()
    for name in ("setup.sh", "debian.txt"):
        shutil.copy(REPO / "deployments" / name, tmp_path / "deployments")
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "mkdir", "dirname", "id"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "")
    command = [tmp_path / "deployments" / "setup.sh"]
    refused = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path / "bin")})
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused
    listed = (REPO / "deployments" / "debian.txt").read_text().split()
    assert refused.stderr.endswith(" ".join(["python3 python3-venv python3-dev", *listed]) + "\n")


def test_every_lock_pins_a_version_and_hashes_and_torch_has_the_libraries_that_it_loads() -> None:
    """The lock of a machine where a CPU build of torch lay on disk had none of them: `import torch` failed everywhere else."""
    pins = {path.stem: re.findall(r"^([a-z0-9._-]+)(\[.*\])?==(\S+)(.*)$", path.read_text(), re.M) for path in LOCKS.glob("*.lock")}
    assert {name for name, *_ in pins["gpu"]} >= {"torch", "triton", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-nccl-cu13"}
    assert not {name for name, *_ in pins["run"]} & {"torch", "pytest", "moto", "mypy", "ruff"}
    for path in LOCKS.glob("*.lock"):
        starts = [line for line in path.read_text().splitlines() if line and not line.startswith(("#", " "))]
        assert len(starts) == len(pins[path.stem]) and path.read_text().count("--hash=sha256:") >= len(starts), path
        assert "://" not in path.read_text(), "a lock names no index, so that a mirror can serve it"


@pytest.mark.parametrize(
    ("variables", "file", "expected"),
    [
        ({"PIP_INDEX_URL": "https://mirror.example/simple"}, "", {"UV_DEFAULT_INDEX": "https://mirror.example/simple"}),
        ({"PIP_FIND_LINKS": "/a /b"}, "", {"UV_FIND_LINKS": "/a,/b"}),
        ({}, "[global]\nindex-url = https://a.example\n[install]\nindex-url = https://b.example\n", {"UV_DEFAULT_INDEX": "https://b.example"}),
        ({"PIP_INDEX_URL": "https://c.example"}, "[global]\nindex-url = https://a.example\n", {"UV_DEFAULT_INDEX": "https://c.example"}),
        ({}, "[global]\nextra-index-url =\n  https://a.example\n  https://b.example\n", {"UV_EXTRA_INDEX_URL": "https://a.example https://b.example"}),
        ({"PIP_TRUSTED_HOST": "mirror.example", "PIP_PROXY": "http://proxy:3128"}, "",
         {"UV_INSECURE_HOST": "mirror.example", "ALL_PROXY": "http://proxy:3128"}),
    ],
)  # fmt: skip
def test_uv_is_told_what_pip_is_configured_to(
    variables: dict[str, str], file: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(file)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert expected.items() <= setup.uv_variables(setup.pip_settings(Path(sys.prefix))).items()


def test_a_package_that_does_not_load_ends_set_up_with_its_name_and_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudnn.so.9: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPO}")
    with pytest.raises(setup.SetupError, match=r"torch is installed but does not load here: .*libcudnn\.so\.9.*TORCH=cpu"):
        setup.import_compiled(Path(sys.prefix))


def test_all_that_a_bare_machine_lacks_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without tools whose dpkg knows no package, before anything is fetched: an administrator is asked once."""
    (tmp_path / "dpkg").mkdir()
    (tmp_path / "dpkg" / "status").touch()
    (tmp_path / "dpkg-query").symlink_to(shutil.which("dpkg-query") or pytest.skip("no dpkg here"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
    steps = setup.steps(REPO, tmp_path / ".venv")
    listed = (REPO / "deployments" / "debian.txt").read_text().split()
    assert set(listed) <= set(setup.missing_packages(REPO, tmp_path / ".venv", steps))
    with pytest.raises(setup.SetupError, match=r"missing \(by Debian's names\): build-essential, cmake, .*liblzma-dev; ") as refused:
        setup.need_packages(listed)
    assert refused.value.exit_code == 2
    assert setup.missing_packages(REPO, tmp_path / ".venv", [step for step in steps if step.name == "project"]) == []


def test_without_dpkg_cmake_is_left_to_find_the_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = setup.missing_packages(REPO, tmp_path / ".venv", setup.steps(REPO, tmp_path / ".venv"))
    assert [package for package in missing if not package.startswith("python")] == ["build-essential", "cmake"]


def test_without_root_the_packages_are_named_exactly() -> None:
    """As another user in a process of its own: root would install them."""
    if not setup.on_path("apt-get") or os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else, and apt-get")
    program = (
        f"import os, sys; sys.path.insert(0, {str(REPO / 'deployments')!r}); import setup; os.setgid(65534); os.setuid(65534)\n"
        "try: setup.need_packages(['bessemer-has-no-such-package', 'another'])\n"
        "except setup.SetupError as error: print(error.exit_code, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert said.startswith("2 ") and said.endswith("apt-get install -y --no-install-recommends bessemer-has-no-such-package another\n")


def test_a_file_with_other_bytes_is_refused() -> None:
    with pytest.raises(setup.SetupError, match=r"lid\.176\.ftz \(3 bytes\) has sha256 .* expected 8f3472cf"):
        setup.check_digest("lid.176.ftz", b"abc", setup.LANGUAGE_SHA256)


def test_a_kenlm_that_cmake_refuses_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match="lmplz could not be built"):
        setup.cmake("-S", str(tmp_path / "nothing"), "-B", str(tmp_path / "build"))


def test_the_tools_that_set_up_made_are_there_and_run() -> None:
    venv = REPO / ".venv"
    if not (venv / "share").is_dir():
        pytest.skip("this clone's .venv was not made by make setup")
    assert setup.sha256((venv / "share" / "bessemer" / "lid.176.ftz").read_bytes()) == setup.LANGUAGE_SHA256
    for name in ("lmplz", "build_binary"):
        assert setup.on_path(name) or setup.runs(venv / "bin" / name)


def test_every_deployment_names_a_flow_that_exists() -> None:
    project = yaml.safe_load((REPO / "prefect.yaml").read_text())
    parts = {each["entrypoint"]: each["work_pool"]["name"] for each in project["deployments"] if each["name"] == "full"}
    assert parts == {f"flows/{name}.py:{name}": "cpu" for name in ("align", "curate", "evaluate", "export", "pretrain", "train")}
    others = {each["entrypoint"]: each["work_pool"]["name"] for each in project["deployments"] if each["name"] != "full"}
    on_gpu = ["flows/lend_machine.py:join", *(f"flows/{name}.py:{name}" for name in ("align", "evaluate", "export", "train"))]
    assert others == dict.fromkeys(on_gpu, "gpu")
    for entrypoint in parts | others:
        path, _, function = entrypoint.partition(":")
        assert re.search(rf'@flow\(name="{function}".*\)\ndef {function}\(', (REPO / path).read_text()), entrypoint
    assert str(REPO) not in (REPO / "prefect.yaml").read_text(), "it must work from any clone"


def test_make_help_lists_every_verb() -> None:
    said = subprocess.run(["make", "-C", REPO, "help"], capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+)", said, re.M))
    declared = re.search(r"^\.PHONY: (.*)$", (REPO / "Makefile").read_text(), re.M)
    assert declared is not None and listed == set(declared[1].split())


def test_continuous_integration_calls_make_test() -> None:
    assert (REPO / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert os.access(REPO / ".ci" / "run", os.X_OK)
    workflow = yaml.safe_load((REPO / ".github" / "workflows" / "test.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step] == [".ci/run"]


@pytest.mark.parametrize(
    ("path", "is_left_out"),
    [
        ("torch/nn/functional.py", False),
        ("torch/testing/_creation.py", True),
        ("pandas/tests/base/common.py", True),
        ("transformers/models/bert/modeling_bert.py", True),
        ("transformers/models/llama/modeling_llama.py", False),
        ("pip/_internal/main.py", True),
    ],
)
def test_what_is_not_compiled_does_not_depend_on_where_the_clone_lies(path: str, is_left_out: bool):
    for home in ("/home/somebody", "/home/somebody/test/pip"):
        assert bool(re.search(setup.NOT_COMPILED, f"{home}/.venv/lib/python3.11/site-packages/{path}")) == is_left_out
