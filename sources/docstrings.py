"""Signatures and docstrings out of Python source, by its syntax tree. Nothing is imported or run."""

import ast
import gc
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

from sources.streams import StreamFault

LEAST_WORDS = 4
MOST_TOKENS = 2**19
"""A syntax tree takes up to a kilobyte a token, as in lines of a single letter. The largest module of pandas has 170,000."""
TOKEN = re.compile(r"\w+|[^\w ]")  # and words and marks in strings and comments: f-strings have trees in them
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Question(NamedTuple):
    """A question made from a function's signature, answered by the first paragraph of its docstring."""

    name: str
    prompt: str
    response: str
    names: tuple[str, ...]


@contextmanager
def without_collector() -> Iterator[None]:
    """Syntax trees have no cycles, and the search for some in their many nodes takes as long as parsing: for whole trees' lives."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse(text: str) -> ast.Module:
    """The syntax tree. Raises StreamFault for what is no Python of this version, or too much of it."""
    if len(text) > MOST_TOKENS and next(islice(TOKEN.finditer(text), MOST_TOKENS, None), None):
        raise StreamFault(f"Python source of more than {MOST_TOKENS:,} words and marks, of which no tree is made; split the module")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise StreamFault(f"no Python 3.11 source: {error.msg if isinstance(error, SyntaxError) else error}{line}") from error


@without_collector()
def docstrings(text: str) -> str:
    """All docstrings of a module under their names and signatures, in order; empty when it has none."""
    found = []
    for name, node in _documented(parse(text), ""):
        heading = name if isinstance(node, ast.Module | ast.ClassDef) else f"{name}({_arguments(node)})"
        found.append("\n\n".join(part for part in (heading, ast.get_docstring(node)) if part))
    return "\n\n".join(found)


@without_collector()
def questions(text: str) -> list[Question]:
    """One a documented function that is not a test or a dunder."""
    found = []
    for name, node in _documented(parse(text), ""):
        if isinstance(node, ast.Module | ast.ClassDef) or node.name.startswith(("test", "__")):
            continue
        answer = summary(ast.get_docstring(node) or "")
        if len(answer.split()) >= LEAST_WORDS:
            found.append(Question(name, ask(f"{name}({_arguments(node)})"), answer, _names(node)))
    return found


def ask(signature: str) -> str:
    """The question about a signature. It ends in a line end, so that prompt and answer never share a token."""
    return f"Question: what does `{signature}` do?\nAnswer:\n"


def summary(docstring: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def _documented(module: ast.Module, prefix: str) -> Iterator[tuple[str, ast.Module | ast.ClassDef | Function]]:
    """(qualified name, node) of everything with a docstring, in source order; nested functions left out."""
    if ast.get_docstring(module, clean=False):
        yield "", module
    stack: list[tuple[str, ast.stmt]] = [("", statement) for statement in reversed(module.body)]
    while stack:
        prefix, node = stack.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False):
                yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                stack.extend((f"{prefix}{node.name}.", statement) for statement in reversed(node.body))
        elif isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *(node.handlers[0].body if isinstance(node, ast.Try) and node.handlers else []), *node.orelse]
            stack.extend((prefix, statement) for statement in reversed(inner))


def _arguments(node: Function) -> str:
    """The parameters with their defaults, without annotations: those make signatures too long to ask about."""
    for argument in _all_arguments(node):
        argument.annotation = None
    try:
        return ast.unparse(node.args)
    except (RecursionError, ValueError):
        return ", ".join(_names(node))


def _all_arguments(node: Function) -> list[ast.arg]:
    spec = node.args
    return [a for a in (*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg) if a is not None]


def _names(node: Function) -> tuple[str, ...]:
    return tuple(argument.arg for argument in _all_arguments(node) if argument.arg not in ("self", "cls", "_"))
