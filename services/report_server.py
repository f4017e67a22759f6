"""Serves the reports of this clone's runs over HTTP, so that a browser can open the link in a run's summary.

    python -m services.report_server PORT        what `make up` starts; it listens on 127.0.0.1 alone

A run that ends here leaves a symbolic link .cache/services/reports/<fingerprint>.html to its report.html, wherever its store lies. The
server answers GET /<fingerprint>.html with the file behind such a link, and GET /metrics with figures of this clone's runs
(services/run_metrics.py), and nothing else: no listing, no other name, no other file. It answers under a name of this machine alone: a
page of another site, whose own name was made to lead to 127.0.0.1, would otherwise read what is here (DNS rebinding).
"""

import json
import os
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from contract.own_folders import in_clone
from services import background, run_metrics

NAME = re.compile(r"/([0-9a-f]{12})\.html")
FILE = "report.html"
METRICS = "/metrics"
OWN_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
"""What a browser calls this server, whatever port a forwarding gives it."""


def services_folder() -> Path:
    home = Path(os.environ.get("BESSEMER_HOME") or Path(__file__).parents[1])
    return in_clone(home.resolve(), ".cache/services")


def served(report: Path, fingerprint: str) -> str | None:
    """Let the server of this clone show a report; returns its address, or None where no server runs."""
    services = services_folder()
    if background.running(services / "reports.pid") is None:
        return None
    name = f"{fingerprint[:12]}.html"
    folder = services / "reports"
    folder.mkdir(exist_ok=True)
    made = folder / f".{name}.{os.getpid()}"
    made.unlink(missing_ok=True)
    made.symlink_to(report.resolve())
    made.replace(folder / name)
    return f"{json.loads((services / 'state.json').read_text())['reports_url']}/{name}"


class Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "bessemer", ""

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not OWN_HOST.fullmatch(hosts[0]):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "Not of this name", "Ask for 127.0.0.1 or localhost, with the port.")
        elif self.path == METRICS:
            self._send(run_metrics.page(), run_metrics.CONTENT_TYPE)
        elif (page := self._page()) is not None:
            self._send(page, "text/html; charset=utf-8")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "No such report", "It is not of this clone's runs, or no longer in the store.")

    def _send(self, page: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(page)),
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_GET

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Scrapes come every few seconds for months: they would fill the log."""
        if self.path != METRICS:
            super().log_request(code, size)

    def _page(self) -> bytes | None:
        asked = NAME.fullmatch(self.path)
        if asked is None:
            return None
        link = services_folder() / "reports" / f"{asked[1]}.html"
        try:
            target = link.readlink()
            return target.read_bytes() if target.name == FILE else None
        except OSError:
            return None


def server(port: int) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit("usage: python -m services.report_server PORT")
    with server(int(sys.argv[1])) as reports:
        reports.serve_forever()
