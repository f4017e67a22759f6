"""score_pii: where each document holds personal data that has a form (filters/pii.py)."""

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from contract.config import Frozen
from contract.ledger import Ledger
from engine.parts import PartWriter
from engine.stage import Output, stage
from filters.config import PiiConfig, PiiLabel
from filters.pii import score
from store.artifact import Artifact
from tasks.scoring import read_alive, score_parts, summed, tagging


class Looking(Frozen):
    """What is looked for; what is done with it is select's."""

    labels: tuple[PiiLabel, ...]


@stage(version=1, config=lambda c: Looking(labels=c.filters.pii.labels), counts="documents", rows="in")
def score_pii(documents: Artifact, duplicates: Artifact, config: Looking, out: Output) -> Ledger:
    """One row a document: id, spans, count, char_fraction; null where dedup dropped it."""
    out.figures |= summed(score_parts(out, _score_part, documents=documents, duplicates=duplicates, config=config))
    return tagging(documents)


def _score_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    alive = read_alive(spec)
    signals = score(alive.text, PiiConfig(labels=spec["config"].labels))
    alive.write(signals, write)
    labels = pc.struct_field(pc.list_flatten(signals["spans"]), "label").to_pylist()
    return {"scored": len(signals), "documents_with_pii": sum(n > 0 for n in signals["count"].to_pylist()), **Counter(labels)}
