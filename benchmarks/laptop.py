"""The laptop preset from nothing, and again: time by stage, peak memory of the whole process tree, and the claims that held.

    .venv/bin/python benchmarks/laptop.py [--memory] [--root DIR] [--set KEY=VALUE …]

Runs `bessemer run pretrain --preset laptop` twice in the foreground on an empty root and prints Markdown. Memory is the largest sum of
proportional set sizes (shared pages counted once) over a sampling of every second. It is for a run of its own: the kernel walks the page
tables of some twenty processes for it, which makes the data stages a fifth slower.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[1]
DATA_STAGES_END = "gate_mix"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="an empty folder; a temporary one when not given")
    parser.add_argument("--memory", action="store_true", help="sample memory in the first run; its times are then slower than they are")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    root = arguments.root or Path(tempfile.mkdtemp(prefix="bessemer-laptop-"))
    settings = [f"storage.root={root.resolve().as_uri()}", *arguments.set]
    command = [sys.executable, "-m", "flows", "run", "pretrain", "--preset", "laptop"]
    command += [part for text in settings for part in ("--set", text)]
    print(f"load before: {os.getloadavg()[0]:.2f} on {len(os.sched_getaffinity(0))} cores\n", flush=True)
    first, peak = run(command, arguments.memory)
    again, _ = run(command)
    manifests = sorted((json.loads(path.read_text()) for path in root.glob("artifacts/*/*/manifest*.json")), key=lambda m: m["created"])
    print(table(manifests, first, again, peak))
    return 0


def run(command: list[str], memory: bool = False) -> tuple[float, int]:
    """Seconds, and the peak of memory in bytes when it is asked for; what the run prints goes to stderr."""
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=sys.stderr)
    peak, is_over = [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, is_over))
    if memory:
        watcher.start()
    status = process.wait()
    seconds = time.monotonic() - begun
    is_over.set()
    if memory:
        watcher.join()
    if status:
        sys.exit(f"the run ended with {status}")
    return seconds, peak[0]


def watch(pid: int, peak: list[int], is_over: threading.Event) -> None:
    while not is_over.wait(1.0):
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(pid)
            peak[0] = max(peak[0], sum(proportional_size(process) for process in [parent, *parent.children(recursive=True)]))


def proportional_size(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0  # it ended between the two looks
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def table(manifests: list[dict], first: float, again: float, peak: int) -> str:
    """Markdown: a line a stage, then the whole."""
    lines = ["| stage | s | |", "|---|---|---|"]
    for manifest in manifests:
        note = f"Ray's start {manifest['execution']['ray_start_s']}" if "ray_start_s" in manifest["execution"] else ""
        lines.append(f"| {manifest['stage']} | {manifest['seconds']:.1f} | {note} |")
    names = [manifest["stage"] for manifest in manifests]
    data = manifests[: names.index(DATA_STAGES_END) + 1]
    pairs = sum(manifest["seconds"] for manifest in data if manifest["stage"] == "align_data")  # read on the way, and no part of the corpus
    until = data[-1]["created"] + data[-1]["seconds"] - data[0]["created"] - pairs
    training = next(manifest["seconds"] for manifest in manifests if manifest["stage"] == "pretrain")
    figures = next(manifest["figures"] for manifest in manifests if manifest["stage"] == "evaluate")
    read = next(manifest["figures"] for manifest in manifests if manifest["stage"] == "ingest")
    return "\n".join(
        [
            *lines,
            "",
            f"whole run {first:.0f} s, of it pretraining {100 * training / first:.1f} %; ingest to mix {until:.1f} s; again {again:.1f} s; "
            f"peak memory {f'{peak / 2**30:.2f} GiB' if peak else 'not sampled'}; "
            f"{figures['claims_held']} of {figures['claims']} claims hold",
            "",
            "```json",
            json.dumps({"ingest": read, "evaluate": figures}, indent=1),
            "```",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
