"""score_perplexity: an n-gram model of the trusted text, and each document's perplexity under it (filters/perplexity.py)."""

from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.ledger import Ledger
from engine.installed_tools import tool
from engine.parts import Part, PartWriter, map_parts
from engine.scratch import Scratch
from engine.stage import Output, stage
from filters.config import PerplexityConfig
from filters.perplexity import SCHEMA, load, score, sentences, train
from store.artifact import Artifact
from tasks.curated import utf8_bytes
from tasks.scoring import read_alive, same_documents, score_parts, summed, tagging
from tokens.order import id_words, keys, ranks

MODEL = "model.binary"
LEAST_DOCUMENTS = 16
"""A document gives at most this part of the model's text where there is more than enough: no book is the whole model."""
SEED = 1


@stage(version=2, config=lambda c: c.filters.perplexity, counts="documents", rows="in")
def score_perplexity(documents: Artifact, duplicates: Artifact, splits: Artifact, config: PerplexityConfig, out: Output) -> Ledger:
    """One row a document: id, perplexity, tokens; null where dedup dropped it. model.binary is the KenLM model they come from.

    The model is trained on the trusted documents of the train split that dedup kept: all of them, or a seeded sample over all that
    holds max_train_bytes, where a long document is cut. It is one part, sealed, so that a run that dies while scoring does not train
    again. Where no such document is there, a warning is given and every perplexity is null, which no rule drops.
    """
    spec = {"documents": documents, "duplicates": duplicates, "splits": splits, "config": config}
    trained = map_parts(out, _train, [Part("model", spec)])[0]
    if not trained["documents"]:
        out.warn("no train document is trusted (split.trusted_sources, split.trusted_domains): the perplexity rule is left out")
    scored = summed(score_parts(out, _score_part, model=out.reader if trained["documents"] else None, **spec))
    out.figures |= {"order": config.order, "trained_on": trained, **scored}
    return tagging(documents)


def _train(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    lines = _trusted(spec)
    first = next(lines, None)
    if first is None:
        return {"documents": 0, "bytes": 0}

    def all_lines() -> Iterator[str]:
        yield first
        yield from lines

    with closing(Scratch("kenlm")) as scratch:
        model, count, size = train(all_lines(), tool("lmplz"), tool("build_binary"), scratch.path, spec["config"])
        write.bytes(MODEL, model.read_bytes())
    return {"documents": count, "bytes": size}


def _trusted(spec: dict[str, Any]) -> Iterator[str]:
    """The trusted text of the train split, or a sample of it, a line a document, part after part."""
    names = spec["documents"].names()
    limits = _limits([_sizes(spec, name) for name in names], spec["config"].max_train_bytes)
    for name, most in zip(names, limits, strict=True):
        if most.any():
            text = spec["documents"].table(name, ["text"])["text"].filter(pa.array(most > 0))
            for one, limit in zip(text, most[most > 0].tolist(), strict=True):
                head = one.as_py().encode()[:limit].decode("utf-8", "ignore")
                (line,) = sentences(pa.array([head], pa.large_string()), limit).to_pylist()
                if line:
                    yield line


def _sizes(spec: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of a part: the words of the ids, and the bytes of each trusted train document; 0 for the others."""
    table = spec["documents"].table(name, ["id", "text"])
    splits = same_documents(table, spec["splits"].table(name, ["id", "split", "trusted"]), name)
    kept = same_documents(table, spec["duplicates"].table(name, ["id", "kept"]), name)["kept"]
    wanted = pc.and_(pc.and_(splits["trusted"], pc.equal(splits["split"], "train")), kept)
    return id_words(table["id"]), np.where(wanted.to_numpy(), utf8_bytes(table["text"]), 0)


def _limits(parts: list[tuple[np.ndarray, np.ndarray]], budget: int) -> list[np.ndarray]:
    """How many bytes of each document are read, by part: all of it where all fit. Otherwise documents in a seeded order, each cut
    to a sixteenth of the budget or, where there are few, to what fills it. Tokens take a third more than the text."""
    words, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    room = max(1, budget * 3 // 4)
    if sizes.sum() > room:
        sizes = np.minimum(sizes, max(1, room // LEAST_DOCUMENTS, _level(sizes[sizes > 0], room)))
        order = ranks(keys(words, SEED, "trusted"), words)
        before = np.cumsum(sizes[order]) - sizes[order]
        sizes[order] = np.clip(room - before, 0, sizes[order])
    return np.split(sizes, np.cumsum([len(part) for _, part in parts])[:-1])


def _level(sizes: np.ndarray, room: int) -> int:
    """The cut at which all documents together fill the room."""
    ascending = np.sort(sizes)
    filled = np.cumsum(ascending) + ascending * np.arange(len(ascending) - 1, -1, -1)  # if all were cut to this one
    at = int(np.searchsorted(filled, room))
    below = int(ascending[:at].sum())
    return (room - below) // max(1, len(ascending) - at)


def _score_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    alive = read_alive(spec)
    if spec["model"] is None:
        signals = pa.table([pa.nulls(len(alive.text), field.type) for field in SCHEMA], SCHEMA)
    else:
        signals = score(alive.text, _model(spec["model"].path(MODEL)), spec["config"])
    alive.write(signals, write)
    return {"scored": len(signals) - signals["perplexity"].null_count, "tokens": sum(filter(None, signals["tokens"].to_pylist()))}


@lru_cache(maxsize=1)
def _model(path: Path) -> Any:
    return load(path)
