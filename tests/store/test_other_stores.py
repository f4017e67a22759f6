"""S3 stores other than Amazon's: one that refuses what only Amazon's newest takes and checks each body, served for real before moto.

To try another server: BESSEMER_TEST_S3=http://… pytest tests/store -k "s3 or faulty or broken or stands".
"""

import hashlib
import http.client
import itertools
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from boto3.s3.transfer import TransferConfig

from contract.errors import InputError, TransientError
from store import s3 as module
from store.digests import digest_of_bytes
from store.root import open_root
from store.storage import Storage
from tests.store.fault_proxy import FaultProxy

DATA = secrets.token_bytes(100_000)
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
UNKNOWN = ("x-amz-sdk-checksum-algorithm", "x-amz-trailer", "x-amz-checksum-crc32", "x-amz-checksum-crc64nvme", "content-encoding")


class _Strict(BaseHTTPRequestHandler):
    """Answers 501 to the headers of new checksums, 400 to a body that is not what was signed, and 404 unless the bucket is in the path."""

    protocol_version = "HTTP/1.1"
    server: "StrictStore"

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT" and next(self.server.puts) in self.server.flips:
            body = bytes([body[0] ^ 1, *body[1:]]) if body else body
        signed = self.headers.get("x-amz-content-sha256", "")
        if self.command == "GET" and "uploads" in urlsplit(self.path).query.split("&"):
            self._refuse(501, "NotImplemented", "Unfinished uploads are not listed")
        elif [name for name in UNKNOWN if name in self.headers] or "chunked" in self.headers.get("Transfer-Encoding", ""):
            self._refuse(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        elif hashlib.sha256(body).hexdigest() != signed:
            self._refuse(400, "XAmzContentSHA256Mismatch", "The body is not the one that was signed")
        else:
            self._pass_on(body)

    def _pass_on(self, body: bytes) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=20)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            if self.command == "GET" and "?" not in self.path and data and next(self.server.gets) in self.server.flips:
                data = bytes([data[0] ^ 1, *data[1:]])
        finally:
            upstream.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", (answer.getheader("Content-Length") or "0") if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _refuse(self, status: int, code: str, message: str) -> None:
        data = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


class StrictStore(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Strict)
        self.upstream = urlsplit(upstream).netloc
        self.puts, self.gets, self.flips = itertools.count(), itertools.count(), set[int]()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def strict(s3_server: str) -> Iterator[StrictStore]:
    with StrictStore(s3_server) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def store(strict: StrictStore, s3: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    module._client.cache_clear()
    yield open_root(s3.uri, strict.url)
    module._client.cache_clear()


def every_call(store: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    store.probe()
    assert store.create("made", DATA) and not store.create("made", b"other")
    store.put("put", tmp_path / "file")
    store.write("written", DATA)
    for path in ("made", "put", "written"):
        assert store.read(path) == DATA and store.digest(path) == digest_of_bytes(DATA)
        store.fetch(path, tmp_path / "fetched")
        assert (tmp_path / "fetched").read_bytes() == DATA
        assert store.open(path).read() == DATA
    assert [entry.size for entry in store.list("")] == [len(DATA)] * 3
    store.delete("made")
    assert store.stat("made") is None and store.now() > 0 and store.halves("", store.now()) == []


def test_a_store_that_refuses_new_checksums_takes_every_call(store: Storage, tmp_path: Path):
    every_call(store, tmp_path)


def test_so_does_a_large_file_in_parts(store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TRANSFER", TransferConfig(multipart_threshold=2**20, multipart_chunksize=5 * 2**20, max_concurrency=2))
    data = DATA * 120
    (tmp_path / "file").write_bytes(data)
    store.put("large", tmp_path / "file")
    assert digest_of_bytes(store.read("large")) == digest_of_bytes(data) == store.digest("large")
    store.fetch("large", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == data


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_address_from_the_environment_is_as_good_as_the_setting(
    strict: StrictStore, s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    """By a host name too, which boto3 by itself would put the bucket's name before."""
    monkeypatch.setenv(variable, strict.url.replace("127.0.0.1", "localhost"))
    module._client.cache_clear()
    every_call(open_root(s3.uri), tmp_path)
    module._client.cache_clear()


@pytest.mark.parametrize(("style", "want"), [("virtual", "http://bucket.store.example/a"), ("path", "http://store.example/bucket/a")])
def test_the_profile_of_the_user_chooses_virtual_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str, want: str):
    """What is asked over HTTP, seen by a proxy: a bucket's host name has no address here."""
    asked: list[str] = []

    class Notes(_Strict):
        def do_GET(self) -> None:
            asked.append(self.path)
            self._refuse(404, "NoSuchKey", "none")

    (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {style}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Notes) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        variables = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "HTTP_PROXY": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": ""}
        for name, value in (variables | KEYS).items():
            monkeypatch.setenv(name, value)
        module._client.cache_clear()
        with pytest.raises(FileNotFoundError):
            open_root("s3://bucket", "http://store.example").read("a")
        server.shutdown()
    module._client.cache_clear()
    assert asked == [want]


def test_amazons_own_addresses_keep_its_checksum():
    """Amazon's S3 sends the CRC32 of a write back with each read: nothing changes there."""
    for address in ("https://s3.eu-west-1.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn", "https://s3.us-east-1.api.aws"):
        assert module._client(address).meta.config.request_checksum_calculation == "when_supported"
    for address in ("https://amazonaws.com.example.org", "https://s3.example.org", "https://notamazonaws.com"):
        assert module._client(address).meta.config.request_checksum_calculation == "when_required"


@pytest.mark.parametrize("call", ["write", "put", "create"])
def test_a_body_that_arrives_changed_is_refused_and_sent_again(
    store: Storage, strict: StrictStore, s3: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    (tmp_path / "file").write_bytes(DATA)
    strict.flips |= {0, 1}
    {
        "write": lambda: store.write("a", DATA),
        "put": lambda: store.put("a", tmp_path / "file"),
        "create": lambda: store.create("a", DATA),
    }[call]()
    assert s3.read("a") == DATA
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    strict.flips |= set(range(100))
    with pytest.raises(TransientError, match=r"arrived changed|answered XAmzContentSHA256Mismatch six times"):
        {
            "write": lambda: store.write("b", DATA),
            "put": lambda: store.put("b", tmp_path / "file"),
            "create": lambda: store.create("b", DATA),
        }[call]()
    assert s3.stat("b") is None


@pytest.mark.parametrize("call", ["read", "digest", "fetch"])
def test_a_body_that_comes_back_changed_is_read_again(store: Storage, strict: StrictStore, tmp_path: Path, call: str):
    store.write("a", DATA)
    strict.flips |= {0, 1}
    if call == "read":
        assert store.read("a") == DATA
    elif call == "digest":
        assert store.digest("a") == digest_of_bytes(DATA)
    else:
        store.fetch("a", tmp_path / "fetched")
        assert (tmp_path / "fetched").read_bytes() == DATA
    assert next(strict.gets) >= 3


def test_what_others_wrote_is_read_as_it_is(store: Storage, s3: Storage, s3_server: str):
    client = boto3.client("s3", endpoint_url=s3_server)
    bucket = s3.uri.split("/")[2]
    client.put_object(Bucket=bucket, Key="pre/fix/theirs", Body=DATA, Metadata={"sha256": "of something else"})
    assert store.read("theirs") == DATA


def test_a_store_that_refuses_the_checksum_that_the_environment_asks_for_is_said(
    strict: StrictStore, s3: Storage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    module._client.cache_clear()
    with pytest.raises(InputError, match=r"does not implement what it was asked: .* AWS_REQUEST_CHECKSUM_CALCULATION asks for: unset it"):
        open_root(s3.uri, strict.url).probe()
    module._client.cache_clear()


def test_a_lying_length_is_found_though_no_checksum_came_with_the_write(s3: Storage, s3_server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    s3.write("a", DATA)
    with FaultProxy(s3_server, rate=1.0, seed=1, kinds=["lying_length"]) as proxy, pytest.raises(TransientError, match="broke off"):
        open_root(s3.uri, proxy.url).read("a")
