"""Signs that mean something in a URL mean nothing in a path: two names are two places, for roots, sources, items, models and settings."""

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bessemer.config_file import read_config_file
from contract.errors import ConfigError
from sources.config import Source
from sources.files import files_of
from store.address import Address, address
from store.config import StorageConfig
from store.local_disk import LocalStorage
from store.root import open_file, open_root
from store.storage import Storage

NAMES = [
    "a",
    "a#b",
    "a#c",
    "a?b",
    "a%41b",
    "aAb",
    "a%b",
    "a;b",
    "a&b=c",
    "a b",
    "a+b",
    "ä",
    "~x",
    "a:b",
    "#",
    "?",
    "%",
    "100%",
    "[a]",
    "a\\b",
]


@pytest.mark.parametrize("as_uri", [False, True])
def test_roots_of_different_names_are_different_places(tmp_path: Path, as_uri: bool):
    places = [tmp_path / name for name in NAMES]
    roots = [open_root(place.as_uri() if as_uri else str(place)) for place in places]
    for name, root in zip(NAMES, roots, strict=True):
        root.create("x/who", name.encode())
    assert sorted(place.name for place in tmp_path.iterdir()) == sorted(NAMES)
    for name, root in zip(NAMES, roots, strict=True):
        assert root.read("x/who").decode() == name
        assert open_root(root.uri).read("x/who").decode() == name, "the address that is handed on means the same"
        assert StorageConfig(root=root.uri).root == root.uri


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("#", "?", "%")])
def test_prefixes_of_a_bucket_are_literal(s3: Storage, s3_server: str, name: str):
    bucket = s3.uri.removeprefix("s3://").partition("/")[0]
    root = open_root(f"s3://{bucket}/{name}/r", s3_server)
    root.create("x/who", name.encode())
    assert open_root(f"s3://{bucket}", s3_server).read(f"{name}/r/x/who").decode() == name
    assert open_root(root.uri, s3_server).read("x/who").decode() == name
    storage, path = open_file(f"s3://{bucket}/{name}/r/x/who", s3_server)
    assert storage.read(path).decode() == name
    (file,), _ = files_of(Source(uri=f"s3://{bucket}/{name}/r/x/who", domain="web", format="txt"), s3_server)
    assert (file.locator, file.size) == ("who", len(name.encode()))


@pytest.mark.parametrize("as_uri", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_found_by_its_name_as_a_source_as_items_and_as_settings(tmp_path: Path, name: str, as_uri: bool):
    for other in NAMES:  # each beside all others
        (tmp_path / other).mkdir()
        (tmp_path / other / f"{other}.yaml").write_text(f"# {other}\n")
    path = tmp_path / name / f"{name}.yaml"
    uri = path.as_uri() if as_uri else str(path)
    (file,), _ = files_of(Source(uri=uri, domain="web", format="txt"), None)
    assert file.path == str(path)
    storage, inside = open_file(uri)
    assert storage.read(inside).decode() == f"# {name}\n"
    assert (found := read_config_file(uri)).text.decode() == f"# {name}\n" and found.name == f"{name}.yaml"


def test_a_tilde_is_the_home_at_the_beginning_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert address("~/runs").path == str(tmp_path / "runs") and address("/a/~/b").path == "/a/~/b"
    assert open_root("~/runs").uri == (tmp_path / "runs").as_uri()
    (tmp_path / "my.yaml").write_text("base: smoke\n")
    assert read_config_file("~/my.yaml").base == "smoke"


def test_a_relative_path_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert address("a#b/c").path == str(tmp_path / "a#b" / "c")


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_every_path_has_one_address(names: list[str]):
    path = Path("/", *names)
    if ".." not in names:
        assert address(path.as_uri()) == address(str(path)) == Address("file", "", str(path))


def test_bytes_that_are_no_utf8_stand_for_themselves():
    assert os.fsencode(address("file:///a%ff").path) == b"/a\xff"
    assert LocalStorage(address("file:///a%ff").path).uri == "file:///a%FF"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file://host/a", "file://host/a names a host; write file:///absolute/path, with three slashes"),
        ("s3://a/b", "s3://a/b names no bucket; write s3://bucket/prefix"),
        ("s3:///b", "s3:///b names no bucket"),
        ("gs://bucket/a", "gs://bucket/a has the scheme gs; a path, file:// and s3:// are known"),
        ("https://example.org/a", "has the scheme https"),
    ],
)
def test_what_names_no_place_is_refused(uri: str, said: str):
    for call in (address, lambda uri: StorageConfig(root=uri), open_root, open_file):
        with pytest.raises((ValueError, ConfigError)) as caught:
            call(uri)
        assert said in str(caught.value)


def test_one_slash_after_file_is_taken_for_three():
    assert address("file:/a/b") == address("file:///a/b") == address("file://localhost/a/b") == address("FILE:///a/b")


def test_no_two_of_the_names_are_one_place():
    assert all(address(f"/{a}") != address(f"/{b}") for a, b in itertools.combinations(NAMES, 2))
