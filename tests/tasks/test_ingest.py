"""Ingest through the engine: the ledger, the quarantine, resuming after kill -9, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from contract.config import RunOptions
from contract.errors import GateFailed, InputError
from contract.schemas import DOCUMENTS, document_id
from engine.stage import Engine
from filters.config import GatesConfig
from sources.config import IngestConfig, Source
from sources.files import holds
from store.artifact import Artifact
from store.root import open_root
from store.storage import Storage
from tasks.gate_ingest import gate_ingest
from tasks.ingest import ingest

PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import test_ingest; test_ingest.run_here(*sys.argv[2:])"


class Journal:
    """What the engine said, kept."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...

    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...

    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(text)

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...


def run(storage: Storage, *sources: Source, part_bytes: int = 2**20, workers: int = 1, endpoint_url: str | None = None) -> Artifact:
    return run_with_journal(storage, Journal(), *sources, part_bytes=part_bytes, workers=workers, endpoint_url=endpoint_url)


def run_with_journal(
    storage: Storage, journal: Journal, *sources: Source, part_bytes: int, workers: int = 1, endpoint_url: str | None = None
) -> Artifact:
    places = SimpleNamespace(endpoint_url=endpoint_url)
    config = SimpleNamespace(sources=sources, ingest=IngestConfig(part_bytes=part_bytes), storage=places)
    engine = Engine(storage, config, RunOptions(workers=workers), journal, "test")
    return engine.run(engine.plan(ingest, {}))


def run_here(root: str, data: str) -> None:
    run(open_root(root), Source(uri=data, domain="web"), part_bytes=5000)


def documents(artifact: Artifact) -> pa.Table:
    return pa.concat_tables([artifact.table(name) for name in artifact.names()])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jsonl").write_text("".join(json.dumps({"text": f"{i} {j}" * 9, "url": f"u{j}"}) + "\n" for j in range(300)))
    (folder / "note.txt").write_text("A note.")
    (folder / "blank.md").write_text(" \n")
    with (folder / "2.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff"}\n{"text": null}\n')
    return folder


def test_every_record_is_a_document_blank_or_quarantined_and_names_its_place(local: Storage, data: Path) -> None:
    made = run(local, Source(uri=str(data), domain="web", license="CC0", language="en"), part_bytes=9000)
    count, rows = made.ledger.documents, documents(made)
    assert count is not None and (count.came_in, count.out, count.dropped, count.quarantined) == (1204, 1201, {"blank": 1}, 2)
    assert len(made.names()) > 5 and rows.schema.equals(DOCUMENTS)
    first = rows.slice(0, 1).to_pylist()[0]
    assert first == {
        "id": document_id("web", "0.jsonl:0"), "text": "0 0" * 9, "domain": "web", "source": "web", "locator": "0.jsonl:0",
        "group": None, "license": "CC0", "language": "en", "extra": '{"url":"u0"}',
    }  # fmt: skip
    for row in made.table("quarantine.parquet").to_pylist():
        name = row["uri"].removeprefix("web:")
        assert (data / name).read_bytes()[row["offset"] :].startswith(row["head"]) and row["head"].startswith(b'{"text": ')
    size = sum(len(text.encode()) for text in rows["text"].to_pylist())
    assert made.figures["domains"] == {"web": {"documents": 1201, "bytes": size, "files": 6}}


def test_the_gate_names_the_commonest_reason_and_the_file_that_has_most_of_it(local: Storage, data: Path) -> None:
    for name, count in (("1.jsonl", 5), ("3.jsonl", 20)):
        with (data / name).open("a") as file:
            file.write("".join(f'{{"text": [{number}]}}\n' for number in range(count)))
    config = SimpleNamespace(
        sources=(Source(uri=str(data), domain="web"),), ingest=IngestConfig(), gates=GatesConfig(max_quarantined_fraction=0.01),
        storage=SimpleNamespace(endpoint_url=None),
    )  # fmt: skip
    engine = Engine(local, config, RunOptions(workers=1), Journal(), "test")
    made = engine.run(engine.plan(ingest, {}))
    said = r"quarantined_fraction: found 0\.02\d+ \(all\), expected at most 0\.01 \(gates\.max_quarantined_fraction\); "
    said += r"most often \(25 of 27\) its text is .*, not a string; most of these \(20\) in web:3\.jsonl\n"
    with pytest.raises(GateFailed, match=said):
        engine.run(engine.plan(gate_ingest, {"documents": made}))


def test_rows_are_the_same_whatever_the_part_size(local: Storage, data: Path) -> None:
    source = Source(uri=str(data), domain="web")
    tables = [documents(run(local, source, part_bytes=size)).sort_by("locator") for size in (4001, 2**20)]
    assert tables[0].equals(tables[1])


def test_a_stream_that_outgrows_its_part_goes_on_in_further_files(local: Storage, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"text": "%0100d"}\n' % i for i in range(100))))
    made = run(local, Source(uri=str(path), domain="web"), part_bytes=1000)
    assert made.names()[0] == "part-00000-001.parquet" and len(made.names()) > 3
    assert sorted(documents(made)["text"].to_pylist()) == [f"{i:0100d}" for i in range(100)]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_from_its_sealed_parts_to_the_same_digest(tmp_path: Path, data: Path) -> None:
    undisturbed = run(open_root(str(tmp_path / "calm")), Source(uri=str(data), domain="web"), part_bytes=5000)
    root = tmp_path / "root"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(root), str(data)], env=environment)
    limit = time.monotonic() + 60
    while len(list(root.glob("artifacts/ingest/*/*/*.seal"))) < 3 and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    resumed = run(open_root(str(root)), Source(uri=str(data), domain="web"), part_bytes=5000)
    assert resumed.manifest["adopted_parts"] >= 3
    assert resumed.digest == undisturbed.digest


def test_changed_bytes_are_other_input_and_touched_files_are_not(local: Storage, data: Path) -> None:
    source = Source(uri=str(data), domain="web")
    before = run(local, source)
    os.utime(data / "note.txt", (5, 5))
    assert run(local, source).fingerprint == before.fingerprint
    (data / "note.txt").write_text("B note.")
    assert run(local, source).fingerprint != before.fingerprint


def test_a_moved_source_is_the_same_input(local: Storage, data: Path, tmp_path: Path) -> None:
    before = run(local, Source(uri=str(data), domain="web"))
    data.rename(tmp_path / "moved")
    assert run(local, Source(uri=(tmp_path / "moved").as_uri(), domain="web")).fingerprint == before.fingerprint


def test_a_bucket_gives_the_documents_that_the_folder_gives(s3: Storage, s3_server: str, data: Path) -> None:
    for path in data.iterdir():
        s3.write(f"in/{path.name}", path.read_bytes())
    ours = run(s3, Source(uri=f"{s3.uri}/in/*", domain="web"), part_bytes=9000, endpoint_url=s3_server)
    assert ours.digest == run(s3, Source(uri=str(data), domain="web"), part_bytes=9000).digest


def test_ids_of_the_users_own_stay_and_repeated_ones_stop_the_run(local: Storage, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "id": 7}\n{"text": "two", "id": "b", "host": "h"}\n{"text": "none"}\n')
    source = Source(uri=str(path), domain="web", id_field="id", group_field="host")
    rows = documents(run(local, source)).to_pylist()
    place = path.read_bytes().index(b'{"text": "none"')
    assert [(row["locator"], row["group"]) for row in rows] == [("#7", None), ("#b", "h"), (f"a.jsonl:{place}", None)]
    path.write_text('{"text": "one", "id": "b", "host": "h"}\n{"text": "two", "id": "b"}\n')
    with pytest.raises(InputError, match=r"ids repeat.*a\.jsonl"):
        run(local, source)


@pytest.mark.parametrize("setting", ["id_field", "group_field", "license_field"])
def test_a_field_that_no_record_has_is_refused_and_one_that_some_lack_is_counted(local: Storage, tmp_path: Path, setting: str) -> None:
    path, journal = tmp_path / "a.jsonl", Journal()
    path.write_text(
        "".join(json.dumps({"text": f"t{i}", "host": f"h{i}", "url": "u"} | ({"key": f"k{i}"} if i else {})) + "\n" for i in range(9))
    )
    with pytest.raises(
        InputError, match=rf"source web: no record has a value in the field 'hots' \({setting}\); the first has host, url\. Cor"
    ):
        run(local, Source(uri=str(path), domain="web", **{setting: "hots"}))
    made = run_with_journal(local, journal, Source(uri=str(path), domain="web", **{setting: "key"}), part_bytes=60)
    assert [text for text in journal.warnings if "no 'key'" in text] == [f"source web: 1 of 9 records have no 'key' ({setting})"]
    assert made.figures["lacking"] == {f"web {setting}": 1}
    assert "lacking" not in run(local, Source(uri=str(path), domain="web", **{setting: "host"})).figures


def test_metadata_that_cannot_be_kept_is_counted_and_no_text_is_lost(local: Storage, tmp_path: Path) -> None:
    path, journal = tmp_path / "a.jsonl", Journal()
    deep = "[" * 300 + "]" * 300
    path.write_text("".join(f'{{"text": "t{i}", "url": "u{i}", "tree": {deep if i % 2 else 1}}}\n' for i in range(9)))
    made = run_with_journal(local, journal, Source(uri=str(path), domain="web"), part_bytes=1000)
    rows = documents(made).to_pylist()
    assert [json.loads(row["extra"])["url"] for row in rows] == [f"u{i}" for i in range(9)]
    assert made.figures["omitted_metadata"] == {"web: tree": 4} and made.figures["domains"]["web"]["documents"] == 9
    assert any("4 values of metadata could not be kept" in text and "web: tree (4)" in text for text in journal.warnings)


@pytest.mark.parametrize("pattern", ["", "/", "/**", "/*/*.jsonl", "/**/*.jsonl"])
@pytest.mark.parametrize("inside", ["root", "sub/root", "a b#c/root"])
def test_a_root_inside_a_source_is_left_out_and_said(tmp_path: Path, pattern: str, inside: str) -> None:
    """A second run reads what the first one read: what the runs have written is no text."""
    corpus, journal = tmp_path / "corpus", Journal()
    (corpus / "x").mkdir(parents=True)
    (corpus / "x" / "a.jsonl").write_text('{"text": "one"}\n')
    root, source = open_root(str(corpus / inside)), Source(uri=f"{corpus}{pattern}", domain="web")
    first = run_with_journal(root, journal, source, part_bytes=1000)
    root.write("kept/b.jsonl", b'{"text": "two"}\n')
    assert any(f"storage.root lies in {corpus}{pattern}, and is not read" in text for text in journal.warnings)
    assert run(root, source, part_bytes=1000).fingerprint == first.fingerprint
    assert documents(first)["text"].to_pylist() == ["one"]


def test_a_root_inside_a_source_on_s3_is_left_out(s3: Storage, s3_server: str) -> None:
    bucket = s3.uri.removeprefix("s3://").partition("/")[0]
    whole = open_root(f"s3://{bucket}", s3_server)
    whole.write("corpus/a.jsonl", b'{"text": "one"}\n')
    root = open_root(f"s3://{bucket}/corpus/root", s3_server)
    for uri in (f"s3://{bucket}/corpus", f"s3://{bucket}/corpus/**/*.jsonl", f"s3://{bucket}/cor*/**"):
        made = run(root, source := Source(uri=uri, domain="web"), part_bytes=1000, endpoint_url=s3_server)
        root.write("kept/b.jsonl", b'{"text": "two"}\n')
        assert documents(made)["text"].to_pylist() == ["one"] and holds(source, root.uri)
    beside = open_root(f"s3://{bucket}/corpus-root", s3_server)
    assert not holds(Source(uri=f"s3://{bucket}/corpus", domain="web"), beside.uri)


def test_two_sources_of_one_text_have_ids_of_their_own(local: Storage, data: Path) -> None:
    one, two = Source(uri=str(data), domain="web"), Source(uri=str(data), domain="web", name="again")
    ids = documents(run(local, one, two))["id"].to_pylist()
    assert len(set(ids)) == len(ids) == 2402


def test_a_source_that_nothing_survives_in_is_refused_with_the_first_reason(local: Storage, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[1]\n[2]\n")
    with pytest.raises(InputError, match=r"source web: no document in .* 2 records are unreadable, first: web:a.jsonl at 0: not a JSON"):
        run(local, Source(uri=str(tmp_path / "a.jsonl"), domain="web"))
    with pytest.raises(InputError, match=r"source web: .*does not exist"):
        run(local, Source(uri=str(tmp_path / "absent"), domain="web"))


def test_a_domain_that_the_environment_has_no_text_of_is_said_and_no_error(local: Storage, data: Path) -> None:
    journal, books = Journal(), Source.model_validate({"uri": "environment:books"})
    made = run_with_journal(local, journal, Source(uri=str(data), domain="web"), books, part_bytes=2**20)
    assert made.figures["absent"] == ["books"] and any("books" in warning for warning in journal.warnings)
    with pytest.raises(InputError, match="nothing to read"):
        run(local, books)


def test_a_zip_beside_good_files_is_passed_over_and_said_and_read_as_text_it_is_quarantined(local: Storage, data: Path) -> None:
    with zipfile.ZipFile(data / "more.zip", "w") as archive:
        archive.writestr("a.txt", "text " * 99)
    journal = Journal()
    run_with_journal(local, journal, Source(uri=str(data), domain="web"), part_bytes=2**20)
    assert any("1 files of" in text and "passed over for their suffix" in text for text in journal.warnings)
    made = run(local, Source(uri=str(data), domain="web", format="txt"))
    rows = made.table("quarantine.parquet").to_pylist()
    assert [row["reason"] for row in rows if row["uri"] == "web:more.zip"] == ["a zip archive; unpack it and give the files in it"]
    assert "more.zip" not in documents(made)["locator"].to_pylist()
