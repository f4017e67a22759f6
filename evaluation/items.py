"""Multiple-choice items: local continuations from the test part, and named tasks from files, in one table.

A continuation item gives some text of a test document and asks which of several pieces comes next: its own, or pieces of
documents of the same domain and other groups. All pieces of an item have exactly as many characters as the true one, begin with a
word and end with one, and stand after the same white space, so that neither length nor a cut word gives the answer away.

Deterministic: every choice follows from BLAKE2b of the seed and the document's id; the order of parts and rows does not matter.
"""

import hashlib
import re
from collections.abc import Iterator
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
DISTRACTOR_DOCUMENTS = 200  # looked at, at most, for each wrong choice: a place of the exact length is found in the first one nearly always
DISTRACTOR_PLACES = 200  # words of such a document at which a piece is tried
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
        inside = pool.filter(pc.equal(pool["domain"], domain)).to_pylist()
        if len({row["group"] for row in inside}) >= 2:  # else every wrong choice would come from the right document's own group
            queues[domain] = _domain_items(inside, config)
    rows: list[dict] = []
    while queues and len(rows) < config.items:
        for domain in sorted(queues):
            row = next(queues[domain], None)
            if row is None:
                del queues[domain]
            elif len(rows) < config.items:
                rows.append(row)
    rows.sort(key=lambda row: (row["domain"], row["item"]))
    return pa.Table.from_pylist(rows, ITEMS)


def _domain_items(documents: list[dict], config: ItemsConfig) -> Iterator[dict]:
    for window in range(config.items_per_document):
        for document in documents:
            item = _item(document, window, documents, config)
            if item is not None:
                yield item


def _item(document: dict, window: int, documents: list[dict], config: ItemsConfig) -> dict | None:
    """One item, or None where the document has no place for this window or too few others give a piece of its length."""
    rng = np.random.default_rng(list(_digest(config.seed, f"window {window}", document["id"])))
    cut = _window(document["text"], window, config, rng)
    if cut is None:
        return None
    context, gap, truth = cut
    others = [other for other in documents if other["group"] != document["group"]]
    wrong: list[str] = []
    for i in rng.permutation(len(others))[:DISTRACTOR_DOCUMENTS]:
        piece = _piece(others[i]["text"], len(truth), rng)
        if piece is not None and piece != truth and piece not in wrong:
            wrong.append(piece)
        if len(wrong) == config.choices - 1:
            gold = int(rng.integers(config.choices))
            pieces = [*wrong[:gold], truth, *wrong[gold:]]
            return {
                "task": CONTINUATION,
                "item": f"{document['id'].hex()}-{window}",
                "document": document["id"],
                "group": document["group"],
                "domain": document["domain"],
                "context": context,
                "choices": [gap + piece for piece in pieces],
                "gold": gold,
            }
    return None


def _excerpt(text: str, key: bytes) -> str:
    """A book costs what a page costs: a stretch of it from anywhere."""
    spare = len(text) - EXCERPT_CHARACTERS
    start = int.from_bytes(key) % (spare + 1) if spare > 0 else 0
    return text[start : start + EXCERPT_CHARACTERS]


def _least_length(config: ItemsConfig) -> int:
    return config.context_characters + 2 * config.continuation_characters


def _window(text: str, window: int, config: ItemsConfig, rng: np.random.Generator) -> tuple[str, str, str] | None:
    """(context, white space, true piece): the document is cut in equal sections, one a window, and the window lies anywhere in its own."""
    sections = min(config.items_per_document, len(text) // _least_length(config))
    if window >= sections:
        return None
    start, end = len(text) * window // sections, len(text) * (window + 1) // sections
    room = end - start - _least_length(config)
    split = start + config.context_characters + int(rng.integers(room + 1))
    first = _WORD.search(text, split, end)  # the piece begins with the first word at or after this place
    if first is None:
        return None
    begin = first.start()
    stop = begin + config.continuation_characters
    while stop > begin and stop < len(text) and not text[stop].isspace():  # back to the end of the last whole word
        stop -= 1
    piece = text[begin:stop].rstrip()
    before = text[start:begin]
    context = before.rstrip()
    if len(piece) < config.continuation_characters // 2 or not context:
        return None
    context = context[-config.context_characters :]
    return context, before[len(before.rstrip()) :], piece


def _piece(text: str, length: int, rng: np.random.Generator) -> str | None:
    """A piece of exactly `length` characters that begins with a word and ends with one."""
    last = len(text) - length
    if last < 0:
        return None
    offset = int(rng.integers(last + 1))
    for start in islice(_from(text, offset, last), DISTRACTOR_PLACES):
        end = start + length
        if not text[end - 1].isspace() and (end == len(text) or text[end].isspace()):
            return text[start:end]
    return None


def _from(text: str, offset: int, last: int) -> Iterator[int]:
    """Starts of words from `offset` to `last`, then from the beginning."""
    for match in _WORD.finditer(text, offset):
        if match.start() > last:
            break
        yield match.start()
    for match in _WORD.finditer(text, 0, offset):
        if match.start() > last:
            return
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
