"""Where caches go for a user without a home, in a clone that is not his; and that nobody else prepares what he reads."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import own_folders
from contract.environment_variables import prepare_environment
from contract.errors import InputError
from contract.own_folders import at_home, cache_folder, in_clone, private, temporary_folder
from tests.bare_user import NOTHING_WRITABLE, READ_ONLY, UID, BareUser, bare_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to another user")
STRANGER = 65534
HOMES = {"unset": {}, "root": {"HOME": "/"}, "absent": {"HOME": "/nonexistent"}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOME, TMPDIR and a clone of the test's own, and no other variable."""
    for name in ("home", "tmp", "clone"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(own_folders, "CLONE", tmp_path / "clone")
    monkeypatch.delenv("BESSEMER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def test_caches_lie_at_home_unless_a_variable_says_where(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == place / "home" / ".cache" / "bessemer"
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "xdg"))
    assert cache_folder() == place / "xdg" / "bessemer"
    monkeypatch.setenv("BESSEMER_CACHE", str(place / "given"))
    assert cache_folder() == place / "given"


def test_a_home_of_a_umask_that_closes_nothing_is_ours_all_the_same(place: Path) -> None:
    (place / "home" / ".cache").mkdir()
    (place / "home" / ".cache").chmod(0o777)
    assert cache_folder() == place / "home" / ".cache" / "bessemer"


@as_root
@pytest.mark.parametrize("below", [".cache", ".cache/bessemer"])
def test_what_a_stranger_has_made_at_home_is_not_used(place: Path, below: str) -> None:
    """HOME=/tmp, as images have it: everybody can make /tmp/.cache."""
    folder = place / "home" / below
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    os.chown(folder, STRANGER, STRANGER)
    assert cache_folder() == place / "tmp" / "bessemer-0"
    assert at_home(".cache/x") == place / "tmp" / "bessemer-0" / "home" / ".cache/x" or below != ".cache"
    assert at_home(".prefect") == place / "home" / ".prefect"


@as_root
@pytest.mark.parametrize("kind", ["a stranger's", "a link", "open"])
def test_what_another_user_prepared_in_tmpdir_is_refused_with_the_variable_to_set(place: Path, kind: str) -> None:
    (place / "home").rmdir()
    folder = place / "tmp" / "bessemer-0"
    if kind == "a link":
        folder.symlink_to(place)
    else:
        folder.mkdir()
        (folder / "planted").touch()
        folder.chmod(0o777)
        if kind == "a stranger's":
            os.chown(folder, STRANGER, STRANGER)
    with pytest.raises(InputError, match=rf"^no folder for caches: .*{folder} .*remove it, or set TMPDIR, or set BESSEMER_CACHE$"):
        cache_folder()
    with pytest.raises(InputError, match=r"or set TMPDIR$"):
        temporary_folder()


def test_an_empty_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o777)
    assert stat.S_IMODE(private(tmp_path / "x").stat().st_mode) == 0o700


def test_a_tmpdir_that_takes_no_files_is_not_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "gone"))
    with pytest.raises(InputError, match=rf"^TMPDIR is {place}/gone, where nothing can be written: set it"):
        temporary_folder()


def test_a_flow_whose_worker_gave_it_the_folder_as_tmpdir_uses_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = temporary_folder()
    monkeypatch.setattr("tempfile.tempdir", str(ours))
    assert temporary_folder() == ours


def test_rays_folder_has_a_short_path_though_tmpdirs_is_long(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place / "tmp"))
    assert temporary_folder(36) == Path("/tmp", f"bessemer-{os.geteuid()}")


@as_root
def test_a_clone_keeps_its_own_unless_a_stranger_made_it(place: Path) -> None:
    clone = place / "clone"
    assert in_clone(clone, ".cache/numba") == clone / ".cache" / "numba"
    os.chown(clone, UID, UID)
    (clone / ".cache").mkdir()
    os.chown(clone / ".cache", UID, UID)
    assert in_clone(clone, ".cache/numba") == clone / ".cache" / "numba", "root in a user's clone runs his code anyway"
    (clone / ".cache" / "numba").mkdir()
    os.chown(clone / ".cache" / "numba", STRANGER, STRANGER)
    moved = in_clone(clone, ".cache/numba")
    assert moved.is_relative_to(cache_folder() / "clones") and moved.name == "cache-numba"
    assert in_clone(clone, ".prefect") == clone / ".prefect"
    assert in_clone(place / "other", ".prefect").parent != moved.parent, "two clones share nothing"


def test_children_use_the_folder_that_was_chosen_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place / "gone"))
    for name in ("PREFECT_HOME", "MPLCONFIGDIR", "TRITON_HOME", "BESSEMER_CACHE", "USER", "LOGNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    prepare_environment()
    chosen = cache_folder()
    assert chosen == place / "tmp" / f"bessemer-{os.geteuid()}" and os.environ["HOME"] == str(chosen / "home")
    prepare_environment()
    assert cache_folder() == chosen and at_home(".prefect") == chosen / "home" / ".prefect"


@pytest.fixture(scope="module")
def user() -> Iterator[BareUser]:
    with bare_user() as made:
        yield made


def one_sentence(text: str) -> str:
    assert text.count("\n") == 1 and "Traceback" not in text, text
    return text.strip()


@pytest.mark.slow
class TestAsAnotherUser:
    @pytest.mark.parametrize("home", HOMES)
    def test_every_command_works_without_home_or_name_in_a_clone_of_root(self, user: BareUser, home: str) -> None:
        before, variables = user.entries(), HOMES[home] | {"BESSEMER_STORAGE_ROOT": str(user.own / "root")}
        others = [["--version"], ["config"], ["gc"], ["init", str(user.own / "new.yaml"), "--from", "smoke"]]
        for command in (["plan", "--config", str(user.settings)], *(others if home == "unset" else [])):
            done = user.call("flows", *command, **variables)
            assert (done.returncode, done.stderr) == (0, ""), command
        assert user.entries() == before
        found = user.tmp_of_the_user().stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (UID, 0o700)

    def test_doctor_says_where_caches_are_and_that_they_do_not_stay(self, user: BareUser) -> None:
        done = user.call("flows", "doctor", "--preset", "smoke", BESSEMER_STORAGE_ROOT=str(user.own / "root"))
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("cache")]
        assert done.returncode == 0, done.stdout
        assert f"ok      {user.tmp_of_the_user()}" in line and "set BESSEMER_CACHE to a folder that stays" in line
        assert f"{user.clone}/.cache is not ours to write" in line

    def test_without_a_root_of_its_own_the_run_names_the_setting(self, user: BareUser) -> None:
        done = user.call("flows", "run", "pretrain", "--preset", "smoke")
        assert done.returncode == 2 and "cannot write under storage.root" in one_sentence(done.stderr)

    def test_set_up_has_nothing_to_lock_where_nothing_is_due(self, user: BareUser) -> None:
        """`make pretrain` begins with it. Here everything is due, as the copy has no .venv."""
        done = user.call("deployments.setup")
        assert done.returncode == 2 and f"run make setup as the owner of {user.clone}" in one_sentence(done.stderr)

    def test_tmpdir_that_cannot_be_written_is_one_sentence(self, user: BareUser) -> None:
        for command in (["flows", "plan"], ["services", "up"], ["services.watch", "pretrain/full"]):
            done = user.call(*command, TMPDIR=str(user.clone))
            assert done.returncode == 2 and one_sentence(done.stderr).endswith("or set BESSEMER_CACHE"), command

    def test_a_machine_where_nothing_can_be_written_is_one_sentence(self, user: BareUser) -> None:
        done = user.call("flows", "run", "pretrain", "--preset", "smoke", before=NOTHING_WRITABLE, TMPDIR="")
        assert done.returncode == 2 and "set TMPDIR to a folder of yours, or set BESSEMER_CACHE" in one_sentence(done.stderr)
        done = user.call("flows", "doctor", before=NOTHING_WRITABLE, TMPDIR="")
        assert done.returncode == 1 and not done.stderr and done.stdout.count("set TMPDIR to a folder of yours") >= 3
        assert "make setup" not in done.stdout

    def test_a_clone_on_a_disk_that_is_read_only_works_with_a_home(self, user: BareUser) -> None:
        variables = {"HOME": str(user.own), "BESSEMER_STORAGE_ROOT": str(user.own / "root")}
        done = user.call("flows", "plan", "--config", str(user.settings), before=READ_ONLY, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert (user.own / ".cache" / "bessemer" / "clones").is_dir()
