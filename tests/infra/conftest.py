"""A Prefect server with the pool that the GPU machines serve, and an EC2 metadata service, both over HTTP."""

import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bessemer import processes

sys.path[:0] = [
    str(Path(__file__).parents[2] / "deployments"),
    str(Path(__file__).parent),
]  # scripts, as `python deployments/x.py` sees them

from worlds import FakeMetadata, Server  # noqa: E402


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
    command = processes.prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    process = processes.start(command, folder / "server.pid", folder / "server.log", variables, folder)
    server = Server(url, variables)
    try:
        assert processes.wait_until(server.api.is_healthy, 120), processes.last_lines(folder / "server.log")
        yield server
    finally:
        processes.stop(process, 15)


@pytest.fixture
def metadata() -> Iterator[FakeMetadata]:
    fake = FakeMetadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def say(self, code: int, text: str = "") -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            if self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
                self.say(200, fake.token)
            else:
                self.say(400)

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != fake.token:
                fake.refused += 1
                self.say(401)
            elif fake.broken > 0:
                fake.broken -= 1
                self.say(503)
            elif (text := fake.answers.get(self.path.removeprefix("/latest/meta-data/"))) is not None:
                self.say(200, text)
            else:
                self.say(404)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fake.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()
