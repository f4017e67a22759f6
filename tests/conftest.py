"""Fixtures that several rooms share."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything loads an OpenMP: two workers of two spinning threads each, on two cores, cost a factor of ten.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}

import boto3
import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from services import background
from store.root import open_root
from store.storage import Storage
from tests.infra.machines.worlds import Server

# A loaded machine is no failure, and CI judges the code, not today's draw: new examples are for the person at the keyboard.
settings.register_profile("bessemer", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("bessemer")


SERVERS = {"s3_server", "prefect_server", "terraform", "two_workers", "broken"}
"""Fixtures that start what takes seconds, or a request over HTTP for each thing asked: whoever uses one is `slow`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not SERVERS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)  # the longest first
    if not os.environ.get("BESSEMER_FAULTS"):
        for item in items:
            if item.get_closest_marker("on_demand"):
                item.add_marker(pytest.mark.skip(reason="on demand: make faults-all"))


TOGETHER = {
    "whole run": ("tests/e2e/",),
    "Prefect server": ("tests/services/test_automations.py", "tests/engine/test_prefect_runner.py", "tests/infra/machines/"),
}
"""Files that share what takes long to make."""


class ByFile(LoadScopeScheduling):
    """A file's tests run in one process, for their fixtures, and so do those of files that share more."""

    def _split_scope(self, nodeid: str) -> str:
        return next((shared for shared, places in TOGETHER.items() if nodeid.startswith(places)), nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Small real data sets, which are not part of the repository; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("BESSEMER_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set BESSEMER_TEST_DATA to the folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The digest memo in a folder of the tests', and the libraries' variables as the product sets them."""
    from contract.environment_variables import prepare_environment

    os.environ["BESSEMER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    prepare_environment()


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """pytest's own listens at the root alone, whose handlers Prefect throws away when it sets its loggers up, whoever is listening."""
    logger = logging.getLogger("bessemer")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server over HTTP: in this process, or the one that BESSEMER_TEST_S3 names, for which the keys are set."""
    if other := os.environ.get("BESSEMER_TEST_S3"):
        yield other
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server that nothing in this process or its environment points at."""
    folder = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
    variables = kept | {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = background.prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    process = background.start(command, folder / "server.pid", folder / "server.log", variables, folder)
    server = Server(url, variables)
    try:
        assert background.wait_until(server.api.is_healthy, 120), background.last_lines(folder / "server.log")
        yield server
    finally:
        background.stop(process, 15)


@pytest.fixture
def s3(s3_server: str) -> Storage:
    """An empty bucket under a name of its own."""
    bucket = f"bucket-{secrets.token_hex(6)}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    return open_root(f"s3://{bucket}/pre/fix", s3_server)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_root((tmp_path / "root").as_uri())


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Both kinds of store, one after the other."""
    return request.getfixturevalue(request.param)
