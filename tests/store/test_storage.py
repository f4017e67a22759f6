import errno
import os
import stat
import threading

import pytest
import torch
from safetensors.torch import save_file

from contract.errors import ConfigError, InputError, StorageError
from store.attempt import Attempt
from store.digests import digest_of_file, read_digest
from store.root import open_root
from store.storage import Storage, matches


def test_what_is_written_is_read_and_listed_in_order(storage: Storage, tmp_path):
    (tmp_path / "local").write_bytes(b"from a file")
    storage.write("b/two", b"2")
    storage.write("a/one", b"1")
    storage.put("b/three", tmp_path / "local")
    assert [entry.path for entry in storage.list("")] == ["a/one", "b/three", "b/two"]
    assert [entry.path for entry in storage.list("b/t")] == ["b/three", "b/two"]
    assert storage.read("b/three") == b"from a file"
    assert storage.open("b/two").read() == b"2"
    storage.fetch("b/three", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"from a file"
    storage.delete("a/one")
    assert storage.stat("a/one") is None
    with pytest.raises(FileNotFoundError):
        storage.read("a/one")


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/secret", "..", "a/.."])
def test_a_path_that_leads_out_of_the_root_is_refused(local: Storage, tmp_path, path: str):
    (tmp_path / "secret").write_bytes(b"not the root's")
    calls = (local.read, local.stat, local.delete, local.list, lambda path: local.write(path, b""), lambda path: local.create(path, b""))
    for call in calls:
        with pytest.raises(InputError, match=r"leads out of storage\.root"):
            call(path)
    assert (tmp_path / "secret").read_bytes() == b"not the root's"
    assert local.write("a/..b/c..", b"x") and local.read("a/..b/c..") == b"x", "dots within a name climb nowhere"


def test_of_many_that_create_one_path_exactly_one_succeeds(storage: Storage):
    won: list[int] = []
    threads = [threading.Thread(target=lambda i=i: storage.create("once", b"%d" % i) and won.append(i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("once") == b"%d" % won[0]


def test_creating_again_with_our_own_bytes_is_our_own_success_on_s3(s3: Storage):
    assert s3.create("nonce", b"abc")
    assert s3.create("nonce", b"abc")
    assert not s3.create("nonce", b"abd")


def test_a_changed_file_no_longer_matches_its_record(storage: Storage, tmp_path):
    entry = storage.write("f", b"abc")
    local = storage.local("f")
    digest = read_digest(local) if local else ""
    assert matches(storage, storage.list("f")[0], 3, digest, entry.token)
    storage.write("f", b"abd")
    assert not matches(storage, storage.list("f")[0], 3, digest, entry.token)


def test_the_memo_notices_a_change_that_keeps_the_size(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    before = digest_of_file(file)
    file.write_bytes(b"abd")
    assert digest_of_file(file) == read_digest(file) != before


def test_a_write_that_fails_leaves_nothing(local: Storage, monkeypatch):
    monkeypatch.setattr("store.local_disk._fsync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="is full"):
        local.write("f", b"abc")
    assert local.list("") == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("file/below", "a file stands where a folder must be: {root}/file"),
        ("folder", "a folder stands where a file must be: {root}/folder"),
    ],
)
def test_what_is_in_the_way_is_named(local: Storage, name: str, sentence: str):
    local.write("file", b"1")
    local.write("folder/one", b"1")
    with pytest.raises(InputError) as caught:
        local.write(name, b"2")
    assert str(caught.value) == sentence.format(root=local.local("")) + ". Move it away and run again."
    assert [entry.path for entry in local.list("")] == ["file", "folder/one"]


def test_a_file_in_the_way_of_a_lock_is_named_and_not_taken_for_a_lost_race(local: Storage):
    local.write("locks", b"1")
    with pytest.raises(InputError, match=r"a file stands where a folder must be: .*/locks\."):
        local.create("locks/1", b"2")


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_disk_that_breaks_is_said_in_a_sentence(local: Storage, monkeypatch, verb: str):
    def breaks(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    local.write("f", b"abc")
    monkeypatch.setattr(f"pathlib.Path.{verb}_bytes", breaks)
    with pytest.raises(StorageError) as caught:
        local.read("f") if verb == "read" else local.write("f", b"abd")
    assert str(caught.value) == (
        f"cannot {verb} {local.local('f')}: Input/output error. Check the disk or mount that holds it, then run again."
    )


@pytest.mark.parametrize("uri", ["ftp://x/y", "file://host/x", "s3://ab/x"])
def test_a_root_that_cannot_work_is_refused(uri):
    with pytest.raises(ConfigError, match=r"storage\.root"):
        open_root(uri)


def test_wrong_credentials_and_a_missing_bucket_end_with_a_sentence(s3_server):
    with pytest.raises(InputError, match="there is no bucket"):
        open_root("s3://not-there/x", s3_server).probe()


def test_a_store_that_ignores_the_condition_is_refused(s3: Storage, monkeypatch):
    monkeypatch.setattr(type(s3), "create", lambda self, path, data: bool(self.write(path, data)))
    with pytest.raises(InputError, match="ignores If-None-Match"):
        s3.probe()
    assert s3.list("") == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_every_file_of_an_artifact_has_the_rights_that_the_umask_gives(local: Storage, tmp_path, umask: int):
    attempt = Attempt.new(local, "export", "f" * 64, "basis")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")  # safetensors makes it 0600
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").chmod(0o777)
    before = os.umask(umask)
    try:
        for name in ("model.safetensors", "config.json"):
            attempt.file(f"export/{name}", tmp_path / name)
        attempt.bytes("losses.jsonl", b"")
        attempt.seal("part-00000", [], {})
        local.create(f"{attempt.folder}manifest", b"{}")
    finally:
        os.umask(before)
    rights = {entry.path: stat.S_IMODE(local.local(entry.path).stat().st_mode) for entry in local.list("")}
    assert len(rights) == 5
    assert set(rights.values()) == {0o666 & ~umask}, rights
