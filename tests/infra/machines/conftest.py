"""A Prefect server with the pool that the GPU machines serve, and an EC2 metadata service, both over HTTP."""

import os
import socket
from collections.abc import Iterator

import pytest

from services import background
from tests.infra.machines.worlds import FakeMetadata, Server, metadata_service


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
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
def metadata() -> Iterator[FakeMetadata]:
    with metadata_service() as fake:
        yield fake
