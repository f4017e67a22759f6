"""docs/operations.md quotes messages: each quoted one is still said by the code, so that a person who looks one up finds it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_arrows import MAY_IMPORT

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operations.md"
GAP = "…"
"""What stands in a quotation for a value, and for what a person need not read to know the message."""


def quoted() -> list[str]:
    """The messages in the first column of every table that is headed `message`."""
    found, inside = [], False
    for line in PAGE.read_text().splitlines():
        inside = line.startswith("|") and (inside or line.startswith("| message |"))
        if inside:
            found += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return found


def said() -> Iterator[str]:
    """Every string of the code with a gap for each value; shell scripts as they are."""
    for folder in MAY_IMPORT:
        for file in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text())))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    yield node.value
    yield from (file.read_text() for folder in MAY_IMPORT for file in (ROOT / folder).rglob("*.sh"))


@pytest.fixture(scope="module")
def everything() -> str:
    return "\0".join(said())


def test_the_page_quotes_many_messages():
    assert len(quoted()) > 60 and len(set(quoted())) == len(quoted())


@pytest.mark.parametrize("message", quoted())
def test_the_code_still_says_it(message: str, everything: str):
    words = [part.strip() for part in message.split(GAP) if part.strip()]
    assert sum(map(len, words)) >= 12, "too little of the message to know it by"
    assert re.search("[^\0]*".join(map(re.escape, words)), everything)
