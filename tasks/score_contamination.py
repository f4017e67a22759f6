"""score_contamination: what each document shares with the items that will be scored (filters/contamination.py)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from contract.config import Frozen
from contract.ledger import Ledger
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from filters.contamination import item_texts, ngrams, occurrences, score
from store.artifact import Artifact
from tasks.scoring import read_alive, same_documents, score_parts, summed, tagging


class Overlap(Frozen):
    """How overlap is measured; what is dropped for it is select's."""

    ngram_words: int
    boilerplate_documents: int


def _slice(config: Any) -> Overlap:
    wanted = config.filters.contamination
    return Overlap(ngram_words=wanted.ngram_words, boilerplate_documents=wanted.boilerplate_documents)


@stage(version=1, config=_slice, counts="documents", rows="in")
def score_contamination(
    documents: Artifact, duplicates: Artifact, splits: Artifact, items: Artifact, config: Overlap, out: Output
) -> Ledger:
    """One row a document: id, spans, overlap_words, overlap_fraction; null where dedup dropped it and on the test side.

    Test documents are left alone: items are made from them, and nothing is trained on them. Two passes: how many documents
    hold each run of an item (more than `boilerplate_documents`: cut, not counted), then the spans.
    """
    keys = ngrams(item_texts(items.table("items.parquet", ["context", "choices"])), config.ngram_words)
    spec = {"documents": documents, "duplicates": duplicates, "splits": splits, "keys": keys, "n": config.ngram_words}
    parts = [Part(f"occurrences-{name[5:-8]}", {**spec, "name": name}) for name in documents.names()]
    map_parts(out, _count_part, parts)
    documents_with = np.zeros(len(keys), np.int64)
    for name in out.reader.names("occurrences-"):
        table = out.reader.table(name)
        documents_with[table["run"].to_numpy()] += table["documents"].to_numpy()
    boilerplate = keys[documents_with > config.boilerplate_documents]
    scored = summed(score_parts(out, _score_part, boilerplate=boilerplate, **spec))
    out.figures |= {
        "items": items.rows("items.parquet"),
        "runs_of_items": len(keys),
        "runs_found": int((documents_with > 0).sum()),
        "runs_of_boilerplate": len(boilerplate),
        **scored,
    }
    return tagging(documents)


def _test_side(spec: dict[str, Any]) -> Callable[[str], np.ndarray]:
    def spared(name: str) -> np.ndarray:
        ids = spec["documents"].table(name, ["id"])
        splits = same_documents(ids, spec["splits"].table(name, ["id", "split"]), name)
        return np.array([side == "test" for side in splits["split"].to_pylist()], bool)

    return spared


def _count_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    counts = occurrences(read_alive(spec, _test_side(spec)).text, spec["keys"], spec["n"])
    runs = np.flatnonzero(counts)
    write.table(f"occurrences-{spec['name'][5:]}", pa.table({"run": runs, "documents": counts[runs]}), content=False)
    return {}


def _score_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    alive = read_alive(spec, _test_side(spec))
    signals = score(alive.text, spec["keys"], spec["boilerplate"], spec["n"])
    alive.write(signals, write)
    lengths = [len(spans) for spans in signals["spans"].to_pylist()]
    return {
        "scored": len(signals),
        "documents_with_overlap": sum(length > 0 for length in lengths),
        "spans": sum(lengths),
        "overlap_words": sum(signals["overlap_words"].to_pylist()),
    }
