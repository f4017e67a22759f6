"""The smoke preset through a faulty store, run again and again until BESSEMER_FAULTS faults were served (`make faults-all`)."""

import os

import pytest

from store.root import open_root
from store.storage import Storage
from store.verify import verify
from tests.e2e.conftest import run
from tests.e2e.installation import on_demand
from tests.e2e.test_smoke import digests
from tests.store.fault_proxy import FaultProxy

WANTED = int(os.environ.get("BESSEMER_FAULTS", "0"))
SEED = int(os.environ.get("BESSEMER_FAULTS_SEED", "1"))
RATE = 0.1

pytestmark = [pytest.mark.e2e, on_demand]


def test_smoke_through_a_faulty_store_ends_with_the_same_digests(undisturbed: Storage, s3: Storage, s3_server: str):
    """Runs of their own roots, each started again when it gives up, until enough faults were served."""
    want = digests(undisturbed)
    ends: list[str] = []
    with FaultProxy(s3_server, rate=RATE, seed=SEED) as proxy:
        roots = 0
        while sum(proxy.served.values()) < WANTED:
            uri = f"{s3.uri}/run-{roots}"
            for _ in range(20):
                done = run(open_root(uri, proxy.url))
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
