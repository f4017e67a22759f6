"""The few calls to a Prefect server that set-up and shut-down need, over plain HTTP: `import prefect` alone costs 0.9 s."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from contract.errors import InputError, PipelineError

GONE = "Its process is gone (killed, or the machine stopped). A worker takes it up again where it stopped; Retry does so at once."
GPU_QUEUES = ("on-demand", "spot")
"""The queues of the pool of GPU machines; the first has the higher priority."""
LIVE = ["RUNNING", "PENDING", "CANCELLING"]


class ServerDown(PipelineError):
    """No server answers at the address."""


class Api:
    def __init__(self, url: str, password: str | None = None) -> None:
        """password: user:password of a server of ours. Without it, what the environment says about the user's server."""
        self.url, self._password = url.rstrip("/"), password
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        handlers = [urllib.request.ProxyHandler({})] if local else []  # a proxy of the environment is not for loopback
        self._opener = urllib.request.build_opener(*handlers)

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = 10) -> Any:
        """The decoded answer, None for 404. A locked SQLite answers 503, which is tried again."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "bessemer", **authorization(self._password)}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        for wait_s in (0.2, 0.5, 1.0, 2.0, None):
            try:
                with self._opener.open(request, timeout=timeout_s) as answer:
                    text = answer.read()
                    return json.loads(text) if text else {}
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code in (401, 403):
                    raise InputError(f"{self.url} refuses us ({error.code}); set PREFECT_API_KEY or PREFECT_API_AUTH_STRING") from error
                if error.code not in (429, 503) or wait_s is None:
                    raise PipelineError(f"{method} {self.url}{path}: {error.code} {error.read(500).decode(errors='replace')}") from error
            except (urllib.error.URLError, OSError, ValueError) as error:
                raise ServerDown(f"no Prefect server answers at {self.url} ({error}); start one by `make up`") from error
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def lets_us_in(self) -> bool:
        """Whether it answers and takes our password. A server answers /health to everybody."""
        try:
            self.pools()
            return True
        except PipelineError:
            return False

    def is_healthy(self) -> bool:
        try:
            return self.call("GET", "/health", timeout_s=2) is True
        except PipelineError:
            return False

    # ------------------------------------------------------------ pools and workers

    def pools(self) -> list[dict[str, Any]]:
        return self.call("POST", "/work_pools/filter", {}) or []

    def make_pool(self, name: str, queues: Iterable[str] = ()) -> None:
        """Make a pool for process workers, and its queues, unless they exist. The first of new queues has the higher priority.

        The pool's first worker fills in its job template.
        """
        if all(pool["name"] != name for pool in self.pools()):
            self.call("POST", "/work_pools/", {"name": name, "type": "process"})
        known = {queue["name"] for queue in self.call("POST", f"/work_pools/{quote(name)}/queues/filter", {}) or []}
        for queue in queues:
            if queue not in known:
                self.call("POST", f"/work_pools/{quote(name)}/queues", {"name": queue})

    def is_paused(self, pool: str) -> bool:
        return any(known["name"] == pool and known["is_paused"] for known in self.pools())

    def pause(self, pool: str, paused: bool) -> None:
        self.call("PATCH", f"/work_pools/{quote(pool)}", {"is_paused": paused})

    def workers(self, pool: str) -> list[dict[str, Any]]:
        """Those that sent a heartbeat lately; a killed one stays in the list for a while (30 s by default)."""
        found = self.call("POST", f"/work_pools/{quote(pool)}/workers/filter", {})
        return [worker for worker in found or [] if worker.get("status") == "ONLINE"]

    def has_worker(self, pool: str, name: str, since: float) -> bool:
        return any(
            worker["name"] == name and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= since
            for worker in self.workers(pool)
        )

    # ------------------------------------------------------------ runs

    def runs(self, states: list[str], **filters: Any) -> list[dict[str, Any]]:
        wanted = {"state": {"type": {"any_": states}}} | filters
        found: list[dict[str, Any]] = []
        while True:
            body = {"flow_runs": wanted, "limit": 200, "offset": len(found), "sort": "ID_DESC"}
            page = self.call("POST", "/flow_runs/filter", body) or []
            found += page
            if len(page) < 200:
                return found

    def reconcile(self, worker: str, alive: set[str], alone: bool) -> list[str]:
        """End the runs that `worker` took and whose process is gone, so that Retry can continue them; returns their names.

        Call it when that worker does not run. A run that another worker took is left to that one (and to the heartbeat automation).
        A run without a worker's name is ours only if we are `alone` on the server.
        """
        ended = []
        for run in self.runs(LIVE):
            taken_by = (run.get("labels") or {}).get("prefect.worker.name")
            ours = taken_by == worker or (taken_by is None and alone and run.get("work_pool_name") is not None)
            if not ours or run["id"] in alive:
                continue
            cancelling = run["state"]["type"] == "CANCELLING"
            state = {"type": "CANCELLED", "message": "Its process is gone."} if cancelling else {"type": "CRASHED", "message": GONE}
            self.call("POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": False})
            ended.append(run["name"])
        return ended


def authorization(password: str | None = None) -> dict[str, str]:
    if password is not None:
        return {"Authorization": "Basic " + base64.b64encode(password.encode()).decode()}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):  # first, as in Prefect's own client
        return authorization(pair)
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}
