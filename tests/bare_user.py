"""Runs commands as a user id without an entry in passwd, in a clone that belongs to somebody else: what a container often is.

Root is needed, and a mount namespace of its own for each command: there the interpreter can be reached by everybody, even if it lies in
root's home, and folders can be made read-only without a trace on this machine.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UID = 12345
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "tests", "benchmarks", "__pycache__", "*.egg-info")
READ_ONLY = "mount --bind $CLONE $CLONE && mount -o remount,bind,ro $CLONE"
NOTHING_WRITABLE = "mount --bind / /mnt; mount -o remount,bind,ro / && mount -t tmpfs -o ro tmpfs /dev/shm"


class BareUser:
    """A clone of root's, folders of the user's own, and what the user calls in it. TMPDIR is one that everybody can write to."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.own, self.tmp = folder / "clone", folder / "own", folder / "t"
        shutil.copytree(ROOT, self.clone, ignore=LEFT_OUT)
        self.own.mkdir()
        os.chown(self.own, UID, UID)
        self.tmp.mkdir()
        self.tmp.chmod(0o1777)
        self.settings = self.own / "my.yaml"
        text = f"{{uri: '{self.clone}/docs/*.md', domain: web}}"
        self.settings.write_text(f"base: smoke\nsources: [{text}]\nalign_data: {{sources: [{text}]}}\n")

    def call(self, *command: str, before: str = ":", timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m COMMAND`, in the clone. before: what root's shell does in the namespace first."""
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.clone), "TMPDIR": str(self.tmp)}
        environment |= {"PYTHONPYCACHEPREFIX": str(self.own / "pycache"), **variables}  # else each command compiles the clone again
        user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "-i"]
        user += [f"{name}={value}" for name, value in environment.items()]
        script = f'set -e; {reachable()}; CLONE={self.clone}; {before}; cd {self.clone}; exec "$@"'
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *user, sys.executable, "-m", *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)

    def entries(self) -> set[Path]:
        return set(self.clone.rglob("*"))

    def tmp_of_the_user(self) -> Path:
        return self.tmp / f"bessemer-{UID}"


def reachable() -> str:
    """Shell commands that uncover the interpreter where a folder above it is closed to others."""
    prefixes = [Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()]
    closed = {
        str(prefix): str(next(each for each in reversed(prefix.parents) if not each.stat().st_mode & 0o001))
        for prefix in prefixes
        if any(not each.stat().st_mode & 0o001 for each in prefix.parents)
    }
    lines = [f"k{i}=$(mktemp -d); mount --bind {prefix} $k{i}" for i, prefix in enumerate(closed)]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {folder}" for folder in sorted(set(closed.values()))]
    lines += [f"mkdir -p {prefix}; mount --bind $k{i} {prefix}; umount $k{i}; rmdir $k{i}" for i, prefix in enumerate(closed)]
    return "; ".join(lines) or ":"


@contextlib.contextmanager
def bare_user() -> Iterator[BareUser]:
    """Skips the test where this machine does not allow it."""
    if os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("needs root, setpriv and unshare, to act as another user")
    folder = Path(tempfile.mkdtemp(prefix="u", dir="/tmp"))  # pytest's own is closed to others
    folder.chmod(0o755)
    try:
        user = BareUser(folder)
        if (done := user.call("encodings.ascii")).returncode:
            pytest.skip(f"a user without a name cannot use this interpreter here: {done.stderr[-300:]}")
        yield user
    finally:
        shutil.rmtree(folder, ignore_errors=True)
