"""Copies of files on S3: whoever else is on the machine, whatever happened to the copy, the reader gets the bytes of the manifest."""

import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from contract.errors import InputError, IntegrityError
from store import fetched
from store.artifact import FileRecord, Files
from store.digests import digest_of_bytes
from store.storage import Storage

TEXT = b"the bytes that the manifest names\n" * 1000


class Recorded(Files):
    def __init__(self, storage: Storage, files: dict[str, bytes]) -> None:
        self.storage = storage
        self.files = {name: FileRecord(name, f"a/{name}", len(data), digest_of_bytes(data)) for name, data in files.items()}
        for name, data in files.items():
            storage.write(f"a/{name}", data)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BESSEMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def old(copy: Path) -> None:
    os.utime(copy.parent, (time.time() - 2 * fetched.IN_USE_S,) * 2)


def test_one_flipped_byte_of_a_copy_is_noticed_whatever_its_time_says(s3: Storage, caplog: pytest.LogCaptureFixture):
    files = Recorded(s3, {"one.txt": TEXT})
    copy = files.path("one.txt")
    assert copy.read_bytes() == TEXT and files.path("one.txt") == copy
    before = copy.stat()
    copy.write_bytes(TEXT.replace(b"names", b"Names", 1))
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.path("one.txt").read_bytes() == TEXT
    assert "is fetched again" in caplog.text


def test_a_flipped_byte_behind_a_folder_of_links_is_noticed_too(s3: Storage):
    files = Recorded(s3, {"model/one.txt": TEXT, "model/two.txt": b"2"})
    folder = files.folder("model")
    (folder / "one.txt").resolve().write_bytes(TEXT.upper())
    assert (files.folder("model") / "one.txt").read_bytes() == TEXT


def test_an_object_with_other_bytes_is_refused_and_leaves_no_copy(s3: Storage):
    files = Recorded(s3, {"one.txt": TEXT})
    s3.write("a/one.txt", TEXT.upper())
    with pytest.raises(IntegrityError, match=r"one\.txt is not what was recorded"):
        files.path("one.txt")
    assert fetched.held()[2] == 0


def test_nobody_else_can_read_a_copy_even_if_the_folder_was_open_before(s3: Storage, cache: Path):
    (cache / "fetched").mkdir(parents=True)
    (cache / "fetched").chmod(0o777)
    Recorded(s3, {"one.txt": TEXT}).path("one.txt")
    assert stat.S_IMODE((cache / "fetched").stat().st_mode) == 0o700


def test_a_folder_that_another_user_made_is_refused(s3: Storage, cache: Path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder to another user")
    (cache / "fetched").mkdir(parents=True)
    os.chown(cache / "fetched", 65534, 65534)
    with pytest.raises(InputError, match=r"belongs to another user.*BESSEMER_CACHE"):
        Recorded(s3, {"one.txt": TEXT}).path("one.txt")


def test_a_link_in_place_of_the_folder_is_refused(s3: Storage, cache: Path, tmp_path: Path):
    cache.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (cache / "fetched").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        Recorded(s3, {"one.txt": TEXT}).path("one.txt")


def test_the_least_recently_used_copies_go_first_and_those_in_use_stay(s3: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BESSEMER_FETCHED_GB", "1")
    files = Recorded(s3, {f"{number}.txt": bytes([number]) * 400 for number in range(4)})
    copies = [files.path(f"{number}.txt") for number in range(3)]
    for copy in copies:
        old(copy)
    assert files.path("0.txt") == copies[0], "used again, so it is the newest"
    monkeypatch.setenv("BESSEMER_FETCHED_GB", "0.0000009")
    assert files.path("3.txt").exists()
    assert [copy.exists() for copy in copies] == [True, False, False]
    assert fetched.make_room(keep_bytes=0) == (0, 0), "both were used within the hour"


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BESSEMER_FETCHED_GB", "much")
    with pytest.raises(InputError, match="BESSEMER_FETCHED_GB is 'much'"):
        fetched.most_bytes(0)


def _use(files: Files) -> bool:
    return all(files.path("one.txt").read_bytes() == TEXT for _ in range(20))


def test_two_processes_that_fetch_at_once_both_get_the_whole_file(s3: Storage):
    files = Recorded(s3, {"one.txt": TEXT})
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_use, [files] * 2, chunksize=1) == [True, True]
    assert fetched.held()[1] == 1
