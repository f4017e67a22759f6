"""Bytes that changed behind our back: found, named and made again, whatever kind of file they are in."""

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save

from contract.ledger import Ledger
from engine.stage import Output, stage
from store.attempt import Attempt
from store.checked import dump_checked, load_checked
from store.checkpoints import Checkpoints
from store.locks import hold
from store.storage import Storage
from store.verify import verify
from tests.engine import toy

KINDS = ("table.parquet", "value.json", "model/model.safetensors", "log.txt")


@stage(version=1, config=lambda c: toy.Amount(count=c.count))
def kinds(config: toy.Amount, out: Output) -> Ledger:
    """A file of every kind that stages publish."""
    out.table("table.parquet", pa.table({"text": [f"document {i}" for i in range(200)]}))
    out.json("value.json", {"figures": list(range(20))})
    out.bytes("model/model.safetensors", save({"weight": np.arange(256, dtype=np.float32).reshape(16, 16)}))
    out.attach("log.txt", b"what was said while it was made")
    return Ledger()


def make(storage: Storage):
    engine = toy.engine(storage)
    return engine.run(engine.plan(kinds, {})), engine.journal.lines[-1]


def flip(storage: Storage, path: str) -> None:
    """One bit of the middle byte; on disk under the old modification time, as a failing disk would."""
    data = bytearray(storage.read(path))
    data[len(data) // 2] ^= 1
    local = storage.local(path)
    if local is None:
        storage.write(path, bytes(data))
        return
    times = local.stat()
    with local.open("r+b") as file:
        file.write(data)
    os.utime(local, ns=(times.st_atime_ns, times.st_mtime_ns))


def faults(storage: Storage) -> list[tuple[str, str]]:
    return [(fault.name, fault.what) for fault in verify(storage, lambda *_: None).faults]


@pytest.mark.parametrize("name", KINDS)
def test_one_flipped_byte_is_found_named_and_made_again(storage: Storage, name: str):
    made, _ = make(storage)
    flip(storage, made.files[name].path)
    assert faults(storage) == [(name, "is changed: its bytes are not those recorded")]
    again, (_, state, why) = make(storage)
    assert (state, why) == ("ran", f"{name} is missing or changed in the store")
    assert again.digest == made.digest and again.manifest["number"] == 2
    assert faults(storage) == []


def test_a_flipped_byte_in_a_manifest_is_found_named_and_made_again(storage: Storage):
    """Also where the manifest stays JSON: in a figure, which no file's digest covers."""
    made = toy.pipeline(toy.engine(storage))
    path = f"artifacts/squares/{made[1].fingerprint}/manifest-000001.json"
    data = storage.read(path)
    assert data.count(b'"sum": 506') == 1
    storage.write(path, data.replace(b'"sum": 506', b'"sum": 507'))
    assert faults(storage) == [("manifest-000001.json", "is no manifest any more")]
    again = toy.engine(storage)
    rebuilt = toy.pipeline(again)
    assert [line[1:] for line in again.journal.lines] == [  # type: ignore[attr-defined]
        ("cached", ""),
        ("ran", "manifest-000001.json is changed in the store"),
        ("cached", ""),
    ]
    assert [artifact.digest for artifact in rebuilt] == [artifact.digest for artifact in made]
    assert rebuilt[1].manifest["number"] == 2 and rebuilt[1].figures == {"sum": 506}


@pytest.mark.parametrize("changes", [{"path": "../secret"}, {"path": "/etc/hosts"}, {"name": "model/../../x"}, {"digest": "../../secret"}])
def test_a_record_that_leads_out_of_the_root_does_not_count_wherever_it_stands(storage: Storage, changes: dict[str, str]):
    """A manifest, a seal and a checkpoint whose checksum is right, as one who can write to the root would make them."""
    made, _ = make(storage)
    path = f"artifacts/kinds/{made.fingerprint}/manifest-000001.json"
    manifest = load_checked(storage.read(path))
    manifest["files"][0] |= changes
    storage.write(path, dump_checked(manifest))
    attempt = Attempt.new(storage, "other", "0" * 64, "basis")
    record = asdict(attempt.bytes("checkpoints/step-000000001/file", b"weights"))
    for given in ({}, changes):
        value = {"basis": "basis", "step": 1, "files": [record | given], "result": {}}
        for name in ("part-00000.seal", "checkpoints/step-000000001/WHOLE"):
            storage.write(attempt.folder + name, dump_checked(value))
        assert bool(attempt.sealed()) is Checkpoints(attempt).is_there() is (given == {})
    assert faults(storage) == [("manifest-000001.json", "is no manifest any more")]
    again, (_, state, why) = make(storage)
    assert (state, why) == ("ran", "manifest-000001.json is changed in the store")
    assert again.digest == made.digest


@pytest.mark.parametrize("name", ["WHOLE", "optimizer/state.bin"])
def test_a_checkpoint_with_a_flipped_byte_is_passed_over_for_the_one_before_it(storage: Storage, tmp_path: Path, name: str):
    checkpoints = Checkpoints(Attempt.new(storage, "toy", "0" * 64, "basis"))
    for step in (1, 2):
        folder = tmp_path / f"step-{step}"
        (folder / "optimizer").mkdir(parents=True)
        (folder / "optimizer" / "state.bin").write_bytes(f"state after step {step}".encode())
        (folder / "model.safetensors").write_bytes(b"weights")
        checkpoints.save(step, folder)
    assert (found := checkpoints.latest()) and found[0] == 2
    flip(storage, f"{checkpoints.attempt.folder}checkpoints/step-000000002/{name}")
    assert (found := checkpoints.latest()) and found[0] == 1
    assert (found[1] / "optimizer" / "state.bin").read_bytes() == b"state after step 1"


def test_a_missing_and_a_short_file_are_told_apart(storage: Storage):
    made, _ = make(storage)
    storage.delete(made.files["value.json"].path)
    storage.write(made.files["log.txt"].path, b"short")
    assert faults(storage) == [("log.txt", "has 5 bytes, 31 were recorded"), ("value.json", "is missing")]


def test_verify_asks_no_memo(local: Storage, monkeypatch):
    made, _ = make(local)
    flip(local, made.files["value.json"].path)
    monkeypatch.setattr("store.digests._remembered", lambda wanted: dict.fromkeys(wanted, made.files["value.json"].digest))
    assert faults(local) == [("value.json", "is changed: its bytes are not those recorded")]


def test_verify_reads_every_byte_once_and_says_how_far_it_is(local: Storage):
    toy.pipeline(toy.engine(local))
    told: list[tuple[int, int]] = []
    verdict = verify(local, lambda done, total, _: told.append((done, total)))
    assert (verdict.artifacts, verdict.files) == (3, 10)
    assert told == sorted(told) and told[0] == (0, verdict.size) and told[-1] == (verdict.size, verdict.size)


def test_a_lock_with_a_flipped_bit_is_waited_for_by_nobody(local: Storage):
    """One bit more in its expiry would be a wait of years."""
    body = dump_checked({"owner": "elsewhere pid 1 of 1", "expires": local.now() + 1000, "nonce": "0" * 16})
    name = body.index(b'"checksum"')
    for index in (*range(name), *range(name + len(b'"checksum"'), len(body))):
        local.write("locks/toy/000000001.json", body[:index] + bytes([body[index] ^ 2]) + body[index + 1 :])
        with hold(local, "toy", lambda line, at=index: pytest.fail(f"byte {at}: {line}")):
            pass
        for entry in local.list("locks/toy/"):
            local.delete(entry.path)


def test_seals_and_pointers_that_changed_cost_work_and_stop_nothing(local: Storage):
    numbers = toy.pipeline(toy.engine(local))[0]
    planned = toy.engine(local, toy.Config(power=3)).plan(toy.squares, {"numbers": numbers})
    killed = Attempt.new(local, "squares", planned.fingerprint, "basis")
    killed.seal("part-00000", [], {"sum": 1})
    flip(local, killed.folder + "part-00000.seal")
    flip(local, "last/toy/squares.json")
    engine = toy.engine(local, toy.Config(power=3))
    assert toy.pipeline(engine)[1].figures["sum"] == sum(n**3 for n in range(12))
    assert engine.journal.lines[1][2] == "first run"  # type: ignore[attr-defined]
