"""An HTTP proxy between us and an S3 server that breaks a seeded share of the requests, in the ways real stores and networks do.

    with FaultProxy(server_url, rate=0.2, seed=1) as proxy: open_root(uri, proxy.url)

Each request that is hit gets one fault; `proxy.served` counts them by kind. A fault of credentials or clock ends a run by design,
so these kinds are only served when asked for.
"""

import contextlib
import http.client
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HEALING = (
    "error_500",
    "slow_down",
    "reset_before",
    "reset_in_request",
    "reset_in_body",
    "stall",
    "short_body",
    "lying_length",
    "lost_answer",
)
"""Faults that a client has to live through."""
REFUSALS = {
    "error_500": (500, "InternalError"),
    "slow_down": (503, "SlowDown"),
    "access_denied": (403, "AccessDenied"),
    "account_problem": (403, "AccountProblem"),
    "clock_skew": (403, "RequestTimeTooSkewed"),
    "expired_token": (400, "ExpiredToken"),
    "invalid_token": (400, "InvalidToken"),
    "request_expired": (400, "RequestExpired"),
    "token_refresh": (400, "TokenRefreshRequired"),
    "unauthorized": (401, "Unauthorized"),
    "unknown_key": (403, "InvalidAccessKeyId"),
    "wrong_region": (400, "AuthorizationHeaderMalformed"),
}
"""What the server says by itself: status and code."""
FINAL = tuple(kind for kind in REFUSALS if kind not in HEALING)
"""Faults that a person has to repair."""


class FaultProxy:
    def __init__(self, upstream: str, rate: float, seed: int, kinds: Sequence[str] = HEALING, stall_s: float = 0.3) -> None:
        self.host = urlsplit(upstream).netloc
        self.rate, self.kinds, self.stall_s = rate, tuple(kinds), stall_s
        self.served: Counter[str] = Counter()
        self.requests = 0
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self, method: str) -> str | None:
        """The fault of the next request, or None. A kind that the method cannot show is drawn again."""
        with self._lock:
            self.requests += 1
            if self._random.random() >= self.rate:
                return None
            while (kind := self._random.choice(self.kinds)) not in self.kinds or not _can(kind, method):
                pass
            return kind

    def note(self, kind: str) -> None:
        with self._lock:
            self.served[kind] += 1


def _can(kind: str, method: str) -> bool:
    if kind in ("reset_in_body", "short_body", "lying_length"):
        return method == "GET"
    if kind == "reset_in_request":
        return method in ("PUT", "POST")
    return kind != "lost_answer" or method in ("PUT", "POST", "DELETE")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, *_: object) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def serve(self) -> None:
        proxy = self.server.proxy
        kind = proxy.draw(self.command)
        if kind:
            proxy.note(kind)
        if kind == "reset_in_request":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            return self._reset()
        body = self._request_body()
        if kind == "reset_before":
            return self._reset()
        if kind in REFUSALS:
            return self._refuse(*REFUSALS[kind])
        status, headers, data = self._forward(body)
        if kind == "lost_answer":
            return self._reset()
        if kind == "stall" and len(data) < 2:  # no body to stand still in
            time.sleep(proxy.stall_s)
        return self._answer(status, headers, data, kind)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve

    def _request_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.proxy.host, timeout=60)
        try:
            dropped = ("transfer-encoding", "content-length", "expect", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, kind: str | None) -> None:
        """The server's answer, its body broken as asked."""
        half = data[: len(data) // 2]
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(half)) if kind == "lying_length" else length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("reset_in_body", "short_body", "lying_length"):
            self.wfile.write(half)
            self.wfile.flush()
            if kind == "reset_in_body":
                self._reset()
            self.close_connection = True
            return
        if kind == "stall" and len(data) > 1:
            self.wfile.write(half)
            self.wfile.flush()
            time.sleep(self.server.proxy.stall_s)
            data = data[len(half) :]
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>as the test asked</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """End the connection with RST, not FIN."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def log_message(self, *_: object) -> None: ...
