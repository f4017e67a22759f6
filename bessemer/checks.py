"""Counts the checks of the machinery that hold, from what a run's artifacts record: what a run shows whose model claims nothing."""

from collections.abc import Collection
from dataclasses import dataclass

from evaluation.claims import MAX_LOGIT_DIFFERENCE
from store.artifact import Artifact


@dataclass(frozen=True)
class Check:
    """So many checks of one kind; `what` was checked is said after their number."""

    what: str
    held: int
    made: int

    def __str__(self) -> str:
        return f"{self.held:,}{'' if self.held == self.made else f' of {self.made:,}'} {self.what}"


def checks(used: Collection[Artifact]) -> list[Check]:
    """What can be held against the artifacts that a run made or reused, gates among them. Kinds with nothing to check are left out."""
    gates = [artifact.figures for artifact in used if artifact.stage.startswith("gate_") and "expectations" in artifact.figures]
    kinds = [
        _ledgers(used),
        _inputs(used),
        Check(f"bounds of {len(gates)} gates", sum(gate["held"] for gate in gates), sum(gate["expectations"] for gate in gates)),
        _export(used),
    ]
    return [kind for kind in kinds if kind.made]


def _ledgers(used: Collection[Artifact]) -> Check:
    ledgers = [artifact.ledger for artifact in used]
    counts = [count for ledger in ledgers for count in (ledger.documents, ledger.tokens) if count is not None]
    return Check("balances of ledgers", sum(count.balance() == 0 for count in counts), len(counts))


def _inputs(used: Collection[Artifact]) -> Check:
    """Whether each stage read the bytes that this run holds under its input's fingerprint."""
    digests = {artifact.fingerprint: artifact.digest for artifact in used}
    read = [source for artifact in used for source in artifact.manifest["inputs"].values() if source["fingerprint"] in digests]
    return Check("digests of inputs", sum(digests[source["fingerprint"]] == source["digest"] for source in read), len(read))


def _export(used: Collection[Artifact]) -> Check:
    """Each prompt on which transformers wrote the same text as our model (else export publishes nothing), and once for the logits."""
    exports = [artifact.figures for artifact in used if "max_logit_difference" in artifact.figures]
    prompts = sum(figures["greedy_prompts"] for figures in exports)
    same = sum(figures["max_logit_difference"] <= MAX_LOGIT_DIFFERENCE for figures in exports)
    return Check(f"answers of the export (logits, and greedy text on {prompts} prompts)", same + prompts, len(exports) + prompts)
