"""Finds which artifacts and models hold a document: in the tables themselves, and for models along the chain of inputs."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract.errors import InputError
from contract.schemas import ID
from sources.removals import Removal, is_url, text_digest
from store.artifact import Artifact
from store.catalogue import Key, artifacts
from store.storage import Storage
from tasks.align_data import GOLD, ORIGINS

LISTED = 5
PAIRS = "sft.parquet"
BLOCKS, PAIR_ROWS = "blocks", "pairs"
_SIDES = {"train": PAIR_ROWS, GOLD: "gold pairs"}
LEARNS_FROM = ("blocks", "base", "reward", "model", "pairs")
"""The roles through which a model learns texts. Its other inputs (a tokenizer, documents for its card) leave no text in its weights."""


@dataclass(frozen=True)
class Document:
    id: bytes
    source: str
    locator: str
    license: str | None
    text: str


@dataclass(frozen=True)
class Holder:
    artifact: Artifact
    how: str
    is_model: bool

    def line(self) -> str:
        return f"{'model' if self.is_model else 'artifact':<9} {self.artifact.stage} {self.artifact.fingerprint[:12]}  {self.how}"


@dataclass
class Found:
    """The documents that a request names, what holds them, and the rule to record."""

    rule: Removal
    documents: dict[bytes, Document]
    copies: int
    holders: list[Holder] = field(default_factory=list)
    stand_ins: dict[bytes, str] = field(default_factory=dict)
    """Near duplicates that were dropped in favour of one of the documents, and would come back in its place."""

    def lines(self) -> list[str]:
        """The listing that a person reads before agreeing."""
        lines = [f"document  {d.id.hex()}  {d.source}:{d.locator}  {d.license or 'no licence'}" for d in _first(self.documents.values())]
        lines += _more(len(self.documents), "documents")
        lines += [f"copies    {self.copies:,} with the same text under other ids go with them"] if self.copies else []
        lines += [holder.line() for holder in self.holders]
        stand_in = "was dropped as a duplicate of one and may take its place: remove it too if it must go"
        lines += [f"note      {name} {stand_in}" for name in _first(self.stand_ins.values())]
        lines += _more(len(self.stand_ins), "near duplicates")
        models = sum(holder.is_model for holder in self.holders)
        lines += [f"{len(self.documents):,} documents, in {len(self.holders) - models} artifacts and {models} models"]
        return lines


def look_up(storage: Storage, kind: str, value: str) -> Found:
    """Find the documents that a request names in the whole root, and all that hold them. Raises InputError if there are none."""
    stock = {(artifact.stage, artifact.fingerprint): artifact for artifact in artifacts(storage)}
    readers = [artifact for artifact in stock.values() if _documents(artifact)]
    named = {document.id: document for artifact in readers for document in _named(artifact, kind, value)}
    if not named:
        raise InputError(
            f"no document under {storage.uri} has the {kind} {value} ({len(readers)} artifacts of ingest and align_data were read)"
        )
    texts = {text_digest(document.text) for document in named.values()}
    every = kind == "license"  # a licence names documents, not texts: the same text under another one may stay
    copies = {} if every else {document.id: document for artifact in readers for document in _with_texts(artifact, named, texts)}
    everywhere = named | copies
    found = Found(_rule(kind, value, everywhere, texts), named, len(copies))
    _trace(stock, everywhere, found)
    return found


def _rule(kind: str, value: str, documents: dict[bytes, Document], texts: set[str]) -> Removal:
    """A licence is a policy: it holds for every source, and its texts are found by name."""
    if kind == "license":
        return Removal(kind="license", value=value)
    sources = tuple(sorted({document.source for document in documents.values()}))
    value = value.lower() if kind == "id" else value
    return Removal.model_validate({"kind": kind, "value": value, "sources": sources, "texts": tuple(sorted(texts))})


def _documents(artifact: Artifact) -> list[str]:
    """The tables of documents as they were read: of ingest, and of the records that alignment's pairs were made of."""
    return artifact.names() if artifact.stage == "ingest" else artifact.names(ORIGINS)


def _rows(artifact: Artifact, name: str, mask: pa.ChunkedArray) -> Iterator[Document]:
    table = artifact.table(name, ["id", "source", "locator", "license", "text"]).filter(mask)
    for row in table.to_pylist():
        yield Document(row["id"], row["source"], row["locator"], row["license"], row["text"])


def _named(reader: Artifact, kind: str, value: str) -> Iterator[Document]:
    for name in _documents(reader):
        if kind == "id":
            yield from _rows(reader, name, pc.equal(reader.table(name, ["id"])["id"], pa.scalar(_id(value), ID)))
        elif kind == "license":
            yield from _rows(reader, name, pc.fill_null(pc.equal(reader.table(name, ["license"])["license"], value), False))
        else:
            table = reader.table(name, ["locator", "extra"])
            named = [bool(extra) and value in extra and is_url(json.loads(extra), value) for extra in table["extra"].to_pylist()]
            yield from _rows(reader, name, pc.or_(pc.equal(table["locator"], value), pa.chunked_array([pa.array(named, pa.bool_())])))


def _id(value: str) -> bytes:
    try:
        data = bytes.fromhex(value)
    except ValueError:
        data = b""
    if len(data) != 16:
        raise InputError(f"--id {value}: an id is 32 hexadecimal digits, as `id` in documents and curated text has it")
    return data


def _with_texts(reader: Artifact, named: dict[bytes, Document], texts: set[str]) -> Iterator[Document]:
    """Documents that the request does not name, but that have one of the texts."""
    sizes = {len(document.text.encode("utf-8", "surrogatepass")) for document in named.values()}
    for name in _documents(reader):
        same_size = pc.is_in(pc.binary_length(reader.table(name, ["text"])["text"]), pa.array(sorted(sizes), pa.int64()))
        for document in _rows(reader, name, same_size):
            if document.id not in named and text_digest(document.text) in texts:
                yield document


class Reach(NamedTuple):
    """What an artifact passes on: whether it holds one of the texts, and whether a model that is trained on it learns one."""

    holds: bool
    teaches: bool


def _trace(stock: dict[Key, Artifact], documents: dict[bytes, Document], found: Found) -> None:
    """Walk from the sources down: an artifact comes after its inputs."""
    reaches: dict[Key, Reach] = {}

    def reach(key: Key) -> Reach:
        if key not in reaches:
            reaches[key] = Reach(False, False)
            if artifact := stock.get(key):
                inputs = {role: reach((given["stage"], given["fingerprint"])) for role, given in artifact.manifest["inputs"].items()}
                reaches[key] = _search(artifact, inputs, documents, found)
        return reaches[key]

    for key in sorted(stock):
        reach(key)


def _search(artifact: Artifact, inputs: dict[str, Reach], documents: dict[bytes, Document], found: Found) -> Reach:
    """Look for the documents in one artifact, and note it as a holder if it holds them or was made from them."""
    reached = any(given.holds for given in inputs.values())
    if any(name.endswith(".safetensors") for name in artifact.files):
        learnt = [role for role in LEARNS_FROM if role in inputs and inputs[role].teaches]
        if learnt:
            found.holders.append(Holder(artifact, f"trained on it, through its {' and '.join(learnt)}", is_model=True))
        return Reach(bool(learnt), bool(learnt))
    if not reached and not _documents(artifact) and PAIRS not in artifact.files:
        return Reach(False, False)
    uses = {what: count for what, count in _uses(artifact, documents, found).items() if count}
    how = ", ".join(f"{count:,} {what if count > 1 else what.removesuffix('s')}" for what, count in uses.items())
    if not how and reached and not _has_rows(artifact):
        how = "made from artifacts that hold it"
    if how:
        found.holders.append(Holder(artifact, how, is_model=False))
    return Reach(bool(how), BLOCKS in uses or PAIR_ROWS in uses)


def _has_rows(artifact: Artifact) -> bool:
    """Whether the artifact's tables list every document in it. If not, or if there is a file beside them, only its inputs can tell."""
    if any(record.content and not name.endswith((".parquet", ".json")) for name, record in artifact.files.items()):
        return False
    return any(_columns(artifact, name) & {"id", "documents", "document"} for name in artifact.files if name.endswith(".parquet"))


def _columns(artifact: Artifact, name: str) -> set[str]:
    local = artifact.storage.local(artifact.record(name).path)
    return set(pq.read_schema(local if local is not None else io.BytesIO(artifact.read(name))).names)


def _uses(artifact: Artifact, documents: dict[bytes, Document], found: Found) -> dict[str, int]:
    """How many rows of the artifact's tables hold the documents, by what they are."""
    ids, uses = pa.array(sorted(documents), ID), Counter[str]()
    for name in (name for name in sorted(artifact.files) if name.endswith(".parquet")):
        columns = _columns(artifact, name)
        if "documents" in columns:
            listed = artifact.table(name, ["documents"])["documents"].combine_chunks()
            rows = pc.list_parent_indices(listed).filter(pc.is_in(pc.list_flatten(listed), ids))
            uses[BLOCKS if name.startswith("part-") else "validation blocks"] += len(pc.unique(rows))
        elif {"document", "choices"} <= columns:
            uses["evaluation items"] += _count(artifact, name, "document", ids)
        elif {"id", "side"} <= columns:
            sides = artifact.table(name, ["id", "side"])
            uses.update(_SIDES.get(side, "held-out pairs") for side in sides.filter(pc.is_in(sides["id"], ids))["side"].to_pylist())
        elif {"id", "tokens", "num_tokens"} <= columns:
            uses["token lists"] += _count(artifact, name, "id", ids)
        elif {"id", "text"} <= columns:
            uses["texts"] += _count(artifact, name, "id", ids)
        elif {"id", "survivor"} <= columns:
            _stand_ins(artifact, name, ids, documents, found)
        elif {"prompt", "response"} <= columns and ORIGINS not in artifact.files:  # made before align_data kept them
            pairs = artifact.table(name, ["prompt", "response"]).to_pylist()
            uses[PAIR_ROWS] += sum(any(r["prompt"] in d.text and r["response"] in d.text for d in documents.values()) for r in pairs)
    return uses


def _count(artifact: Artifact, name: str, column: str, ids: pa.Array) -> int:
    return int(pc.sum(pc.is_in(artifact.table(name, [column])[column], ids)).as_py() or 0)


def _stand_ins(artifact: Artifact, name: str, ids: pa.Array, documents: dict[bytes, Document], found: Found) -> None:
    table = artifact.table(name, ["id", "survivor"])
    for value in table["id"].filter(pc.is_in(table["survivor"], ids)).to_pylist():
        if value not in documents:
            found.stand_ins[value] = value.hex()


def _first(values: object) -> list:
    return list(values)[:LISTED]  # type: ignore[call-overload]


def _more(count: int, what: str) -> list[str]:
    return [f"          … and {count - LISTED:,} {what} more"] if count > LISTED else []
