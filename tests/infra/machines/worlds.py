"""What the tests talk to: a Prefect server as its clients use it, an EC2 metadata service that can fail, and a machine's processes."""

import contextlib
import http.server
import json
import secrets
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from services import background
from services.prefect_api import Api

ROOT = Path(__file__).parents[3]


@dataclass
class Server:
    url: str
    variables: dict[str, str]

    @property
    def api(self) -> Api:
        return Api(self.url, self.variables.get("PREFECT_API_AUTH_STRING"))

    def run(self, deployment: str, **state: Any) -> str:
        """A new run of the deployment, as a person or `run_deployment` makes one."""
        body = {"parameters": {}, "state": {"type": "SCHEDULED", **state}}
        return self.api.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]

    def take(self, run: str, worker: str) -> None:
        """What a worker does when it is handed a run."""
        self.set_state(run, "PENDING")
        self.api.call("PATCH", f"/flow_runs/{run}/labels", {"prefect.worker.name": worker})
        self.set_state(run, "RUNNING")

    def set_state(self, run: str, kind: str) -> None:
        self.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": kind}, "force": True})

    def heartbeat(self, pool: str, worker: str) -> None:
        self.api.call("POST", f"/work_pools/{pool}/workers/heartbeat", {"name": worker})

    def pool(self, entrypoint: str = "flow.py:toy", path: str = "/") -> tuple[str, dict[str, str]]:
        """A new pool with the two queues, and a deployment for each: the pool's name, deployment ids by queue."""
        name = f"gpu-{secrets.token_hex(3)}"
        self.api.call("POST", "/work_pools/", {"name": name, "type": "process"})
        flow = self.api.call("POST", "/flows/", {"name": entrypoint.partition(":")[2]})["id"]
        deployments = {}
        for queue in ("spot", "on-demand"):
            self.api.call("POST", f"/work_pools/{name}/queues", {"name": queue})
            body = {
                "name": f"{name}-{queue}",
                "flow_id": flow,
                "work_pool_name": name,
                "work_queue_name": queue,
                "entrypoint": entrypoint,
                "path": path,
            }
            deployments[queue] = self.api.call("POST", "/deployments/", body)["id"]
        return name, deployments


@dataclass
class FakeMetadata:
    """IMDSv2: nothing without a token; answers `broken` requests with 503 first."""

    answers: dict[str, str] = field(default_factory=dict)
    broken: int = 0
    refused: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    endpoint: str = ""


def notice(seconds: float) -> str:
    return json.dumps({"action": "terminate", "time": (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")})


@contextlib.contextmanager
def metadata_service() -> Iterator[FakeMetadata]:
    """The service on a port of its own, and what it answers."""
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
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


class Machine:
    """One machine's worker and watcher, as the systemd units start them."""

    def __init__(self, server: Server, pool: str, instance: str, folder: Path, metadata: FakeMetadata | None = None) -> None:
        self.name, self.folder = f"{pool}-{instance}", folder
        variables = server.variables | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TOY_FOLDER": str(folder)}
        worker = [
            sys.executable,
            str(ROOT / "deployments" / "worker.py"),
            "--pool",
            pool,
            "--name",
            self.name,
            "--queues",
            "spot",
            "--limit",
            "1",
        ]
        self.worker = background.start(worker, folder / f"{instance}.pid", folder / f"{instance}.log", variables, folder)
        self.watcher: psutil.Process | None = None
        if metadata:
            variables = variables | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint}
            command = [sys.executable, "-m", "infra.machines.spot_watcher", "--name", self.name, "--every", "0.2"]
            command += ["--stop", f"kill -TERM {self.worker.pid}"]
            self.watcher = background.start(command, folder / "watcher.pid", folder / "watcher.log", variables, folder)

    def end(self) -> None:
        for process in (self.watcher, self.worker):
            if process is not None:
                background.stop(process, 40)
