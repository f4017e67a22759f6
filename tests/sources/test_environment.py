"""The environment as a source: the same ids and digests wherever a copy lies, nothing of the place in it, nothing executed."""

import gzip
import os
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from contract.schemas import document_id
from sources.config import ENVIRONMENT_SOURCES, IngestConfig
from sources.docstrings import docstrings, questions
from sources.environment import Environment, installed_files
from sources.formats import read
from sources.opener import Opener
from sources.plan import Selection, digest_of_selection, select
from sources.roff import deroff
from sources.rows import Document
from sources.texts import html_text
from store.digests import digests_of_files

MODULE = '''"""What a module is for."""
raise SystemExit("executed")

class Box:
    """Holds things."""

    def put(self, thing: int, *rest, at: str = "top") -> None:
        """Put a thing into the box.

        More words.
        """

    @overload
    def get(self): "Take a thing out again."
    def get(self, n): "Take several things out again."

def _bare(x): return x
def test_it(): "Not asked about, as it is a test."
def odd(): "A docstring with \\ud800 in it."
'''
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\n\n# {name}\n\nA längere description.\n"


def make(base: Path, reverse: bool) -> Environment:
    """A small environment, its files made in one order or the other."""
    site, stdlib, share = base / "lib/site-packages", base / "std", base / "share"
    files = {
        site / "alpha_pkg/__init__.py": MODULE,
        site / "alpha_pkg/README.md": "Read me first.",
        site / "alpha_pkg/guide.rst": "A guide.",
        site / "alpha_pkg/requirements.txt": "numpy",
        site / "alpha_pkg/empty.py": "",
        site / "Alpha_Pkg-1.0.dist-info/METADATA": METADATA.format(name="Alpha_Pkg"),
        site / "Alpha_Pkg-1.0.dist-info/INSTALLER": "pip",
        site / "Alpha_Pkg-1.0.dist-info/licenses/LICENSE": "Do as you like.",
        site / "bessemer/own.py": "own = 1",
        site / "bessemer-0.1.dist-info/METADATA": METADATA.format(name="bessemer"),
        site / "__pycache__/stray.py": "stray = 1",
        site / "unrecorded.py": f"where = {str(base)!r}",
        stdlib / "json/decoder.py": "x = 1",
        stdlib / "_sysconfigdata_linux.py": f"where = {str(base)!r}",
        stdlib / "site-packages/other.py": "y = 1",
        share / "doc/libfoo/README": "About foo.",
        share / "doc/libfoo/changelog.txt": "No.",
        share / "doc/libfoo/manual.html": "<p>Use <b>foo</b> &amp; bar</p><script>x</script>",
        share / "man/man1/foo.1.gz": '.TH FOO 1\n.SH NAME\nfoo \\- do\\fB it\\fR\n.\\" no\n',
        share / "man/man1/alias.1.gz": ".so man1/foo.1\n",
        base / "dpkg/libfoo:amd64.list": "/usr/share/man/man1/foo.1.gz\n/usr/share/doc/libfoo/README\n",
    }
    for path, text in sorted(files.items(), reverse=reverse):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
        os.utime(path, (1, 1) if reverse else (2, 2))
    for name in ("Alpha_Pkg-1.0", "bessemer-0.1"):
        recorded = [str(path.relative_to(site)) for path in files if path.is_relative_to(site) and "unrecorded" not in path.name]
        own = [path for path in recorded if path.startswith((name.split("-")[0], name.split("-")[0].lower()))]
        rows = [*own, "../../../bin/launcher", "alpha_pkg/gone.py"]
        (site / f"{name}.dist-info/RECORD").write_text("".join(f"{row},,\n" for row in (reversed(rows) if reverse else rows)))
    return Environment((str(site),), str(stdlib), str(share), str(base / "dpkg"))


def read_all(place: Environment) -> tuple[list[Selection], dict[tuple[str, str], Document]]:
    selections = select(ENVIRONMENT_SOURCES, digests_of_files, place, None)
    found = {}
    for selection in selections:
        for file in selection.files:
            with Opener().open(file) as handle:
                for row in read(file, selection.source, IngestConfig(), handle):
                    if isinstance(row, Document):
                        found[selection.source.name, row.locator] = row
    return selections, found


@pytest.fixture
def place(tmp_path: Path) -> Environment:
    return make(tmp_path, reverse=False)


def test_two_copies_in_other_folders_give_the_same_ids_and_digests(tmp_path: Path) -> None:
    one, rows_one = read_all(make(tmp_path / "one", reverse=False))
    two, rows_two = read_all(make(tmp_path / "another/place", reverse=True))
    assert [digest_of_selection(s) for s in one] == [digest_of_selection(s) for s in two]
    assert [document_id(*key) for key in rows_one] == [document_id(*key) for key in rows_two]
    assert list(rows_one.values()) == list(rows_two.values())
    assert not any(str(tmp_path) in row.text for row in rows_one.values())


def test_each_domain_has_its_own_text_under_its_distribution(place: Environment) -> None:
    selections, found = read_all(place)
    assert {key: (row.group, row.text) for key, row in found.items() if key[0] == "web"} == {
        ("web", "alpha-pkg/dist-info/METADATA"): ("alpha-pkg", "# Alpha_Pkg\n\nA längere description.\n"),
        ("web", "alpha-pkg/alpha_pkg/README.md"): ("alpha-pkg", "Read me first."),
        ("web", "doc/libfoo/README"): ("system:libfoo", "About foo."),
        ("web", "doc/libfoo/manual.html"): ("system:libfoo", "Use foo & bar"),
    }
    assert sorted(locator for domain, locator in found if domain == "code") == ["alpha-pkg/alpha_pkg/__init__.py", "python/json/decoder.py"]
    assert sorted(locator for domain, locator in found if domain == "reference") == [
        "alpha-pkg/alpha_pkg/__init__.py",
        "alpha-pkg/alpha_pkg/guide.rst",
        "alpha-pkg/dist-info/licenses/LICENSE",
        "man/man1/foo.1.gz",
    ]
    assert found["reference", "man/man1/foo.1.gz"].group == "system:libfoo"
    assert found["web", "alpha-pkg/dist-info/METADATA"].license == "MIT"
    assert [selection.source.domain for selection in selections if not selection.files] == ["books", "academic"]


def test_questions_come_from_signatures_and_are_answered_by_docstrings(place: Environment) -> None:
    _, found = read_all(place)
    asked = {locator.partition("#")[2]: row for (domain, locator), row in found.items() if domain == "conversation"}
    assert sorted(asked) == ["Box.get", "Box.get~2", "Box.put", "odd"]
    assert asked["Box.put"].extra == {
        "prompt": "Question: what does `Box.put(self, thing, *rest, at='top')` do?\nAnswer:\n",
        "response": "Put a thing into the box.",
        "names": ["thing", "rest", "at"],
    }
    assert asked["Box.put"].text == asked["Box.put"].extra["prompt"] + "Put a thing into the box."
    assert asked["odd"].text.endswith("A docstring with ? in it.")


def test_docstrings_stand_under_their_names_in_order() -> None:
    assert docstrings(MODULE).split("\n\n")[:4] == [
        "What a module is for.",
        "Box",
        "Holds things.",
        "Box.put(self, thing, *rest, at='top')",
    ]
    assert docstrings("x = 1") == "" and list(questions("def f(a): 'Too short.'")) == []


def test_every_docstring_of_a_real_module_is_found() -> None:
    import inspect
    import textwrap

    text = docstrings(Path(textwrap.__file__).read_text())
    named = {name: inspect.getdoc(item) for name, item in vars(textwrap).items() if inspect.isfunction(item) and item.__doc__}
    assert len(named) > 3 and all(doc in text for doc in named.values() if doc)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (".SH NAME\nls \\- list", "NAME\nls - list"),
        ('.TP\n.BR \\-a ", " \\-\\-all\nshow \\fIall\\fP', "-a, --all\nshow all"),
        (".Sh SYNOPSIS\n.Nm foo\n.Op Fl v", "SYNOPSIS\nfoo\n-v"),
        (".de XX\nhidden\n..\nseen \\(em \\[u00E9]\\*(lqx\\*(rq", "seen — é“x”"),
        (".so man3/other.3", ""),
    ],
)
def test_manual_pages_become_text(page: str, text: str) -> None:
    assert deroff(page) == text


def test_html_becomes_its_visible_text() -> None:
    page = "<html><head><title>t</title></head><body><h1>A</h1><p>b &lt; c<br>d<!-- e --></p><style>f</style></body></html>"
    assert html_text(page).split() == ["A", "b", "<", "c", "d"]


def test_distributions_are_found_where_a_library_has_replaced_pythons_finder(place: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """importlib_metadata, which Prefect brings to Python 3.11, takes this method away for the rest of the process that imports it."""
    monkeypatch.delattr(PathFinder, "find_distributions", raising=False)
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    assert not list(metadata.distributions(path=list(place.site)))
    assert {name for name, _, _ in installed_files(place)} == {"alpha-pkg", "python"}
