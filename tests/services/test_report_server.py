"""The reports' server, for real on a free port: what it shows, and that it shows nothing else."""

import http.client
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from services import background, report_server
from tests.services.test_services import free_port

NAME = "81a7839bf657"
PAGE = "<!doctype html><p>ünïcode</p>".encode()


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A report in a store, and this clone's services folder with a link to it and with much else."""
    monkeypatch.setenv("BESSEMER_HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "services" / "reports"
    folder.mkdir(parents=True)
    page = tmp_path / "runs" / "artifacts" / "report" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_bytes(PAGE)
    (folder / f"{NAME}.html").symlink_to(page)
    (folder / "aaaaaaaaaaaa.html").symlink_to(tmp_path / "gone" / "report.html")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "bbbbbbbbbbbb.html").symlink_to(tmp_path / "secret.txt")
    (folder / "cccccccccccc.html").write_text("secret")
    (folder.parent / "state.json").write_text("{}")
    return page


@pytest.fixture
def port(report: Path) -> Iterator[int]:
    with report_server.server(0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"
        yield server.server_address[1]
        server.shutdown()


def ask(port: int, path: str, method: str = "GET", hosts: Sequence[str] | None = None) -> tuple[int, bytes, dict[str, str]]:
    """A request as it is written, with no client in between that would tidy the path. `hosts`: its Host headers, if not the usual one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_accept_encoding=True, skip_host=hosts is not None)
    for host in hosts or ():
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_a_linked_report_is_shown_under_a_policy_of_its_own(port: int) -> None:
    status, body, headers = ask(port, f"/{NAME}.html")
    assert (status, body, headers["Content-Type"]) == (200, PAGE, "text/html; charset=utf-8")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'") and headers["X-Content-Type-Options"] == "nosniff"
    status, body, headers = ask(port, f"/{NAME}.html", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(PAGE)))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/reports/",
        f"/{NAME}",
        f"/{NAME}.html/",
        f"/{NAME}.html%00",
        "/aaaaaaaaaaaa.html",
        "/bbbbbbbbbbbb.html",
        "/cccccccccccc.html",
        "/dddddddddddd.html",
        "/../state.json",
        "/..%2fstate.json",
        "//etc/passwd",
        f"/../reports/{NAME}.html",
    ],
)
def test_nothing_else_is_shown(port: int, path: str) -> None:
    status, body, _ = ask(port, path)
    assert status == 404 and b"secret" not in body and PAGE not in body and NAME.encode() not in body


@pytest.mark.parametrize("path", [f"/{NAME}.html", report_server.METRICS])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "hosts",
    [
        ["evil.example"],
        ["evil.example:4201"],
        ["127.0.0.1.evil.example:4201"],
        ["localhost.evil.example"],
        ["evil.example#127.0.0.1"],
        ["localhost@evil.example"],
        ["127.0.0.1", "evil.example"],
        ["0.0.0.0:4201"],
        [""],
        [],
    ],
)
def test_a_page_whose_name_leads_here_reads_nothing(port: int, hosts: list[str], method: str, path: str) -> None:
    status, body, _ = ask(port, path, method, hosts)
    assert status == 421 and PAGE not in body and b"bessemer_" not in body


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:8080", "127.0.0.1", "[::1]:{}"])
def test_every_name_of_this_machine_is_answered_also_behind_a_forwarded_port(port: int, host: str) -> None:
    assert ask(port, f"/{NAME}.html", hosts=[host.format(port)])[:2] == (200, PAGE)
    assert ask(port, report_server.METRICS, hosts=[host.format(port)])[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_reads(port: int, method: str) -> None:
    assert ask(port, f"/{NAME}.html", method)[0] == 501


def test_a_run_links_its_report_where_the_server_of_its_clone_runs(report: Path, tmp_path: Path) -> None:
    services, port = tmp_path / ".cache" / "services", free_port()
    assert report_server.served(report, "f" * 64) is None
    process = background.start(
        [sys.executable, "-m", "services.report_server", str(port)],
        services / "reports.pid",
        services / "reports.log",
        dict(os.environ),
        Path(__file__).parents[2],
    )
    try:
        (services / "state.json").write_text(json.dumps({"reports_url": f"http://127.0.0.1:{port}"}))
        newer = report.with_name("newer") / "report.html"
        newer.parent.mkdir()
        newer.write_text("rebuilt")
        for page, body in ((report, PAGE), (newer, b"rebuilt")):  # the newest of one fingerprint counts
            assert report_server.served(page, "f" * 64) == f"http://127.0.0.1:{port}/ffffffffffff.html"
            assert background.wait_until(lambda: is_up(port), 20)
            assert ask(port, "/ffffffffffff.html")[:2] == (200, body)
    finally:
        assert background.stop(process, 10)


def is_up(port: int) -> bool:
    try:
        return ask(port, "/")[0] == 404
    except OSError:
        return False
