"""score_toxicity: words of a lexicon, and a classifier's probability where one is set (filters/toxicity.py)."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.ledger import Ledger
from engine.parts import PartWriter
from engine.scratch import Scratch
from engine.stage import Output, stage
from filters.config import ToxicityConfig
from filters.language import load
from filters.toxicity import lexicon, score, word_list
from store.artifact import Artifact
from store.digests import digest_of_bytes, digest_of_file
from store.root import open_file
from store.storage import Storage
from tasks.scoring import read_alive, score_parts, summed, tagging


def _digests(config: ToxicityConfig, storage: Storage) -> dict[str, str]:
    digests = {"lexicon": digest_of_bytes(word_list())}
    if config.model is not None:
        digests["model"] = digest_of_file(_local(config.model, getattr(storage, "endpoint_url", None)))
    return digests


@stage(version=1, config=lambda c: c.filters.toxicity, counts="documents", rows="in", external=_digests)
def score_toxicity(documents: Artifact, duplicates: Artifact, config: ToxicityConfig, out: Output) -> Ledger:
    """One row a document: id, toxic_words, words, toxic_words_per_1000, probability (null without a model); null where dedup dropped it."""
    model = None if config.model is None else _local(config.model, getattr(out.attempt.storage, "endpoint_url", None))
    results = score_parts(out, _score_part, documents=documents, duplicates=duplicates, config=config, model=model)
    out.figures |= {
        "lexicon": "better-profanity 0.7.0 (MIT)",
        "entries": len(lexicon(config.exempt)),
        "classifier": "none" if config.model is None else config.model.rsplit("/", 1)[-1],
        **summed(results),
    }
    return tagging(documents)


def _score_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    alive = read_alive(spec)
    signals = score(alive.text, None if spec["model"] is None else _model(spec["model"]), spec["config"])
    alive.write(signals, write)
    counts = signals["toxic_words"].to_pylist()
    return {"scored": len(signals), "with_toxic_words": sum(count > 0 for count in counts), "toxic_words": sum(counts)}


@lru_cache(maxsize=4)
def _local(uri: str, endpoint_url: str | None) -> Path:
    """The classifier as a local file; from S3 it is fetched once a process, by the endpoint of the store."""
    try:
        storage, name = open_file(uri, endpoint_url)
        if (local := storage.local(name)) is not None:
            if not Path(local).is_file():
                raise FileNotFoundError(local)
            return Path(local)
        path = Scratch("toxicity").path / "model"  # held as long as this process lives
        storage.fetch(name, path)
        return path
    except (FileNotFoundError, ValueError) as error:
        raise InputError(_absent(uri)) from error


def _absent(uri: str) -> str:
    return f"filters.toxicity.model is {uri}, where no file is; give a fastText .bin or .ftz, or leave it out"


@lru_cache(maxsize=1)
def _model(path: Path) -> Any:
    try:
        return load(path)
    except ValueError as error:
        raise InputError(f"filters.toxicity.model {path} is no fastText model: {error}") from error
