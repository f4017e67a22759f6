"""score_perplexity: an n-gram model of the trusted text, and each document's perplexity under it (filters/perplexity.py)."""

from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from tasks.scoring import read_alive, same_documents, score_parts, summed, tagging

MODEL = "model.binary"


@stage(version=1, config=lambda c: c.filters.perplexity, counts="documents", rows="in")
def score_perplexity(documents: Artifact, duplicates: Artifact, splits: Artifact, config: PerplexityConfig, out: Output) -> Ledger:
    """One row a document: id, perplexity, tokens; null where dedup dropped it. model.binary is the KenLM model they come from.

    The model is trained on the trusted documents of the train split that dedup kept, in their order, up to max_train_bytes: as
    one part, sealed, so that a run that dies while scoring does not train again. Where no such document is there, a warning is
    given and every perplexity is null, which no rule drops.
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
    """The trusted text of the train split, a line a document, part after part."""
    for name in spec["documents"].names():
        ids = spec["documents"].table(name, ["id"])
        splits = same_documents(ids, spec["splits"].table(name, ["id", "split", "trusted"]), name)
        kept = same_documents(ids, spec["duplicates"].table(name, ["id", "kept"]), name)["kept"]
        wanted = pc.and_(pc.and_(splits["trusted"], pc.equal(splits["split"], "train")), kept)
        if pc.any(wanted).as_py():
            text = spec["documents"].table(name, ["text"])["text"].filter(wanted)
            yield from (line for line in sentences(text, spec["config"].max_train_bytes).to_pylist() if line)


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
