"""What the tests of this folder talk to: a Prefect server as its clients use it, and an EC2 metadata service that can fail."""

import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bessemer.api import Api


@dataclass
class Server:
    url: str
    variables: dict[str, str]

    @property
    def api(self) -> Api:
        return Api(self.url)

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
