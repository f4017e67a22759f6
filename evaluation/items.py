"""Multiple-choice items: local continuations from the test part, and named tasks from files, in one table.

A continuation item gives some text of a test document and asks which of several pieces comes next: its own, or pieces of
documents of the same domain and other groups. All pieces have exactly the same number of characters, begin with a word and end with
one, and stand after the same white space, so that neither length nor a cut word gives the answer away. Items come in sets: four
pieces, four contexts, each piece the right one once. So who scores pieces without the context is right in exactly one of four, however
alike or unlike the documents are (docs/experiments.md has what wrong pieces drawn at random did).

Deterministic: every choice follows from BLAKE2b of the seed and the document's id; the order of parts and rows does not matter.
"""

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import InputError
from contract.schemas import ID
from evaluation.config import CONTINUATION, ItemsConfig, NamedTask

ITEMS = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("document", ID),  # null for a named task
        pa.field("group", pa.string(), nullable=False),  # what makes items depend on each other beyond the document
        pa.field("domain", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("gold", pa.int32(), nullable=False),
    ]
)

CANDIDATES = pa.schema(
    [
        pa.field("key", pa.binary(8), nullable=False),
        pa.field("id", ID, nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
    ]
)

EXCERPT_CHARACTERS = 20_000  # kept of a longer document; its items come from these
PLACES = 200  # words of a document at which a piece is tried
_WORD = re.compile(r"(?<!\S)\S")


def candidates(documents: pa.Table, duplicates: pa.Table, splits: pa.Table, config: ItemsConfig) -> pa.Table:
    """The test documents of one part that an item may be made of, at most `bound` a domain, ordered by key.

    The tables are one part's: rows beside each other. `merge_candidates` of all parts gives the same whatever the parts are.
    """
    rows = pc.and_(pc.equal(splits["split"], "test"), duplicates["kept"])
    rows = pc.and_(rows, pc.greater_equal(pc.utf8_length(documents["text"]), _least_length(config)))
    found = pa.table(
        {"id": documents["id"], "text": documents["text"], "domain": documents["domain"], "group": splits["group"]},
    ).filter(rows)
    keys = [_digest(config.seed, "document", row.as_py()) for row in found["id"]]
    found = found.append_column("key", pa.array(keys, pa.binary(8)))
    found = merge_candidates([found.select(CANDIDATES.names).cast(CANDIDATES)], config)
    excerpts = [_excerpt(text, key) for text, key in zip(found["text"].to_pylist(), found["key"].to_pylist(), strict=True)]
    return found.set_column(CANDIDATES.get_field_index("text"), CANDIDATES.field("text"), pa.array(excerpts, pa.large_string()))


def merge_candidates(tables: list[pa.Table], config: ItemsConfig) -> pa.Table:
    """Of all rows, those with the smallest keys: as many documents a domain as items are wanted in all, so memory is bounded."""
    table = pa.concat_tables([CANDIDATES.empty_table(), *tables]).sort_by([("key", "ascending"), ("id", "ascending")])
    seen: dict[str, int] = {}
    keep = np.zeros(len(table), bool)
    for i, domain in enumerate(table["domain"].to_pylist()):
        keep[i] = seen.get(domain, 0) < max(config.items, config.choices)
        seen[domain] = seen.get(domain, 0) + 1
    return table.filter(pa.array(keep))


def continuation_items(pool: pa.Table, config: ItemsConfig) -> pa.Table:
    """Items from merged candidates, as evenly over domains as their documents allow, first windows of all documents first."""
    queues = {}
    for domain in sorted(set(pool["domain"].to_pylist())):
        queues[domain] = _sets(pool.filter(pc.equal(pool["domain"], domain)).to_pylist(), config)
    rows: list[dict] = []
    while queues and len(rows) + config.choices <= config.items:
        for domain in sorted(queues):
            several = next(queues[domain], None)
            if several is None:
                del queues[domain]
            elif len(rows) + config.choices <= config.items:
                rows += [_item(i, several, config) for i in range(config.choices)]
    rows.sort(key=lambda row: (row["domain"], row["item"]))
    return pa.Table.from_pylist(rows, ITEMS)


def _sets(documents: list[dict], config: ItemsConfig) -> Iterator[list["Window"]]:
    """Windows of one domain, as many at a time as an item has choices, each of another group; the greatest groups are drawn on first."""
    for number in range(config.items_per_document):
        by_group: dict[str, deque[Window]] = {}
        for document in documents:
            window = _window(document, number, config)
            if window is not None:
                by_group.setdefault(document["group"], deque()).append(window)
        while len(by_group) >= config.choices:
            chosen = sorted(by_group, key=lambda group: (-len(by_group[group]), group))[: config.choices]
            several = [by_group[group].popleft() for group in chosen]
            by_group = {group: left for group, left in by_group.items() if left}
            if len({window.piece for window in several}) == config.choices:
                yield several


def _item(right: int, windows: list["Window"], config: ItemsConfig) -> dict:
    """The item whose right piece is that of windows[right]."""
    own = windows[right]
    order = np.random.default_rng(list(_digest(config.seed, f"order {own.number}", own.document["id"]))).permutation(config.choices)
    return {
        "task": CONTINUATION,
        "item": f"{own.document['id'].hex()}-{own.number}",
        "document": own.document["id"],
        "group": own.document["group"],
        "domain": own.document["domain"],
        "context": own.context,
        "choices": [own.gap + windows[i].piece for i in order],
        "gold": order.tolist().index(right),
    }


def _excerpt(text: str, key: bytes) -> str:
    """A book costs what a page costs: a stretch of it from anywhere."""
    spare = len(text) - EXCERPT_CHARACTERS
    start = int.from_bytes(key) % (spare + 1) if spare > 0 else 0
    return text[start : start + EXCERPT_CHARACTERS]


def _least_length(config: ItemsConfig) -> int:
    return config.context_characters + 2 * config.continuation_characters


@dataclass(frozen=True)
class Window:
    """A place of a document: what stands before it, and the piece that is to be told from others."""

    document: dict
    number: int
    context: str
    gap: str
    """The white space between them."""
    piece: str


def _window(document: dict, number: int, config: ItemsConfig) -> Window | None:
    """The document is cut in equal sections, one a window, and the window lies anywhere in its own; None where there is no place for it."""
    text = document["text"]
    sections = min(config.items_per_document, len(text) // _least_length(config))
    if number >= sections:
        return None
    start, end = len(text) * number // sections, len(text) * (number + 1) // sections
    rng = np.random.default_rng(list(_digest(config.seed, f"window {number}", document["id"])))
    begin = _place(text, start, end, config, rng)
    context = "" if begin is None else text[start:begin].rstrip()
    if begin is None or not context:
        return None
    gap = text[start + len(context) : begin]
    return Window(document, number, context[-config.context_characters :], gap, text[begin : begin + config.continuation_characters])


def _place(text: str, start: int, end: int, config: ItemsConfig, rng: np.random.Generator) -> int | None:
    """Where a piece between `start` and `end` begins, with a word, so that it ends with one after exactly continuation_characters."""
    first, last = start + config.context_characters, end - config.continuation_characters
    if last < first:
        return None
    offset = int(rng.integers(first, last + 1))
    for begin in islice(_words(text, first, offset, last), PLACES):
        stop = begin + config.continuation_characters
        if not text[stop - 1].isspace() and (stop == len(text) or text[stop].isspace()):
            return begin
    return None


def _words(text: str, first: int, offset: int, last: int) -> Iterator[int]:
    """Beginnings of words from `offset` to `last`, then from `first` to `offset`."""
    for low, high in ((offset, last), (first, offset - 1)):
        for match in _WORD.finditer(text, low):
            if match.start() > high:
                break
            yield match.start()


def named_items(task: NamedTask, lines: Iterator[bytes]) -> pa.Table:
    """The items of a file of {"query", "choices", "gold"} lines. Raises InputError with the line's number for anything else."""
    rows: list[dict] = []
    for number, line in enumerate(lines, 1):
        if task.limit is not None and len(rows) == task.limit:
            break
        if not line.strip():
            continue
        row = _parse(line)
        if row is None:
            raise InputError(
                f"{task.uri}, line {number}: not an item of the task {task.name}. "
                'Expected {"query": text, "choices": [two or more texts], "gold": index of the right one}; correct the line.'
            )
        name = f"{task.name}-{number:06d}"
        rows.append({"task": task.name, "item": name, "document": None, "group": name, "domain": task.name, **row})
    if not rows:
        raise InputError(f"{task.uri}: no item of the task {task.name} in it; give a file with one JSON object a line")
    return pa.Table.from_pylist(rows, ITEMS)


def _parse(line: bytes) -> dict | None:
    try:
        value = orjson.loads(line)
        query, choices, gold = value["query"], value["choices"], value["gold"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    texts = isinstance(query, str) and isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)
    if not texts or type(gold) is not int or not 0 <= gold < len(choices):
        return None
    return {"context": query, "choices": choices, "gold": gold}


def delimiter(task: str) -> str:
    """What stands between context and choice: the choices of a local item bring their own white space, others get a space."""
    return "" if task == CONTINUATION else " "


def _digest(seed: int, purpose: str, document: bytes) -> bytes:
    return hashlib.blake2b(document, digest_size=8, key=f"{seed} {purpose}".encode()).digest()
