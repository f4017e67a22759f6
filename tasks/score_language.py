"""score_language: the language of each document by fastText (filters/language.py)."""

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from contract.ledger import Ledger
from engine.installed_tools import language_model
from engine.parts import PartWriter
from engine.stage import Output, stage
from filters.config import LanguageConfig
from filters.language import load, score
from store.artifact import Artifact
from store.digests import digest_of_file
from store.storage import Storage
from tasks.scoring import read_alive, score_parts, summed, tagging


def _model_digest(config: LanguageConfig, storage: Storage) -> dict[str, str]:
    return {"lid.176.ftz": digest_of_file(language_model())}


@stage(version=1, config=lambda c: c.filters.language, counts="documents", rows="in", external=_model_digest)
def score_language(documents: Artifact, duplicates: Artifact, config: LanguageConfig, out: Output) -> Ledger:
    """One row a document: id, label, probability, target_probability; null where dedup dropped it. fastText reads without threads."""
    spec = {"documents": documents, "duplicates": duplicates, "config": config, "model": language_model()}
    labels = Counter(summed(score_parts(out, _score_part, **spec)))
    out.figures |= {"target": config.target, "scored": labels.total(), "labels": dict(labels.most_common(20))}
    return tagging(documents)


def _score_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    alive = read_alive(spec)
    signals = score(alive.text, _model(spec["model"]), spec["config"])
    alive.write(signals, write)
    return dict(sorted(Counter(signals["label"].to_pylist()).items()))


@lru_cache(maxsize=1)
def _model(path: Path) -> Any:
    return load(path)
