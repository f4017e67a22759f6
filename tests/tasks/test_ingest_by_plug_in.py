"""The reader of docs/plug-ins.md, in a package of the user's: run, planned, raised and refused."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from contract.config import RunOptions
from contract.schemas import document_id
from engine.stage import Engine
from flows.__main__ import main
from sources.config import IngestConfig, Source
from sources.plug_in_reader import GROUP, reader_of
from store.artifact import Artifact
from store.root import open_root
from store.storage import Storage
from tasks.ingest import ingest

PROJECT = Path(__file__).parents[2]
SECTION = (PROJECT / "docs" / "plug-ins.md").read_text().partition("## A reader\n")[2].partition("\n## ")[0]
PROGRAM, SOURCE = re.findall(r"```\w+\n(.*?)```", SECTION, re.DOTALL)
JOURNAL = ("started", "progress", "warn", "finished")


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A folder with `my_package` as the page has it, and the entry point that pip would have written."""
    (tmp_path / "theirs" / "my_package").mkdir(parents=True)
    (tmp_path / "theirs" / "my_package" / "readers.py").write_text(PROGRAM)
    info = tmp_path / "theirs" / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\narticles = my_package.readers:ARTICLES\n")
    forget()
    yield tmp_path / "theirs"
    forget()


def forget() -> None:
    """As if this process had begun anew."""
    for module in [module for module in sys.modules if module.split(".")[0] == "my_package"]:
        del sys.modules[module]
    reader_of.cache_clear()


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    folder = tmp_path / "articles"
    folder.mkdir()
    for file in range(4):
        bodies = "".join(f'<article id="{file}-{i}"><body>Article {i} of {file}.</body><license>MIT</license></article>' for i in range(8))
        last = "<article><license>CC0</license></article>" if file == 1 else "</broken>" if file == 3 else ""
        (folder / f"{file}.xml").write_text(f"<all>{bodies}{last}</all>")
    (folder / "note.txt").write_text("A note.")
    return folder


def setting(articles: Path, **changed: str) -> dict[str, Any]:
    return yaml.safe_load(SOURCE) | {"uri": articles.as_uri()} | changed


def flow_style(value: object) -> str:
    """As YAML on one line, for --set."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()


def engine(storage: Storage, source: dict[str, Any]) -> Engine:
    config = SimpleNamespace(
        sources=(Source.model_validate(source),), ingest=IngestConfig(part_bytes=400), storage=SimpleNamespace(endpoint_url=None)
    )
    return Engine(storage, config, RunOptions(workers=1), SimpleNamespace(**dict.fromkeys(JOURNAL, lambda *_: None)), "smoke")


def run(storage: Storage, source: dict[str, Any]) -> Artifact:
    made = engine(storage, source)
    return made.run(made.plan(ingest, {}))


@pytest.mark.slow
def test_over_rays_workers_and_in_one_process_it_gives_the_same_documents(
    tmp_path: Path, package: Path, articles: Path, monkeypatch: pytest.MonkeyPatch
):
    """By its entry point over two workers that find it on PYTHONPATH, and by both of its names here."""
    root, source = (tmp_path / "root").as_uri(), setting(articles, reader="articles")
    settings = [f"sources={flow_style([source])}", f"storage.root={root}", "run.workers=2", "ingest.part_bytes=400"]
    command = [sys.executable, "-m", "flows", "run", "curate", "--preset", "smoke", "--until", "ingest"]
    monkeypatch.setenv("PYTHONPATH", str(package))
    done = subprocess.run([*command, *(f"--set={each}" for each in settings)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search("1 files of .* were passed over for their suffix", done.stdout + done.stderr)

    monkeypatch.syspath_prepend(str(package))
    there, here = run(open_root(root), source), run(open_root((tmp_path / "here").as_uri()), source)
    assert "ray_start_s" in there.manifest["execution"] and "ray_start_s" not in here.manifest["execution"]
    assert there.digest == here.digest
    assert run(open_root(root), setting(articles)).fingerprint == there.fingerprint, "the entry point stands for package.module:OBJECT"

    documents = pa.concat_tables([there.table(name) for name in there.names()]).to_pylist()
    assert len(there.names()) == 4 and [row["text"] for row in documents] == [f"Article {i} of {f}." for f in range(4) for i in range(8)]
    assert (documents[0]["locator"], documents[0]["id"]) == ("#0-0", document_id("reference", "#0-0"))
    count = there.ledger.documents
    assert count is not None and (count.came_in, count.out, count.quarantined) == (34, 32, 2)
    none, broken = there.table("quarantine.parquet").to_pylist()
    assert (none["uri"], none["offset"], none["reason"]) == ("reference:1.xml", 8, "its text is null, not a string")
    assert (broken["uri"], broken["offset"]) == ("reference:3.xml", 8)
    assert broken["reason"].startswith("the reader my_package.readers:ARTICLES raised ParseError: mismatched tag: line 1, column")


def test_a_raised_version_is_why_it_runs_again(local: Storage, package: Path, articles: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(package))
    run(local, setting(articles))
    assert engine(local, setting(articles)).plan(ingest, {}).why == ""
    (package / "my_package" / "readers.py").write_text(PROGRAM.replace("version=1", "version=22"))
    forget()
    assert engine(local, setting(articles)).plan(ingest, {}).why == "sources.0.reader_version 1 -> 22"
    assert (f"`{engine(local, setting(articles)).plan(ingest, {}).why}`").replace("22", "2") in SECTION


@pytest.mark.parametrize("key", ["sources", "align_data.sources"])
@pytest.mark.parametrize("command", [["plan"], ["run", "curate"]])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_package.readers:NONE", "my_package.readers:NONE cannot be loaded"),
        ("my_package.readers:articles", "is a function; a sources.plug_in_reader.Reader is expected"),
        ("paragraphs", "'paragraphs' is neither package.module:OBJECT nor an entry point; those in bessemer.readers: articles"),
    ],
)
def test_a_reader_that_cannot_be_had_is_refused_before_anything_runs(
    tmp_path: Path,
    package: Path,
    articles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    command: list[str],
    name: str,
    said: str,
):
    monkeypatch.syspath_prepend(str(package))
    value = flow_style([setting(articles, reader=name, domain="conversation")])
    root = tmp_path / "root"
    code = main([*command, "--preset", "smoke", "--set", f"{key}={value}", "--set", f"storage.root={root.as_uri()}"])
    assert code == 2
    assert re.match(f"bessemer: the reader of source conversation: .*{re.escape(said)}", capsys.readouterr().err)
    assert not (root / "artifacts").exists()
