"""Storage faults served for real: whatever the store does between us and it, the digests are those of an undisturbed run.

BESSEMER_FAULTS=1000 serves that many at least (`make faults-all`); 100 by default.
"""

import itertools
import logging
import os
import re
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from contract.errors import InputError, PipelineError, TransientError
from store.digests import digest_of_bytes
from store.root import open_root
from store.storage import Storage
from store.verify import verify
from tests.engine import toy
from tests.store.fault_proxy import FINAL, HEALING, FaultProxy

WANTED = int(os.environ.get("BESSEMER_FAULTS", "100"))
SEED = int(os.environ.get("BESSEMER_FAULTS_SEED", "1"))
AT_ONCE = 8


def through(proxy: FaultProxy, storage: Storage, folder: str = "") -> Storage:
    return open_root(f"{storage.uri}/{folder}".rstrip("/"), proxy.url)


def test_pipelines_through_a_faulty_store_end_with_the_same_digests(s3: Storage, s3_server: str, local: Storage):
    """Many at once, as the waiting is most of their time; each pipeline goes on from where a fault that outlived all retries left it."""
    want = [artifact.digest for artifact in toy.pipeline(toy.engine(local, toy.Config(count=6)))]
    digests: list[list[str]] = []
    given_up: list[str] = []
    numbers = itertools.count()

    def runs() -> None:
        while sum(proxy.served.values()) < WANTED:
            storage = through(proxy, s3, f"run-{next(numbers)}")
            for _ in range(10):
                try:
                    digests.append([artifact.digest for artifact in toy.pipeline(toy.engine(storage, toy.Config(count=6)))])
                    break
                except TransientError as error:
                    given_up.append(str(error))

    with FaultProxy(s3_server, rate=0.2, seed=SEED) as proxy:
        threads = [threading.Thread(target=runs) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"{sum(proxy.served.values())} faults in {proxy.requests} requests: {dict(proxy.served)}; {len(given_up)} given up; seed {SEED}")
    assert sum(proxy.served.values()) >= WANTED
    assert {*proxy.served} == {*HEALING}, "every kind was served"
    assert len(digests) == next(numbers) and all(found == want for found in digests)
    verdict = verify(s3, lambda *_: None)
    assert not verdict.faults


@pytest.mark.parametrize("kind", ["reset_in_body", "short_body", "lying_length", "lost_answer", "reset_in_request"])
def test_every_call_lives_through_a_broken_answer(s3: Storage, s3_server: str, tmp_path: Path, kind: str):
    data = secrets.token_bytes(100_000)
    (tmp_path / "file").write_bytes(data)
    with FaultProxy(s3_server, rate=1.0, seed=SEED, kinds=[kind]) as proxy:
        proxy.draw = once(proxy, kind)  # type: ignore[method-assign]
        store = through(proxy, s3)
        assert store.create("made", data)
        store.put("put", tmp_path / "file")
        store.write("written", data)
        for path in ("made", "put", "written"):
            assert store.read(path) == data
            assert store.digest(path) == digest_of_bytes(data)
            store.fetch(path, tmp_path / "fetched")
            assert (tmp_path / "fetched").read_bytes() == data
        assert [entry.size for entry in store.list("")] == [len(data)] * 3
        store.delete("made")
        assert store.stat("made") is None
    assert proxy.served[kind] >= 3


def once(proxy: FaultProxy, kind: str):
    """Every other request that can show the fault does."""
    turns = itertools.count()

    def draw(method: str) -> str | None:
        from tests.store.fault_proxy import _can

        proxy.requests += 1
        return kind if _can(kind, method) and next(turns) % 2 == 0 else None

    return draw


@pytest.mark.parametrize("call", ["read", "write", "create", "list"])
def test_a_store_that_stands_still_is_asked_again(s3: Storage, s3_server: str, monkeypatch, call: str):
    """Past the client's own patience, not only slow: after half of a body, or where a PUT's answer would begin."""
    monkeypatch.setattr("store.s3.READ_TIMEOUT_S", 0.4)
    data = b"bytes that come late"
    s3.write("a", data)
    with FaultProxy(s3_server, rate=1.0, seed=SEED, kinds=["stall"], stall_s=1.5) as proxy:
        proxy.draw = once(proxy, "stall")  # type: ignore[method-assign]
        store, started = through(proxy, s3), time.monotonic()
        said = {
            "read": lambda: store.read("a") == data,
            "write": lambda: store.write("b", data).size == len(data),
            "create": lambda: store.create("c", data),
            "list": lambda: [entry.path for entry in store.list("")] == ["a"],
        }[call]()
        assert said and time.monotonic() - started < 10
    assert proxy.requests > proxy.served["stall"] >= 1, "given up, and asked again"
    assert all(s3.read(entry.path) == data for entry in s3.list(""))


@pytest.mark.parametrize("kind", FINAL)
def test_credentials_and_clocks_end_a_run_at_once_with_nothing_half_visible(s3: Storage, s3_server: str, kind: str, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x")
    with FaultProxy(s3_server, rate=1.0, seed=SEED, kinds=[kind]) as proxy:
        store, started = through(proxy, s3), time.monotonic()
        calls = (store.probe, lambda: toy.pipeline(toy.engine(store)), lambda: store.put("x", tmp_path / "file"), lambda: store.stat("x"))
        for call in calls:
            with pytest.raises(InputError, match=r"S3 refused .* Check the credentials, their expiry") as raised:
                call()
            assert "\n" not in str(raised.value)
        assert time.monotonic() - started < 10
    assert s3.list("") == []


def test_credentials_that_expire_within_a_run_leave_what_a_later_run_goes_on_from(s3: Storage, s3_server: str, local: Storage):
    small = toy.Config(count=3)
    want = [artifact.digest for artifact in toy.pipeline(toy.engine(local, small))]
    with FaultProxy(s3_server, rate=0.06, seed=SEED, kinds=["expired_token"]) as proxy:
        ended = 0
        while ended < 60:
            try:
                made = toy.pipeline(toy.engine(through(proxy, s3), small))
                break
            except InputError:
                ended += 1
                assert not verify(s3, lambda *_: None).faults, "what was published is whole"
    assert 1 <= ended <= proxy.served["expired_token"]
    assert [artifact.digest for artifact in made] == want


SSO = "[profile sso]\nsso_start_url = https://example.org\nsso_region = us-east-1\nsso_account_id = 1\nsso_role_name = reader\n"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWS_PROFILE": "absent"}, "The config profile (absent) could not be found"),
        ({"AWS_ACCESS_KEY_ID": "alone"}, "Partial credentials found"),
        ({"AWS_PROFILE": "sso"}, "Error loading SSO Token"),
        ({}, "Unable to locate credentials"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_credentials_that_cannot_be_used_are_said_before_any_request(tmp_path: Path, monkeypatch, variables: dict[str, str], said: str):
    (tmp_path / "config").write_text(SSO)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    places = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    for name, value in {**places, "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(said) + ".*: set AWS_ACCESS_KEY_ID"):
        open_root("s3://bucket/x", f"http://127.0.0.1:9/{tmp_path.name}").read("a")


def test_a_store_that_is_gone_ends_with_a_sentence(s3_server: str, monkeypatch):
    monkeypatch.setattr("store.s3.RETRIES", 2)
    with pytest.raises(TransientError, match=r"no good answer from the store .* Check storage.endpoint_url"):
        open_root("s3://bucket/x", "http://127.0.0.1:9").read("a")


def test_a_password_in_the_environments_address_is_not_repeated(s3_server: str, monkeypatch):
    from store.s3 import _client

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:planted-secret@127.0.0.1:9")
    monkeypatch.setattr("store.s3.RETRIES", 1)
    _client.cache_clear()
    with pytest.raises(TransientError, match=r'no good answer .*"http://127.0.0.1:9/') as said:
        open_root("s3://bucket/x").read("a")
    _client.cache_clear()
    assert "planted-secret" not in str(said.value)


PLANTED = {"AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED42", "AWS_SECRET_ACCESS_KEY": "planted/secret+that/nobody/may/ever/see00"}


def test_a_planted_key_reaches_no_object_no_log_and_no_message(s3_server: str, monkeypatch, caplog, capfd):
    """Through whole runs, one that ends well and one whose error repeats the key; the run's record, an override with it included."""
    from engine.recording_journal import RecordingJournal
    from store.run_records import recorded, records

    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("store.s3.RETRIES", 3)  # another client than the other tests'
    from store.s3 import _client

    _client.cache_clear()
    caplog.set_level(logging.INFO)
    bucket = f"bucket-{secrets.token_hex(6)}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    storage, notes = open_root(f"s3://{bucket}/x", s3_server), toy.Silent()
    overrides = {"storage.endpoint_url": f"http://{':'.join(PLANTED.values())}@host"}
    with recorded(storage, "toy", "toy", overrides) as record:
        engine = toy.engine(storage)
        toy.pipeline(type(engine)(storage, engine.config, engine.run_options, RecordingJournal(notes, record), "toy"))
    with pytest.raises(PipelineError), recorded(storage, "toy", "toy", overrides):
        raise PipelineError(f"the store said {PLANTED}")
    _client.cache_clear()
    everything = b"".join(storage.read(entry.path) for entry in storage.list(""))
    everything += (caplog.text + str(notes.lines) + "".join(capfd.readouterr())).encode()
    states = [value["state"] for _, value in records(storage)]
    assert sorted(states) == ["completed", "failed"] and b"<AWS_SECRET_ACCESS_KEY>" in everything
    for value in PLANTED.values():
        assert value.encode() not in everything


class _WithoutConditionalWrites(BaseHTTPRequestHandler):
    """A store that answers `status` to If-None-Match and takes every other request."""

    protocol_version, status = "HTTP/1.1", 501

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b"<Error><Code>NotImplemented</Code><Message>A header is not implemented</Message></Error>"
        self.send_response(self.status if self.headers["If-None-Match"] else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_DELETE(self) -> None:
        self.send_response(204)
        self.end_headers()


@pytest.mark.parametrize("status", [501, 400])
def test_a_store_that_does_not_implement_conditional_writes_is_refused_before_any_work(monkeypatch, status: int):
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    handler = type("Handler", (_WithoutConditionalWrites,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with pytest.raises(InputError, match="does not implement a write with If-None-Match"):
            open_root("s3://bucket/root", f"http://127.0.0.1:{server.server_port}").probe()
        server.shutdown()
