"""`bessemer doctor` on machines that lack something, each made so for real; and `bessemer --version`."""

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bessemer import doctor
from bessemer.config import load

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def ask(*arguments: str, **variables: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """(exit code, {check: (ok or FAILED, what it says)}, stderr) of the command in a process of its own."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BESSEMER_PORT", "BESSEMER_REPORTS"))}
    command = [sys.executable, "-m", "flows", "doctor", "--preset", "smoke", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=known | variables, capture_output=True, text=True)
    assert "Traceback" not in done.stdout + done.stderr
    lines = [re.fullmatch(r"(\w+) +(ok|FAILED) +(.+)", line) for line in done.stdout.splitlines()[:-1]]
    return done.returncode, {line[1]: (line[2], line[3]) for line in lines if line}, done.stderr


def only(found: dict[str, tuple[str, str]], name: str) -> str:
    """What the one failed check says."""
    assert [check for check, (outcome, _) in found.items() if outcome == "FAILED"] == [name], found
    return found[name][1]


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """A home and a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"BESSEMER_HOME": str(tmp_path), "BESSEMER_PORT": str(port), "BESSEMER_STORAGE_ROOT": (tmp_path / "root").as_uri()}


def test_a_sound_machine_has_a_line_for_each_check_and_no_server_is_no_failure(place: dict[str, str]) -> None:
    code, found, stderr = ask(**place)
    assert (code, stderr) == (0, "") and {outcome for outcome, _ in found.values()} == {"ok"}
    first, last = ["python", "settings", "torch", "compiler", "lmplz", "memory"], ["root", "cache", "tmp", "ports", "server", "worker"]
    assert list(found) == first + last
    assert found["server"][1].startswith("not running: make up") and found["worker"][1] == "not running: make up"


def test_a_wrong_setting_is_exit_2(place: dict[str, str]) -> None:
    code, found, stderr = ask("--set", "train.max_stepz=3", **place)
    assert code == 2 and not found and "train.max_stepz is no setting" in stderr


def test_no_compiler(place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    code, found, _ = ask(**place | {"PATH": str(tmp_path / "bin")})
    assert code == 1 and "apt-get install build-essential" in only(found, "compiler")


def test_a_compiler_that_cannot_compile(place: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'fatal error: vector: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    code, found, _ = ask(**place | {"PATH": f"{broken.parent}:{os.environ['PATH']}"})
    assert code == 1 and "cannot compile (fatal error: vector" in only(found, "compiler")


def ahead(tmp_path: Path, package: str, text: str) -> dict[str, str]:
    """PYTHONPATH with a package of that name before the installed one."""
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / f"{package}.py").write_text(text)
    return {"PYTHONPATH": f"{tmp_path / 'ahead'}:{ROOT}"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ImportError('libcudnn.so.9: cannot open shared object file')", "libcudnn.so.9: cannot open shared object file"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "exit status -4"),
        ("", "AttributeError"),
    ],
    ids=["raises", "illegal instruction", "empty"],
)
def test_torch_that_does_not_import_is_a_line(place: dict[str, str], tmp_path: Path, text: str, said: str) -> None:
    code, found, _ = ask(**place | ahead(tmp_path, "torch", text))
    line = only(found, "torch")
    assert code == 1 and said in line and line.endswith("make setup")


@pytest.mark.parametrize("package", ["pyarrow", "pydantic", "yaml"])
def test_our_own_code_that_does_not_load_is_a_line_and_the_rest_is_checked(place: dict[str, str], tmp_path: Path, package: str) -> None:
    code, found, _ = ask(**place | ahead(tmp_path, package, "raise ImportError('broken wheel')"))
    assert code == 1 and "broken wheel" in found["settings"][1] and "make setup" in found["settings"][1]
    assert found["torch"][0] == found["compiler"][0] == "ok" and len(found) == 12


def test_a_gpu_that_is_asked_for_and_not_there(place: dict[str, str]) -> None:
    code, found, _ = ask("--set", "run.device=cuda", **place, CUDA_VISIBLE_DEVICES="")
    assert code == 1 and "run.device is cuda" in only(found, "torch")


def test_a_root_that_cannot_be_written(place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, found, _ = ask("--set", f"storage.root={(tmp_path / 'file' / 'root').as_uri()}", **place)
    assert code == 1 and "cannot write under storage.root" in only(found, "root")


def test_a_root_that_is_full(place: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        code, found, _ = ask("--set", f"storage.root={root.as_uri()}", **place)
    finally:
        subprocess.run(["umount", str(root)], check=True)
    assert code == 1 and "make space" in only(found, "root")


def test_an_s3_endpoint_where_nothing_listens(place: dict[str, str]) -> None:
    wrong = f"http://127.0.0.1:{place['BESSEMER_PORT']}"
    code, found, _ = ask("--set", "storage.root=s3://bucket/x", "--set", f"storage.endpoint_url={wrong}", **place)
    assert code == 1 and "correct storage.endpoint_url" in only(found, "root")


def test_s3_without_credentials_or_without_the_bucket(place: dict[str, str], s3_server: str, tmp_path: Path) -> None:
    asked = ("--set", "storage.root=s3://no-such-bucket/x", "--set", f"storage.endpoint_url={s3_server}")
    code, found, _ = ask(*asked, **place)
    assert code == 1 and "no-such-bucket" in only(found, "root")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    code, found, _ = ask(*asked, **place | nobody)
    assert code == 1 and "AWS_ACCESS_KEY_ID" in only(found, "root")


def test_a_taken_port(place: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(place["BESSEMER_PORT"])))
        taken.listen()
        code, found, _ = ask(**place)
    assert code == 1 and "choose another one: BESSEMER_PORT=" in only(found, "ports")


def test_a_server_of_the_users_that_does_not_answer(place: dict[str, str]) -> None:
    code, found, _ = ask(**place, PREFECT_API_URL=f"http://127.0.0.1:{place['BESSEMER_PORT']}/api")
    assert code == 1 and "unset PREFECT_API_URL" in only(found, "server")


def test_a_cache_in_whose_way_a_file_stands_and_a_tmp_that_is_not_there(place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("in the way")
    code, found, _ = ask(**place)
    assert code == 0 and found["cache"][1].endswith(f"{tmp_path}/.cache is not ours to write")
    (tmp_path / ".cache").unlink()
    code, found, _ = ask(**place, BESSEMER_CACHE="/proc/cache")
    assert code == 1 and only(found, "cache") == "BESSEMER_CACHE is /proc/cache, where nothing can be written: set it to a folder of yours"
    code, found, _ = ask(**place, TMPDIR=str(tmp_path / "gone"))
    assert code == 1 and "give TMPDIR another folder" in found["tmp"][1]


def test_a_check_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexec sleep 30\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("BESSEMER_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "CHECK_S", 8.0)
    assert doctor.report(load("smoke", {"storage.root": (tmp_path / "root").as_uri()})) == 1
    assert re.search(r"compiler  FAILED  .* did not end within 3 s", capsys.readouterr().out)


def test_version_names_ours_the_commit_python_and_torch_even_if_torch_is_broken(tmp_path: Path) -> None:
    variables = os.environ | ahead(tmp_path, "pydantic", "raise ImportError")
    done = subprocess.run([sys.executable, "-m", "flows", "--version"], cwd=ROOT, env=variables, capture_output=True, text=True)
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout[:12]
    assert done.returncode == 0 and done.stdout.startswith(f"bessemer {ours} (commit {commit}")
    assert re.search(r"Python 3\.\d+\.\d+, torch \d", done.stdout)
