"""score_rules: counts, shares and repetitions of each document (filters/rules.py)."""

from typing import Any

from contract.ledger import Ledger
from engine.parts import PartWriter
from engine.stage import Output, stage
from filters.config import RulesConfig
from filters.rules import score
from store.artifact import Artifact
from tasks.scoring import read_alive, score_parts, summed, tagging


@stage(version=1, config=lambda c: c.filters.rules, counts="documents", rows="in")
def score_rules(documents: Artifact, duplicates: Artifact, config: RulesConfig, out: Output) -> Ledger:
    """One row a document in the order of `documents`: id, then the columns of filters.rules.SCHEMA, null where dedup dropped it."""
    out.figures |= summed(score_parts(out, _score_part, documents=documents, duplicates=duplicates, config=config))
    return tagging(documents)


def _score_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    alive = read_alive(spec)
    signals = score(alive.text, spec["config"])
    alive.write(signals, write)
    return {"scored": len(signals)} | {name: sum(signals[name].to_pylist()) for name in ("chars", "words", "unwanted_phrases")}
