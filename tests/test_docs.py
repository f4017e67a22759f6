"""What the pages point at is there: files, tests, other pages and their headings."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
OTHERS = {"model.py", "my_package/signals.py", "my_package/readers.py"}
"""Files that a page speaks of and that are not ours."""


@cache
def files() -> dict[str, list[Path]]:
    """Files of the tree by name, those that tools and runs have made left out."""
    found: dict[str, list[Path]] = {}
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT).parts
        if path.is_file() and not any(part.startswith(".") or part in ("runs", "__pycache__") for part in inside[:-1]):
            found.setdefault(path.name, []).append(path)
    return found


def quoted(page: Path) -> list[str]:
    """What stands in backticks outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_files_and_tests_that_a_page_names_are_there(name: str):
    missing = []
    for text in quoted(ROOT / name):
        for path, test in re.findall(r"((?:[\w.-]+/)*[\w-]+\.(?:py|yaml|sh|tf|toml|json|tfvars))(?:::(\w+…?))?(?![\w*])", text):
            there = [file for file in files().get(path.rpartition("/")[2], []) if str(file).endswith("/" + path)]
            if path in OTHERS or "<" in text or "…" in path:
                continue
            if path.endswith(".py") and not there:
                missing.append(path)
            elif test and not any(has(file, test) for file in there):
                missing.append(f"{path}::{test}")
        for test in re.findall(r"^(?:…::)?(test_\w+…?)$", text):
            if not any(has(file, test) for found in files().values() for file in found if file.name.startswith("test_")):
                missing.append(test)
    assert not missing


def has(file: Path, test: str) -> bool:
    return re.search(rf"\b(def|class) {test.removesuffix('…')}" + ("" if test.endswith("…") else r"\b"), file.read_text()) is not None


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        assert not heading or heading in anchors(other), target


def anchors(page: Path) -> set[str]:
    """A page's headings as GitHub makes them into anchors."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
