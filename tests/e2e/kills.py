"""kill -9 at any moment, and the same bytes in the end: what `make faults` and the first half of `make faults-all` run.

    python -m tests.e2e.kills random --kills 100 --seed 1     moments drawn from the seed; roots on disk and on S3 over HTTP in turn
    python -m tests.e2e.kills chained                         one kill inside every stage, one after the other

Each kill ends the flow process of a whole `smoke` run by SIGKILL, checks that none of its processes stays, and the next run goes on in
the same root. A root that has come to its end is held to the digests of an undisturbed run, to `verify`, and to an empty temp folder.
Exits with 1 when a digest differs. Prints where the kills hit and what they cost, and one line of JSON.
"""

import argparse
import json
import logging
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import boto3

from contract.environment_variables import prepare_environment
from store.root import open_root
from store.storage import Storage
from store.verify import verify
from tests.e2e.conftest import ROOT, command
from tests.e2e.test_smoke import MARK, digests, marked, plans

GONE_S = 20
"""Until no process of a killed run is left: the kernel ends ranks at once, Ray's notice within seconds that their driver is gone."""
RAY_GONE_S = 150
"""The same where Ray may have been killed while it started: its two agents look for the rest of it, mostly for 11 s, two minutes once."""


Moment = Callable[[subprocess.Popen[str], list[tuple[float, str]]], bool]
"""Waits for a moment of a running flow, by what it has said and when; whether to kill it there."""


@dataclass
class Life:
    """One root from empty to whole: every run on it, and where each was killed."""

    storage: Storage
    temp: Path
    stages: list[tuple[str, str]]
    workers: int
    seconds: float = 0.0
    back_s: list[float] = field(default_factory=list)
    hits: list[tuple[str, str]] = field(default_factory=list)
    late: int = 0
    gone_s: float = 0.0
    """The longest until nothing of a killed run was left."""

    def run(self, moment: Moment) -> bool:
        """A run until `moment` says to kill it, or to its end; whether it ended by itself."""
        mark, began, records = f"{os.getpid()}-{time.time_ns()}", time.monotonic(), len(self.storage.list("runs/"))
        environment = os.environ | {MARK: mark, "TMPDIR": str(self.temp), "RAY_TMPDIR": "/tmp", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
        line = [*command(self.storage), "--set", f"run.workers={self.workers}"]
        process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        said: list[tuple[float, str]] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: said.extend((time.monotonic() - began, text) for text in process.stdout or ()))
        reader.start()
        killed = True
        try:
            killed = moment(process, said)
        finally:
            if killed:  # or this program itself is being ended
                process.kill()
        status, ended = process.wait(), time.monotonic()
        self.seconds += ended - began
        reader.join()
        if not killed and status:
            sys.exit(f"a run ended with {status}:\n" + "".join(text for _, text in said[-30:]))
        self._nothing_stays(mark, ended)
        cached = [at for at, text in said if " cached " in text]
        if self.hits and cached:
            self.back_s.append(cached[-1])
        if killed:
            self.hits.append(self._where(len(self.storage.list("runs/")) > records))
        return not killed

    def _nothing_stays(self, mark: str, ended: float) -> None:
        limit = GONE_S if self.workers == 1 else RAY_GONE_S
        while left := list(marked(mark)):
            if time.monotonic() - ended > limit:
                sys.exit(f"{limit} s after the kill there are still {[process.cmdline()[:4] for process in left]}")
            time.sleep(0.1)
        self.gone_s = max(self.gone_s, time.monotonic() - ended)

    def published(self, stage: str, fingerprint: str) -> bool:
        return any("/manifest-" in entry.path for entry in self.storage.list(f"artifacts/{stage}/{fingerprint}/"))

    def _where(self, begun: bool) -> tuple[str, str]:
        """The first stage that has no manifest, and what it had done that the next attempt can take over."""
        if not begun:
            return "start-up", "imports"
        for stage, fingerprint in self.stages:
            if not self.published(stage, fingerprint):
                paths = [entry.path for entry in self.storage.list(f"artifacts/{stage}/{fingerprint}/")]
                seals, steps = sum(path.endswith(".seal") for path in paths), sorted(path[:-6] for path in paths if path.endswith("/WHOLE"))
                done = [f"{seals} parts sealed"] * bool(seals) + [f"checkpoint {int(path[-9:])}" for path in steps[-1:]]
                return stage, ", ".join(done) or ("at work" if paths else "nothing written yet")
        return "the end", "everything published"

    def check(self, want: dict[str, str]) -> list[str]:
        """The stages whose digest differs; anything else that is not as it should be ends the program."""
        got = digests(self.storage)
        if faults := verify(self.storage, lambda *_: None).faults:
            sys.exit(f"not as recorded: {faults[:3]}")
        if left := [path.name for path in self.temp.glob("bessemer-*")]:
            sys.exit(f"left in the temp folder: {left}")
        return [stage for stage in want if got[stage] != want[stage]]


def to_its_end(process: subprocess.Popen[str], said: list[tuple[float, str]]) -> bool:
    process.wait()
    return False


def after(seconds: float) -> Moment:
    def moment(process: subprocess.Popen[str], said: list[tuple[float, str]]) -> bool:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    return moment


def chained(place: "Places", seed: int) -> int:
    """A kill inside every stage: once the run has come past the stage before it, a share of this stage's own time later."""
    base = place.undisturbed
    draw, life = random.Random(seed), place.life("disk", 0)
    took = {name: planned.reuse.seconds for name, planned in plans(base.storage).items() if planned.reuse}
    before = ""
    for stage, fingerprint in base.stages:
        share = draw.uniform(0.2, 0.8)
        while life.run(inside(life, before, took[stage] * share)) or life.published(stage, fingerprint):
            for late, key in base.stages[[name for name, _ in base.stages].index(stage) :]:  # too late: once more, and sooner
                shutil.rmtree(place.folder / "disk-0" / "artifacts" / late / key, ignore_errors=True)
            share /= 2
            life.late += 1
        assert life.hits[-1][0] == stage, f"meant for {stage}, killed in {life.hits[-1][0]}"
        print(f"{stage:<20} killed: {life.hits[-1][1]}", flush=True)
        before = stage
    life.run(to_its_end)
    print(f"{life.late} kills came after the stage was published; it was deleted and made again")
    return report("a kill inside every stage, in turn", [life], place, seed)


def inside(life: Life, before: str, seconds: float) -> Moment:
    def moment(process: subprocess.Popen[str], said: list[tuple[float, str]]) -> bool:
        while process.poll() is None:
            if any(is_end_of(before, text) for _, text in said) if before else life.storage.list("runs/"):
                break
            time.sleep(0.005)
        return after(seconds)(process, said)

    return moment


def is_end_of(stage: str, line: str) -> bool:
    """Whether it is the stage's last line, not its progress or a note."""
    return re.match(rf"{stage} .* (ran|cached|resumed) +[0-9a-f]{{12}}\b", line) is not None


def at_random(place: "Places", kills: int, seed: int, mean_s: float, stores: list[str]) -> int:
    """Roots one after the other on each store in turn, each killed again and again and then let through, until there were enough kills."""
    draw, lives, share = random.Random(seed), list[Life](), -(-kills // len(stores))
    while (killed := sum(len(life.hits) for life in lives)) < kills:
        life = place.life(stores[len(lives) % len(stores)], len(lives))
        lives.append(life)
        while len(life.hits) < min(share, kills - killed) and not life.run(after(draw.uniform(0, 2 * mean_s))):
            stage, done = life.hits[-1]
            print(f"{life.storage.uri.split(':')[0]:<5} kill {killed + len(life.hits):>4}  {stage:<20} {done}", flush=True)
        if not all(life.published(*stage) for stage in life.stages):
            life.run(to_its_end)
    return report(f"{kills} kills at random moments, {mean_s:g} s apart on average", lives, place, seed)


def report(what: str, lives: list[Life], place: "Places", seed: int) -> int:
    want = digests(place.undisturbed.storage)
    differing = [f"{life.storage.uri}: {stage}" for life in lives for stage in life.check(want)]
    hits = Counter(stage for life in lives for stage, _ in life.hits)
    print(f"\n{what}; seed {seed}\n\n| killed in | times |\n|---|---|")
    for stage in ["start-up", *(name for name, _ in place.undisturbed.stages), "the end"]:
        if hits[stage]:
            print(f"| {stage} | {hits[stage]} |")
    print("\n| store | roots | kills | undisturbed, s | lost a kill, s | back where it was after, s |\n|---|---|---|---|---|---|")
    rows = []
    for store, undisturbed in place.baseline.items():
        mine = [life for life in lives if life.storage.uri.startswith({"disk": "file:", "s3": "s3:"}[store])]
        if kills := sum(len(life.hits) for life in mine):
            lost = sum(life.seconds - undisturbed for life in mine) / kills
            back = [seconds for life in mine for seconds in life.back_s]
            rows.append({"store": store, "roots": len(mine), "kills": kills, "undisturbed_s": undisturbed, "lost_s": lost})
            print(f"| {store} | {len(mine)} | {kills} | {undisturbed:.0f} | {lost:.1f} | {sum(back) / max(1, len(back)):.1f} |")
    print(f"\n{max(life.gone_s for life in lives):.1f} s after a run ended, at most, none of its processes was left")
    print(f"\n{len(differing)} differing digests" + "".join(f"\n  {line}" for line in differing))
    conditions = {"cores": os.cpu_count(), "python": platform.python_version(), "commit": commit(), "seed": seed, "workers": place.workers}
    print(json.dumps({"kills": sum(hits.values()), "differing": len(differing), "stores": rows, "conditions": conditions}))
    return 1 if differing else 0


def commit() -> str:
    return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


class Places:
    """Where the roots are, and the undisturbed ones that they are held to: one a kind of store, for its time."""

    def __init__(self, folder: Path, endpoint: str, stores: list[str], workers: int) -> None:
        self.folder, self.endpoint, self.workers = folder, endpoint, workers
        self.baseline: dict[str, float] = {}
        for store in stores:
            life = self.life(store, -1)
            life.run(to_its_end)
            life.stages = [(name, planned.fingerprint) for name, planned in plans(life.storage).items()]
            self.baseline[store] = life.seconds
            self.undisturbed = life
            print(f"undisturbed on {store}: {life.seconds:.0f} s, {len(life.stages)} stages", flush=True)

    def life(self, store: str, number: int) -> Life:
        temp = self.folder / f"temp-{store}-{number}"
        temp.mkdir()
        known = getattr(self, "undisturbed", None)
        if store == "disk":
            storage = open_root((self.folder / f"disk-{number}").as_uri())
        else:
            boto3.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=f"faults-{number + 1}")
            storage = open_root(f"s3://faults-{number + 1}/root", self.endpoint)
        return Life(storage, temp, known.stages if known else [], self.workers)


@contextmanager
def s3_server(wanted: bool) -> Iterator[str]:
    """An S3 server over HTTP, in a process of its own: in ours, Python's lock would slow it down."""
    if not wanted:
        yield ""
        return
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    program = (
        "import logging, signal, sys\nfrom moto.server import ThreadedMotoServer\nlogging.getLogger('werkzeug').setLevel(logging.ERROR)\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\nserver.start()\n"
        "print('http://%s:%d' % server.get_host_and_port(), flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="kill -9 at any moment, and the same bytes in the end.")
    parser.add_argument("what", choices=["random", "chained"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--mean", type=float, default=15.0, help="seconds between kills, on average")
    parser.add_argument("--workers", type=int, default=1, help="run.workers: with 2 each run starts a Ray of its own, which takes seconds")
    parser.add_argument("--stores", default="disk,s3", help="where the roots of `random` are, in turn")
    options = parser.parse_args()
    prepare_environment()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {options.seed}", flush=True)
    stores = ["disk"] if options.what == "chained" else options.stores.split(",")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, s3_server("s3" in stores) as endpoint:
        os.environ["BESSEMER_CACHE"] = f"{folder}/cache"
        place = Places(Path(folder), endpoint, stores, options.workers)
        if options.what == "chained":
            return chained(place, options.seed)
        return at_random(place, options.kills, options.seed, options.mean, stores)


if __name__ == "__main__":
    sys.exit(main())
