"""Flows by a user id without name, home or right to write into the clone: Ray, Numba, KenLM, torch, and Prefect's server and worker."""

import stat
from collections.abc import Iterator

import pytest

from tests.bare_user import UID, BareUser, bare_user
from tests.services.test_services import free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def user() -> Iterator[BareUser]:
    with bare_user() as made:
        yield made


def test_the_services_and_two_flows_work_and_write_nothing_into_the_clone(user: BareUser) -> None:
    before = user.entries()
    variables = {"BESSEMER_STORAGE_ROOT": str(user.own / "root"), "BESSEMER_PORT": str(free_port())}
    # Ray takes this name for its own by default, and Prefect that one: here another user was first.
    for name in ("ray", "runner_storage"):
        (user.tmp / name).mkdir(mode=0o755)
    up = user.call("services", "up", **variables)
    try:
        assert up.returncode == 0 and not up.stderr, up.stdout + up.stderr
        for flow in ("curate", "train"):
            done = user.call("services.watch", f"{flow}/full", "preset=smoke", timeout=900, **variables)
            assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
            assert "Flow run finished successfully" in done.stdout
    finally:
        down = user.call("services", "down", **variables)
    assert down.returncode == 0 and "server  stopped" in down.stdout, down.stdout + down.stderr
    kept = user.tmp_of_the_user()
    (services,) = kept.glob("clones/*/cache-services")
    assert user.entries() == before and {path.name for path in user.tmp.iterdir()} == {"ray", "runner_storage", kept.name}
    for folder in (kept, kept / "clones", services.parent, services, services.parent / "prefect", kept / "home"):
        assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (UID, 0o700), folder
    assert list((kept / "ray").glob("session_*")) and list(services.parent.glob("cache-numba/*"))
