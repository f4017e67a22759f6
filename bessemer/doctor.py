"""`bessemer doctor` and `bessemer --version`: whether this machine can run what a configuration asks for, one line a check.

It must speak where nothing else can: it loads the standard library alone, what may be broken is imported inside its own check, torch and
programs run in processes of their own, and a check that hangs is given up. It repairs nothing; an absent root's folder is made.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contract import own_folders
from contract.environment_variables import prepare_environment

HOME = Path(__file__).parents[1]
CHECK_S = 60.0
"""How long a check may take; torch from a cold disk takes a quarter of a minute."""
LEAST_FREE_BYTES = 2**30
LEAST_MEMORY_BYTES = 2 * 2**30
"""`laptop` takes 2.13 GiB at its peak (docs/performance.md), `smoke` less."""
TORCH = """
import torch
cuda = torch.cuda.is_available()
names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())} if cuda else set()
torch.ones(2, device="cuda" if cuda else "cpu").sum().item()
print("gpu" if cuda else "cpu", torch.__version__, f"{torch.cuda.device_count()} x {', '.join(names)}" if cuda else "CPU, no GPU", sep="|")
"""


class Failed(Exception):
    """What was found, and what to do about it."""


@dataclass
class Check:
    name: str
    call: Callable[[], str]
    outcome: str | None = None
    failure: str | None = None

    def run(self) -> None:
        try:
            self.outcome = self.call()
        except Failed as error:
            self.failure = str(error)
        except BaseException as error:  # whatever is broken is a line, never a traceback
            text = " ".join(str(error).split())[:300]
            known = any(kind.__name__ == "PipelineError" for kind in type(error).__mro__)
            self.failure = text if known else f"{type(error).__name__}: {text}; make setup repairs .venv/"


def report(config: Any, broken: str | None = None) -> int:
    """Run every check, print a line for each in order, and return the exit code: 0, or 1 where one failed.

    config: the whole configuration; None where it cannot be loaded, and `broken` says why.
    """
    with contextlib.suppress(Exception):  # `_caches` says it
        prepare_environment()
    checks = [Check(name, call) for name, call in _checks(config, broken)]
    threads = [threading.Thread(target=check.run, daemon=True) for check in checks]
    for thread in threads:
        thread.start()
    deadline, failures = time.monotonic() + CHECK_S, 0
    for check, thread in zip(checks, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if check.outcome is None and check.failure is None:
            check.failure = f"no answer within {CHECK_S:.0f} s; look at the disk, network drive or server that it asks"
        failures += check.failure is not None
        print(f"{check.name:<10}{'FAILED' if check.failure else 'ok':<8}{check.failure or check.outcome}", flush=True)
    print(f"{failures} of {len(checks)} checks failed" if failures else f"all {len(checks)} checks hold")
    return 1 if failures else 0


def _checks(config: Any, broken: str | None) -> list[tuple[str, Callable[[], str]]]:
    folders = [("cache", _caches), ("tmp", lambda: _writable(_tmp()))]
    return [
        ("python", _python),
        ("settings", lambda: _settings(config, broken)),
        ("torch", lambda: _torch(config.run.device if config else "cpu")),
        ("compiler", _compiler),
        ("lmplz", _lmplz),
        ("memory", lambda: _memory(config.run.memory_bytes if config else 0)),
        ("root", lambda: _root(config)),
        *folders,
        ("ports", _ports),
        ("server", _server),
        ("worker", _worker),
    ]


def _python() -> str:
    with contextlib.suppress(ImportError, importlib.metadata.PackageNotFoundError):
        from packaging.specifiers import SpecifierSet

        wanted = importlib.metadata.metadata("bessemer")["Requires-Python"]
        if wanted and not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
            raise Failed(f"{platform.python_version()} ({sys.executable}), {wanted} is needed: make setup PYTHON=…")
    return f"{platform.python_version()}, {sys.executable}"


def _settings(config: Any, broken: str | None) -> str:
    if config is None:
        raise Failed(f"our own code does not load ({broken}): make setup")
    config.refuse_missing_plug_ins()
    return f"{len(config.sources)} sources, device {config.run.device}"


def _torch(device: str) -> str:
    _tmp()  # torch does not load where there is none
    done = _run([sys.executable, "-c", TORCH])
    if done.returncode:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"])[-1]
        raise Failed(f"torch cannot be imported and used ({last.strip()[:300]}): make setup")
    kind, version, where = done.stdout.strip().splitlines()[-1].split("|")
    if not device.startswith("cpu") and kind == "cpu":
        raise Failed(f"run.device is {device}, and torch {version} sees no GPU: look at nvidia-smi, or --set run.device=cpu")
    return f"{version}, {where}"


def _compiler() -> str:
    """A program is compiled: a compiler without its headers is none."""
    advice = "as root: apt-get install build-essential (set-up, torch.compile and DeepSpeed need it)"
    found = next((path for name in (os.environ.get("CXX"), "g++", "c++", "clang++") if name and (path := shutil.which(name))), None)
    if found is None:
        raise Failed(f"no C++ compiler on PATH; {advice}")
    with tempfile.TemporaryDirectory(dir=_tmp()) as folder:
        source = Path(folder, "try.cpp")
        source.write_text("#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n")
        done = _run([found, str(source), "-o", str(Path(folder, "try"))])
        if done.returncode:
            raise Failed(f"{found} cannot compile ({(done.stderr.strip().splitlines() or ['it says nothing'])[0][:200]}); {advice}")
    return found


def _lmplz() -> str:
    from engine.installed_tools import tool

    path = tool("lmplz")
    done = _run([str(path), "--help"])
    if "order" not in done.stdout + done.stderr:
        raise Failed(f"{path} does not run ({(done.stderr.strip().splitlines() or ['it says nothing'])[0][:200]}): rm {path}, make setup")
    return str(path)


def _memory(ray_bytes: int) -> str:
    import psutil

    found = psutil.virtual_memory()
    total, free = found.total, found.available
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(name).read_text()))
    free = min(free, total)
    needed = max(LEAST_MEMORY_BYTES, ray_bytes)
    if free < needed:
        raise Failed(f"{_gib(free)} of {_gib(total)} free, {_gib(needed)} are needed: end other programs, or lower run.memory_bytes")
    return f"{_gib(free)} of {_gib(total)} free, {os.cpu_count()} cores"


def _root(config: Any) -> str:
    """The store of the configuration answers and takes a file. On S3 this needs credentials, a bucket, and conditional writes."""
    if config is None:
        raise Failed("not asked, as the settings do not load")
    if config.storage.endpoint_url:
        _reachable(config.storage.endpoint_url)
    storage = config.store()
    storage.probe()
    free = storage.free_bytes()
    if free is not None and free < LEAST_FREE_BYTES:
        raise Failed(f"{_gib(free)} free under {storage.uri}, {_gib(LEAST_FREE_BYTES)} are needed: make space, or --set storage.root=…")
    return f"{storage.uri}, writable" + (f", {_gib(free)} free" if free is not None else ", credentials accepted")


def _reachable(url: str) -> None:
    """Raise Failed where nothing listens: the S3 client would try for minutes."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), timeout=10).close()
    except OSError as error:
        raise Failed(f"nothing answers at {parts.hostname}:{parts.port or ''} ({error}): correct storage.endpoint_url") from error


def _caches() -> str:
    """Where caches lie, and what the services keep: in the clone, unless it belongs to somebody else."""
    clone = Path(os.environ.get("BESSEMER_HOME") or HOME).resolve()
    cache, services = own_folders.cache_folder(), own_folders.in_clone(clone, ".cache/services")
    told = "; ".join(_writable(folder) for folder in (cache, services))
    if services.is_relative_to(cache):
        told += f"; {clone}/.cache is not ours to write"
    if cache.parent == Path(tempfile.gettempdir()):
        told += "; it is not for long there: set BESSEMER_CACHE to a folder that stays"
    return told


def _tmp() -> Path:
    """Where libraries put temporary files: TMPDIR as it is given. Python itself would pass over one that cannot be used."""
    given = os.environ.get("TMPDIR")
    try:
        return Path(given) if given else Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise Failed("there is no folder for temporary files that can be written: set TMPDIR to a folder of yours") from None


def _writable(folder: Path) -> str:
    """The folder, or the nearest one above it that is there, takes a file, and has room."""
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    try:
        if folder == _tmp() and there != folder:
            raise FileNotFoundError(2, "No such file or directory")
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(there).free
    except OSError as error:
        where = "give TMPDIR another folder" if folder == _tmp() else "give yourself the permission, make space, or move what is in the way"
        raise Failed(f"{folder} cannot be written ({error.strerror}): {where}") from error
    if free < LEAST_FREE_BYTES:
        raise Failed(f"{_gib(free)} free under {folder}, {_gib(LEAST_FREE_BYTES)} are needed: make space")
    return f"{folder}, {_gib(free)} free"


def _ports() -> str:
    from services import background
    from services.paths_and_ports import LOOPBACK, Clone
    from services.up import refuse_taken

    clone = Clone.from_environment()
    if clone.external:
        return f"not needed: PREFECT_API_URL is {clone.external}"
    port = clone.port or 4200
    if background.running(clone.server_pid) is not None:
        return f"{port} used by this clone's server"
    refuse_taken(clone.host, port, "BESSEMER_PORT")
    if clone.reports_port:
        refuse_taken(LOOPBACK, clone.reports_port, "BESSEMER_REPORTS_PORT")
    return f"{port} is free on {clone.host}"


def _server() -> str:
    from services.paths_and_ports import Clone
    from services.status import services_status

    status, external = services_status(), Clone.from_environment().external
    if external and not status.server_is_up:
        raise Failed(f"PREFECT_API_URL is {external}, where no Prefect server answers: start it, or unset PREFECT_API_URL")
    return f"up at {status.ui_url}" if status.server_is_up else "not running: make up (bessemer run needs none)"


def _worker() -> str:
    from services.status import services_status

    status = services_status()
    return "up" if status.worker_is_up else "not running: make up"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=CHECK_S - 5)
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} did not end within {CHECK_S - 5:.0f} s; look at the disk that it lies on") from None


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def version() -> str:
    """Our version, the commit of a clone, and the versions of Python and torch; torch is not loaded for it."""
    facts = []
    for name in ("bessemer", "torch"):
        try:
            facts.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            facts.append("not installed")
    ours, torch = facts
    return f"bessemer {ours}{_commit()}, Python {platform.python_version()}, torch {torch}"


def _commit() -> str:
    """The commit, and whether files differ from it; nothing where this is no clone (it may lie inside another repository)."""
    if not (HOME / ".git").exists():
        return ""
    try:
        told = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=HOME, capture_output=True, text=True, check=True, timeout=10)
        state = subprocess.run(["git", "status", "--porcelain"], cwd=HOME, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" (commit {told.stdout.strip()}{', changed' if state.stdout.strip() else ''})"
