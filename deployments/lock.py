"""`make lock`: resolves pyproject.toml into deployments/locks, for Python 3.11 to 3.13 on Linux, x86-64 and ARM64.

    run.lock    what a run needs, without torch
    gpu.lock    torch as the package index has it (built for CUDA), with the libraries that it loads
    test.lock   what the tests, lint and types need as well
    setup.lock  what set-up itself needs: uv, which installs the others, and what builds KenLM's module (which no lock has for that reason)

Every pin has the hashes of all its files, so a mirror can serve them. No lock names an index. Each lock's head says how much it
downloads, and what is built from source; a pin that some machine can neither install nor build ends this with 1.
Pins stay as they are while pyproject.toml allows it; delete the locks to take the newest of everything.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

REPO = Path(__file__).resolve().parents[1]
LOCKS = REPO / "deployments" / "locks"
UV = Path(sys.executable).with_name("uv")
PYTHONS = ((3, 11), (3, 12), (3, 13))
MACHINES = ("x86_64", "aarch64")
OF_SETUP = ("uv", "cython", "setuptools")
OF_TORCH = re.compile(r"torch|triton|(nvidia|cuda)-.*")


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        everything, run, pylock = (Path(scratch, name) for name in ("all.txt", "run.txt", "pylock.toml"))
        everything.write_text("".join(path.read_text() for path in LOCKS.glob("*.lock")))  # preferred versions
        groups = [part for group in ("test", "dev", "setup") for part in ("--group", group)]
        compile_to(everything, *groups)
        compile_to(run, "-c", str(everything))
        compile_to(pylock, *groups, "-c", str(everything), "--format", "pylock.toml")
        pins, needed = pins_of(everything.read_text()), set(pins_of(run.read_text()))
        packages = tomllib.loads(pylock.read_text())["packages"]
    gpu = {name for name in needed if OF_TORCH.fullmatch(name)}
    write("setup", {name: pins.pop(name) for name in OF_SETUP}, packages)
    needed -= {*OF_SETUP, "kenlm"}
    del pins["kenlm"]
    write("run", {name: pins[name] for name in needed if name not in gpu}, packages)
    write("gpu", {name: pins[name] for name in gpu}, packages)
    write("test", {name: pin for name, pin in pins.items() if name not in needed}, packages)
    return 0


def compile_to(output: Path, *options: str) -> None:
    command = [UV, "pip", "compile", "-q", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header"]
    subprocess.run([*command, *options, "pyproject.toml", "-o", output], cwd=REPO, check=True)


def pins_of(text: str) -> dict[str, str]:
    """The lines of each pin, by the package's name. A package has two pins where versions differ by Python."""
    pins: dict[str, str] = {}
    for pin in re.findall(r"^\S.*\n(?:\s+.*\n)*", text, re.MULTILINE):
        name = canonicalize_name(re.split(r"[\[=]", pin, maxsplit=1)[0])
        pins[name] = pins.get(name, "") + pin
    return pins


def write(lock: str, pins: dict[str, str], packages: list[dict[str, Any]]) -> None:
    ours = [package for package in packages if package["name"] in pins]
    sizes, built = {}, set()
    for machine in MACHINES:
        for python in PYTHONS:
            files = list(files_for(ours, python, machine))
            sizes[python, machine] = sum(size for _, size, _ in files)
            built |= {name for name, _, is_source in files if is_source}
    head = f"# {len(pins)} packages, {sizes[PYTHONS[-1], 'x86_64'] / 1e6:.0f} MB to download (Python 3.13, x86-64)\n"
    head += f"# built from source: {', '.join(sorted(built)) or 'nothing'}\n"
    LOCKS.mkdir(exist_ok=True)
    (LOCKS / f"{lock}.lock").write_text(head + "".join(pins[name] for name in sorted(pins)))
    print(lock, head, {f"{v[0]}.{v[1]} {m}": f"{size / 1e6:.0f} MB" for (v, m), size in sizes.items()}, sep="\n")


def files_for(packages: list[dict[str, Any]], python: tuple[int, int], machine: str) -> Iterator[tuple[str, int, bool]]:
    """(package, bytes, whether it is a source) of the one file that each package has for this machine."""
    tags = list(tags_of(python, machine))
    values = {
        "python_version": f"{python[0]}.{python[1]}", "python_full_version": f"{python[0]}.{python[1]}.0", "platform_machine": machine,
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }  # fmt: skip
    for package in packages:
        if "marker" in package and not Marker(package["marker"]).evaluate(values):
            continue
        wheel = best_wheel(package.get("wheels", []), tags)
        if wheel is None and "sdist" not in package:
            sys.exit(
                f"lock: {package['name']} {package['version']} has no wheel for Python {python[0]}.{python[1]} on {machine}, and no source"
            )
        chosen = wheel or package["sdist"]
        yield package["name"], chosen.get("size", 0), wheel is None


def best_wheel(wheels: Iterable[dict[str, Any]], tags: list[Tag]) -> dict[str, Any] | None:
    ranked = {tag: rank for rank, tag in enumerate(tags)}
    fitting = []
    for wheel in wheels:
        fits = [ranked[tag] for tag in parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] if tag in ranked]
        if fits:
            fitting.append((min(fits), wheel))
    return min(fitting, key=lambda each: each[0])[1] if fitting else None


def tags_of(python: tuple[int, int], machine: str) -> Iterator[Tag]:
    """What pip takes on Debian 12 (glibc 2.36) and newer."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 4, -1)]
    platforms += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}", f"linux_{machine}"]
    yield from cpython_tags(python, platforms=platforms)
    yield from compatible_tags(python, f"cp{python[0]}{python[1]}", platforms)


if __name__ == "__main__":
    sys.exit(main())
