"""verify, gc, pin and remove as a person types them, on a real corpus that is read, deduplicated and split."""

import copy
import io
import json
import time
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pytest
from boto3.s3.transfer import TransferConfig
from safetensors.numpy import save

from bessemer.config import load
from contract.config import Frozen
from contract.ledger import Ledger
from contract.schemas import blocks_schema, document_id
from engine.stage import Engine, Output, stage
from engine.stage_lines import size
from flows.__main__ import main
from store.artifact import Artifact
from store.catalogue import artifacts
from store.local_disk import LocalStorage
from store.root import open_root
from store.run_records import records
from store.s3 import S3Storage
from store.storage import Storage

WORDS = ["iron", "ore", "steel", "slag", "lime", "coke", "blast", "hearth", "tuyere", "ingot", "ladle", "forge", "anvil", "smelt"]


class Nothing(Frozen):
    pass


class Silent:
    def started(self, *_: object) -> None: ...
    def progress(self, *_: object) -> None: ...
    def warn(self, *_: object) -> None: ...
    def finished(self, *_: object) -> None: ...


@stage(version=1, config=lambda c: Nothing())
def mix(documents: Artifact, config: Nothing, out: Output) -> Ledger:
    """A block a document, every other one left out."""
    ids = documents.table(documents.names()[0], ["id"])["id"].to_pylist()[::2]
    rows = {"tokens": [[1, 2, 3]] * len(ids), "starts": [[0]] * len(ids), "documents": [[one] for one in ids]}
    out.table("part-00000.parquet", pa.table(rows, schema=blocks_schema(2)))
    out.table("curated/part-00000.parquet", documents.table(documents.names()[0], ["id", "text"]))
    return Ledger()


@stage(version=1, config=lambda c: Nothing())
def pretrain(blocks: Artifact, config: Nothing, out: Output) -> Ledger:
    out.bytes("model/model.safetensors", save({"weight": np.zeros(4, np.float32)}))
    return Ledger()


class Root:
    """A root with a corpus of 30 lines under two licences, and the commands on it."""

    def __init__(self, folder: Path) -> None:
        self.lines = [
            {
                "text": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 40)) + f" number {i}",
                "name": f"doc-{i}",
                "url": f"https://example.org/{i}",
                "terms": "CC0-1.0" if i % 3 else "Proprietary",
            }
            for i in range(30)
        ]
        self.lines[7]["text"] = self.lines[4]["text"]  # a copy under another id
        self.corpus = folder / "corpus.jsonl"
        self.corpus.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        source = f"{{uri: {str(self.corpus)!r}, domain: web, id_field: name, license_field: terms}}"
        self.place = ["--preset", "smoke", "--set", f"sources=[{source}]", "--set", "run.workers=1"]
        self.storage = open_root((folder / "root").as_uri())

    def __call__(self, command: str, *more: str) -> int:
        endpoint = getattr(self.storage, "endpoint_url", None)
        where = ["--set", f"storage.root={self.storage.uri}", *(["--set", f"storage.endpoint_url={endpoint}"] if endpoint else [])]
        return main([command, *more, *self.place, *where])

    def at(self, storage: Storage) -> "Root":
        """The same corpus and settings with another root."""
        other = copy.copy(self)
        other.storage = storage
        return other

    def run(self, until: str = "ingest") -> int:
        return self("run", "curate", "--until", until)

    def models(self) -> Artifact:
        """Blocks and a model over the newest documents."""
        documents = max((a for a in artifacts(self.storage) if a.stage == "ingest"), key=lambda a: a.manifest["created"])
        config = load("smoke")
        engine = Engine(self.storage, config, config.run, Silent(), "by-hand")
        blocks = engine.run(engine.plan(mix, {"documents": documents}))
        return engine.run(engine.plan(pretrain, {"blocks": blocks}))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def ledger(storage: Storage) -> list[dict]:
    made = sorted((a for a in artifacts(storage) if a.stage == "ingest"), key=lambda a: a.manifest["created"])
    return [artifact.manifest["ledger"]["documents"] for artifact in made]


def hex_id(number: int) -> str:
    return document_id("web", f"#doc-{number}").hex()


def test_verify_names_the_file_and_ends_with_1(root: Root, capsys):
    assert root.run("deduplicate") == 0
    assert root("verify") == 0
    assert "all as recorded" in capsys.readouterr().out
    file = next(Path(root.storage.local("artifacts/ingest")).rglob("part-00000.parquet"))  # type: ignore[arg-type]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert root("verify") == 1
    said = capsys.readouterr().out
    assert "part-00000.parquet  is changed" in said and str(file.name) in said and "1 not as recorded" in said
    assert main(["verify", "--set", f"storage.root={root.storage.uri}"]) == 1, "without a preset: the whole root"
    assert root.run("deduplicate") == 0
    assert "part-00000.parquet is missing or changed in the store" in capsys.readouterr().out
    assert root("verify") == 0


def test_a_run_is_recorded_from_its_start_to_its_end(root: Root, capsys):
    assert root.run("deduplicate") == 0
    ((_, done),) = records(root.storage)
    assert (done["flow"], done["preset"], done["state"]) == ("curate", "smoke", "completed")
    assert [note["stage"] for note in done["artifacts"]] == ["ingest", "gate_ingest", "deduplicate"]
    assert done["overrides"]["run.workers"] == 1 and done["ended"] >= done["started"]
    assert root("run", "curate", "--set", "split.trusted_domains=[]", "--set", "filters.select.default.min_words=10000") == 2
    failed = [value for _, value in records(root.storage) if value["state"] == "failed"]
    assert len(failed) == 1 and failed[0]["message"] and "Traceback" not in failed[0]["message"]


def test_gc_says_what_it_would_do_and_young_artifacts_stay(root: Root, capsys):
    assert root.run() == 0
    assert root("gc", "--days", "0") == 0
    assert "nothing was deleted" in capsys.readouterr().out
    assert root("gc", "--days", "0", "--delete") == 0
    assert not list(records(root.storage)), "only the run's record was past its days"
    assert root("verify") == 0
    assert root("gc", "--days", "-1") == 2


def test_gc_lists_what_can_go_with_its_files_and_sizes_and_delete_deletes_just_that(root: Root, capsys, monkeypatch):
    assert root.run() == 0
    (old,) = [artifact for artifact in artifacts(root.storage) if artifact.stage == "ingest"]
    with root.corpus.open("a") as file:
        file.write(json.dumps(root.lines[0] | {"name": "doc-30"}) + "\n")
    assert root.run() == 0
    capsys.readouterr()
    monkeypatch.setattr(LocalStorage, "now", lambda self: time.time() + 40 * 86_400)
    before = {entry.path: entry.size for entry in root.storage.list("")}
    going = {path for path in before if old.fingerprint in path}
    gone = sum(before[path] for path in going)
    stay = sum(size for path, size in before.items() if path.startswith("artifacts/") and path not in going)
    ran = [(entry.path, entry.size) for entry, _ in records(root.storage)]
    locks = {path for path in before if path.startswith("locks/")}
    held = sum(before[path] for path in locks)
    rows = [("artifact", f"ingest@{old.fingerprint[:12]}", len(going), gone), ("locks", "locks/", len(locks), held)]
    rows += [("record", path, 1, bytes_) for path, bytes_ in ran]
    assert root("gc") == 0
    *listed, total, end = capsys.readouterr().out.splitlines()
    assert [line.split() for line in listed] == [[what, where, str(n), "files", *size(b).split()] for what, where, n, b in rows]
    freed = gone + held + sum(bytes_ for _, bytes_ in ran)
    assert total == f"1 artifacts stay, {size(stay)}; {len(rows)} entries can go, {size(freed)}"
    assert end == "nothing was deleted; --delete does it" and {e.path for e in root.storage.list("")} == {*before}
    assert root("gc", "--delete") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(going) + len(locks) + len(ran)} files deleted, {size(freed)}"
    assert {*before} - {entry.path for entry in root.storage.list("")} == going | locks | {path for path, _ in ran}


def test_pins_by_stage_and_by_fingerprint(root: Root, capsys):
    assert root.run() == 0
    (ingest,) = [artifact for artifact in artifacts(root.storage) if artifact.stage == "ingest"]
    assert root("pin", "ingest") == 0
    assert root("pin", ingest.fingerprint[:12]) == 0
    assert [entry.path for entry in root.storage.list("pins/")] == [f"pins/ingest-{ingest.fingerprint}.json"]
    assert root("unpin", "ingest") == 0
    assert root("unpin", "ingest") == 2
    assert root("pin", "nonsense") == 2
    assert "neither a stage of smoke nor the start of a fingerprint" in capsys.readouterr().err


def test_a_takedown_lists_what_holds_the_document_and_the_next_run_leaves_it_out(root: Root, capsys):
    assert root.run("split") == 0
    model = root.models()
    capsys.readouterr()
    assert root("remove", "--id", hex_id(4)) == 0
    said = capsys.readouterr().out
    assert f"document  {hex_id(4)}  web:#doc-4  CC0-1.0" in said
    assert "copies    1 with the same text" in said
    assert f"model     pretrain {model.fingerprint[:12]}  trained on it, through its blocks" in said
    assert "1 block" in said and "2 texts" in said and "artifact  deduplicate" not in said
    assert "nothing was recorded" in said and not root.storage.list("removals/")
    assert root("remove", "--id", hex_id(4), "--yes") == 0
    assert root.run("split") == 0
    assert "changed bytes of removed documents" in capsys.readouterr().out
    assert [count["out"] for count in ledger(root.storage)] == [30, 28]
    assert ledger(root.storage)[1] == {"in": 30, "added": 0, "out": 28, "dropped": {"blank": 0, "removed": 2}, "quarantined": 0}
    newest = max((a for a in artifacts(root.storage) if a.stage == "ingest"), key=lambda a: a.manifest["created"])
    assert root.lines[4]["text"] not in newest.table("part-00000.parquet")["text"].to_pylist()
    assert root("run", "curate", "--until", "split") == 0
    assert " ran " not in capsys.readouterr().out, "the rule is in the fingerprint: the run after it is cached"


def test_a_document_that_no_block_holds_marks_no_model(root: Root, capsys):
    assert root.run() == 0
    root.models()
    capsys.readouterr()
    assert root("remove", "--id", hex_id(5)) == 0
    assert "in 2 artifacts and 0 models" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("by", "value", "gone"), [("--url", "https://example.org/9", 1), ("--url", "#doc-9", 1), ("--license", "Proprietary", 10)]
)
def test_documents_go_by_url_and_by_licence(root: Root, capsys, by: str, value: str, gone: int):
    assert root.run() == 0
    assert root("remove", by, value, "--yes") == 0
    assert root.run() == 0
    assert ledger(root.storage)[-1]["dropped"]["removed"] == gone


def test_what_nobody_has_is_said_and_not_recorded(root: Root, capsys):
    assert root.run() == 0
    for more in (["--id", "ab" * 16], ["--url", "https://example.org/404"], ["--license", "WTFPL"], ["--id", "xyz"]):
        assert root("remove", *more, "--yes") == 2
    said = capsys.readouterr().err
    assert "no document under" in said and "32 hexadecimal digits" in said
    assert not root.storage.list("removals/")


def test_a_removal_of_another_source_makes_nothing_again(root: Root, capsys):
    from sources.removals import Removal, record

    assert root.run() == 0
    record(root.storage, Removal(kind="id", value="0" * 32, sources=("books",), texts=("0" * 32,)))
    assert root.run() == 0
    assert len(ledger(root.storage)) == 1


def test_a_removal_that_was_changed_stops_the_run(root: Root, capsys):
    assert root.run() == 0
    assert root("remove", "--id", hex_id(1), "--yes") == 0
    (entry,) = root.storage.list("removals/")
    root.storage.write(entry.path, root.storage.read(entry.path).replace(hex_id(1).encode(), hex_id(2).encode()))
    assert root.run() == 1
    assert "is not the rule that was recorded" in capsys.readouterr().err


def test_credentials_in_a_uri_are_refused_and_not_repeated(root: Root, capsys, monkeypatch):
    for key in (
        "storage.endpoint_url=http://AKIAPLANTED:planted-secret@host",
        "sources=[{uri: 's3://AKIAPLANTED:planted-secret@b', domain: web}]",
    ):
        assert root("run", "curate", "--set", key) == 2
    monkeypatch.setenv("BESSEMER_STORAGE_ROOT", "s3://AKIAPLANTED:planted-secret@bucket")
    assert main(["plan", "curate", "--preset", "smoke"]) == 2
    said = "".join(capsys.readouterr())
    assert "credentials do not belong in a URI" in said and "planted-secret" not in said


def carry(here: Storage, there: Storage, part_bytes: int = 2**30) -> None:
    """What `aws s3 sync` or `cp -r` does, by the store's own client; objects over `part_bytes` go up in parts, so their ETag is no MD5."""
    for entry in here.list(""):
        if isinstance(there, S3Storage):
            config = TransferConfig(multipart_threshold=part_bytes, multipart_chunksize=part_bytes)
            body = io.BytesIO(here.read(entry.path))
            boto3.client("s3", endpoint_url=there.endpoint_url).upload_fileobj(body, there.bucket, there._key(entry.path), Config=config)
        else:
            there.write(entry.path, here.read(entry.path))


@pytest.mark.slow
def test_a_root_that_was_copied_anywhere_is_cached_whole_and_still_watched(root: Root, s3: S3Storage, tmp_path: Path, capsys, monkeypatch):
    """Disk to S3, to another prefix by another way of copying, and back to disk."""
    assert root.run("split") == 0
    places = [s3, open_root(f"s3://{s3.bucket}/elsewhere", s3.endpoint_url), open_root((tmp_path / "back").as_uri())]
    here = root.storage
    for there, part_bytes in zip(places, (2**30, 2**12, 2**30), strict=True):
        carry(here, there, part_bytes)
        capsys.readouterr()
        assert root.at(there)("verify") == 0 and root.at(there).run("split") == 0
        said = capsys.readouterr().out
        assert "all as recorded" in said and said.count(" cached ") == 4 and " ran " not in said
        here = there
    read: list[str] = []
    monkeypatch.setattr(S3Storage, "digest", lambda storage, path, digest=S3Storage.digest: read.append(path) or digest(storage, path))
    assert root.at(s3).run("split") == 0 and not read, "an object is read once, not by every run"
    (ingest,) = [artifact for artifact in artifacts(s3) if artifact.stage == "ingest"]
    part = ingest.files["part-00000.parquet"]
    s3.write(part.path, s3.read(part.path)[:-1] + b"x")
    assert root.at(s3).run("split") == 0
    assert "part-00000.parquet is missing or changed in the store" in capsys.readouterr().out
