"""Which files a source has, which a cap keeps, and that what is read is what was planned."""

import contextlib
import glob
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.errors import ConfigError, InputError, IntegrityError, PipelineError
from sources.config import IngestConfig, IngestIdentity, Source, unique_names
from sources.environment import Environment
from sources.files import SourceFile, files_of
from sources.opener import Opener
from sources.pieces import rows_of
from sources.plan import Selection, digest_of_selection, plan_parts, select
from sources.rows import Document
from store.digests import digests_of_files
from store.storage import Storage

NOWHERE = Environment(site=(), stdlib=None, share=None, packages=None)


def source(uri: object, **settings: object) -> Source:
    return Source(uri=str(uri), domain="web", **settings)


def chosen(*sources: Source, endpoint_url: str | None = None) -> list[Selection]:
    return select(sources, digests_of_files, NOWHERE, endpoint_url)


def texts(selections: list[Selection], part_bytes: int = 2**20, opener: Opener | None = None) -> list[str]:
    opener = opener or Opener()
    config, sources = IngestConfig(part_bytes=part_bytes), [selection.source for selection in selections]
    plan = plan_parts(selections, part_bytes, opener)
    return [row.text for part in plan for *_, row in rows_of(part, sources, config, opener) if isinstance(row, Document)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.txt", "sub/b.md", "sub/deep/c.jsonl", "x.bin", ".hidden.txt", "sub/.git/d.txt", "a[1].txt", "ab.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "' + name + '"}')
    return tmp_path / "data"


def test_a_folder_gives_its_known_visible_files_by_locator(folder: Path) -> None:
    files, skipped = files_of(source(folder), None)
    assert [file.locator for file in files] == ["a.txt", "a[1].txt", "ab.txt", "sub/b.md", "sub/deep/c.jsonl"]
    assert skipped == 1
    assert files_of(source(folder.as_uri()), None)[0] == files


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.jsonl", "sub/*", "s?b/**/*", "[!b]*.txt", "a[[]1].txt", "**/[a-c].*"])
def test_a_glob_matches_what_pythons_does(folder: Path, pattern: str) -> None:
    files, _ = files_of(source(f"{folder}/{pattern}"), None)
    want = {path for path in glob.glob(f"{folder}/{pattern}", recursive=True) if Path(path).suffix in (".txt", ".md", ".jsonl")}  # noqa: PTH207
    assert {file.path for file in files} == want


def test_the_locator_starts_after_the_fixed_prefix_of_a_glob(folder: Path) -> None:
    assert [file.locator for file in files_of(source(f"{folder}/sub/**/*.jsonl"), None)[0]] == ["deep/c.jsonl"]
    assert [file.locator for file in files_of(source(folder / "a[1].txt"), None)[0]] == ["a[1].txt"]


def test_a_file_is_read_once_however_often_it_is_matched(folder: Path) -> None:
    (folder / "again.txt").symlink_to(folder / "a.txt")
    assert [file.locator for file in files_of(source(f"{folder}/a*.txt"), None)[0]] == ["a.txt", "a[1].txt", "ab.txt"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (folder / "way.txt").symlink_to(outside / "secret.txt" if what == "file" else outside)
    with pytest.raises(InputError, match=r"way\.txt leads out"):
        files_of(source(folder), None)


@pytest.mark.parametrize(
    ("uri", "words"), [("absent", "does not exist"), ("none*.txt", "no files"), ("x.bin", "format"), ("empty.txt", "0 bytes")]
)
def test_an_absent_or_empty_source_is_refused_by_name(folder: Path, uri: str, words: str) -> None:
    (folder / "empty.txt").touch()
    with pytest.raises(InputError, match=f"source web: .*{words}"):
        files_of(source(folder / uri), None)


def test_a_name_that_is_not_utf8_is_refused_in_ascii(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder / "a") + b"\xff.txt")).write_text("x")
    with pytest.raises(InputError, match=r"a\\udcff\.txt' is not UTF-8.*rename it"):
        files_of(source(folder), None)


def test_what_no_file_system_can_hold_is_no_crash(tmp_path: Path) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.text(max_size=20).filter(lambda name: ".." not in name))  # a person may name what lies above: it would be read, all of it
    def holds(name: str) -> None:
        with contextlib.suppress(PipelineError, ValidationError):
            files_of(source(f"{tmp_path}/{name}"), None)

    holds()


def test_what_climbs_out_behind_a_wildcard_matches_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("not of this source")
    for uri in ("*/../../secret.txt", "*/../../*.txt", "**/../secret.txt"):
        with pytest.raises(InputError, match="there are no files in"):
            files_of(source(folder / uri), None)


def test_a_cap_is_kept_chooses_the_same_files_anywhere_and_keeps_its_choice_as_files_come(tmp_path: Path) -> None:
    for place in ("one", "two/deeper"):
        for i in range(30) if place == "one" else reversed(range(30)):
            path = tmp_path / place / f"f{i:02d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x" * 100)
    (first,), (second,) = (chosen(source(tmp_path / place, max_bytes=1000)) for place in ("one", "two/deeper"))
    assert [file.locator for file in first.files] == [file.locator for file in second.files]
    assert len(first.files) == 10
    assert digest_of_selection(first) == digest_of_selection(second)
    (fewer,) = chosen(source(tmp_path / "one", max_documents=4))
    assert len(fewer.files) == 4 and {f.locator for f in fewer.files} <= {f.locator for f in first.files}


def test_capped_records_are_the_same_whatever_the_part_size(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_text("".join(f'{{"text": "{i} {j:03d}"}}\n' for j in range(40)))
    got = [texts(chosen(source(tmp_path, max_documents=50)), part_bytes) for part_bytes in (64, 2**20)]
    assert got[0] == got[1] and len(got[0]) == 50
    assert sum(len(text) for text in texts(chosen(source(tmp_path, max_bytes=100)))) <= 100


def test_the_plan_reads_every_line_once_whatever_the_part_size(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{j}"}}\n' for j in range(500)))
    (tmp_path / "wide.jsonl").write_bytes("".join(f'{{"text": "w{j}"}}\n' for j in range(100)).encode("utf-16"))
    want = [str(j) for j in range(500)] + [f"w{j}" for j in range(100)]
    for part_bytes in (37, 1000, 2**20):
        assert texts(chosen(source(tmp_path)), part_bytes) == want


def test_bytes_that_are_not_those_of_the_plan_stop_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' * 10)
    before = path.stat()
    planned = chosen(source(path))
    path.write_text('{"text": "two"}\n' * 10)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time: only the bytes tell
    with pytest.raises(IntegrityError, match="changed while read"):
        texts(planned)


def test_a_file_that_grows_while_it_is_read_stops_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' * 10)
    (selection,) = chosen(source(path))
    with pytest.raises(IntegrityError, match="changed while read"), Opener().open(selection.files[0]) as handle:
        handle.read()
        with path.open("a") as more:
            more.write("more")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")

    def refusing(paths: object) -> dict[str, str]:
        raise PermissionError(13, "Permission denied", "a.txt")  # as root, no file refuses

    with pytest.raises(InputError, match=r"cannot read a\.txt: Permission denied"):
        select([source(tmp_path)], refusing, NOWHERE, None)


def test_a_bucket_gives_what_the_folder_gives(s3: Storage, s3_server: str, folder: Path, tmp_path: Path) -> None:
    for file in ("a.txt", "sub/b.md", "sub/deep/c.jsonl"):
        s3.write(f"data/{file}", (folder / file).read_bytes())
    whole = chosen(source(f"{s3.uri}/data"), endpoint_url=s3_server)
    opener = Opener(s3_server, str(tmp_path / "scratch"))
    assert [file.locator for file in whole[0].files] == ["a.txt", "sub/b.md", "sub/deep/c.jsonl"]
    assert texts(whole, 5, opener) == ['{"text": "a.txt"}', '{"text": "sub/b.md"}', "sub/deep/c.jsonl"]
    (globbed,) = chosen(source(f"{s3.uri}/data/**/*.jsonl"), endpoint_url=s3_server)
    assert [file.locator for file in globbed.files] == ["sub/deep/c.jsonl"]
    (single,) = chosen(source(f"{s3.uri}/data/sub/b.md"), endpoint_url=s3_server)
    assert [file.locator for file in single.files] == ["b.md"]
    s3.write("data/a.txt", b"other bytes")
    with pytest.raises(IntegrityError, match="changed while read"):
        texts(whole, 5, Opener(s3_server, str(tmp_path / "other")))
    with pytest.raises(InputError, match="no files"):
        chosen(source(f"{s3.uri}/nothing"), endpoint_url=s3_server)


def test_the_place_of_a_source_is_no_part_of_its_identity() -> None:
    def identity(uri: str) -> dict:
        return IngestIdentity.of((source(uri, max_bytes=9),), IngestConfig(), "http://x").model_dump(mode="json")

    assert identity("/a/*.txt") == identity("s3://bucket/b")
    assert "/a" not in str(identity("/a")) and identity("/a")["sources"][0]["max_bytes"] == 9


def test_every_file_of_the_digest_counts() -> None:
    file = SourceFile("a", "txt", 1, "/x/a", digest="d1", group="g")
    digests = {
        digest_of_selection(Selection(source("x"), (one,)))
        for one in (
            file,
            file._replace(path="/y/a", size=2),
            file._replace(digest="d2"),
            file._replace(locator="b"),
            file._replace(group="h"),
        )
    }
    assert len(digests) == 4  # the path alone does not count


def test_names_must_differ_and_wrong_settings_say_the_right_ones() -> None:
    with pytest.raises(ValueError, match="give each a `name`"):
        unique_names((source("a"), source("b")))
    assert unique_names((source("a"), source("b", name="other")))
    with pytest.raises(ValidationError, match="the environment has no 'wbe'"):
        Source.model_validate({"uri": "environment:wbe"})
    with pytest.raises(ValidationError, match="leave domain out"):
        Source.model_validate({"uri": "environment:web", "domain": "code"})
    with pytest.raises(ValidationError, match="not known to Python"):
        source("a", encoding="utf-9")
    with pytest.raises(ConfigError, match="scheme ftp"):
        files_of(source("ftp://host/x"), None)
    assert Source.model_validate({"uri": "environment:code"}).name == "code"
