"""The smoke preset through a faulty store, run again and again until BESSEMER_FAULTS faults were served (`make faults-all`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bessemer.config import load
from store.storage import Storage, open_root
from store.verify import verify
from tasks.runner import PlanRunner
from tasks.stage import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from fault_proxy import FaultProxy

ROOT = Path(__file__).parents[2]
WANTED = int(os.environ.get("BESSEMER_FAULTS", "0"))
SEED = int(os.environ.get("BESSEMER_FAULTS_SEED", "1"))
RATE = 0.1

pytestmark = [pytest.mark.e2e, pytest.mark.on_demand]


def run(uri: str, endpoint: str) -> subprocess.CompletedProcess:
    place = ["--set", f"storage.root={uri}", "--set", f"storage.endpoint_url={endpoint}"]
    command = [sys.executable, "-m", "bessemer.cli", "run", "pretrain", "--preset", "smoke", *place]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=ROOT)


def digests(storage: Storage) -> dict[str, str]:
    from flows.pretrain import body

    config = load("smoke")
    runner = PlanRunner(Engine(storage, config, config.run, None, "test"))  # type: ignore[arg-type]
    body(runner, config)
    return {planned.stage.name: planned.reuse.digest if planned.reuse else "" for planned in runner.plans}


def test_smoke_through_a_faulty_store_ends_with_the_same_digests(undisturbed: Storage, s3: Storage, s3_server: str):
    """Runs of their own roots, each started again when it gives up, until enough faults were served."""
    want = digests(undisturbed)
    ends: list[str] = []
    with FaultProxy(s3_server, rate=RATE, seed=SEED) as proxy:
        roots = 0
        while sum(proxy.served.values()) < WANTED:
            uri = f"{s3.uri}/run-{roots}"
            for _ in range(20):
                done = run(uri, proxy.url)
                assert "Traceback" not in done.stderr, done.stderr[-3000:]
                if done.returncode == 0:
                    break
                ends.append(done.stderr.strip().splitlines()[-1])
            storage, roots = open_root(uri, s3_server), roots + 1
            assert done.returncode == 0, ends
            assert digests(storage) == want
            assert not verify(storage, lambda *_: None).faults
            print(f"{roots} runs, {proxy.requests} requests, {sum(proxy.served.values())} faults", flush=True)
    print(f"{sum(proxy.served.values())} faults in {proxy.requests} requests of {roots} runs: {dict(proxy.served)}; seed {SEED}")
    print(f"{len(ends)} ended before: {ends}")
