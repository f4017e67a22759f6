"""A child program for the tests of engine/launch.py; the spec says how it behaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main(path: str) -> None:
    spec = json.loads(Path(path).read_text())
    out, rank = Path(spec["out"]), os.environ["RANK"]
    (out / f"pid-{rank}").write_text(f"{os.getpid()} {os.getpgid(0)}")
    how = spec["how"]
    if how == "finish":
        say(warn="mind this")
        say(progress=[1, 2, "steps"], loss=0.5, tokens_per_s=1234.5)
        say(progress=[2, 2, "steps"], loss=0.25)
        (out / f"done-{rank}").write_text(os.environ["WORLD_SIZE"])
    elif how == "fail":
        if rank == "1":
            time.sleep(60)
        say(error="the cup is empty", kind=spec.get("kind", "ValueError"))
        sys.exit(1)
    elif how == "crash":
        print("Traceback: one line\nRuntimeError: broken pipe dream", file=sys.stderr)
        sys.stderr.flush()
        os.kill(os.getpid(), spec["number"])
    elif how == "hang once":
        starts = len(list(out.glob("start-*")))
        (out / f"start-{starts}").touch()
        say(progress=[5, 9, "steps"])
        if not starts:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
    elif how == "hang":
        say(progress=[5, 9, "steps"])
        time.sleep(60)
    elif how == "obey":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(spec["status"]))
        grandchild = subprocess.Popen(["sleep", "60"])
        (out / "grandchild").write_text(str(grandchild.pid))
        say(progress=[1, 9, "steps"])
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1])
