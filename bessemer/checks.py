"""Counts the checks of the machinery that hold, from what a run's artifacts record: what a run shows whose model claims nothing."""

from collections.abc import Collection
from dataclasses import dataclass

from evaluation.claims import MAX_LOGIT_DIFFERENCE
from store.artifact import Artifact


@dataclass(frozen=True)
class Check:
    """So many checks of one kind: of one thing `what`, which is `of` something."""

    what: str
    of: str
    held: int
    made: int

    def __str__(self) -> str:
        return f"{self.held:,}{'' if self.held == self.made else f' of {self.made:,}'} {self.what}{plural(self.made)} {self.of}"


def checks(used: Collection[Artifact]) -> list[Check]:
    """What can be held against the artifacts that a run made or reused, gates among them. Kinds with nothing to check are left out."""
    gates = [artifact.figures for artifact in used if artifact.stage.startswith("gate_") and "expectations" in artifact.figures]
    held, bounds = (sum(gate[name] for gate in gates) for name in ("held", "expectations"))
    gated = Check("bound", f"of {len(gates)} gate{plural(len(gates))}", held, bounds)
    kinds = [_ledgers(used), _inputs(used), gated, _export(used)]
    return [kind for kind in kinds if kind.made]


def _ledgers(used: Collection[Artifact]) -> Check:
    ledgers = [artifact.ledger for artifact in used]
    counts = [count for ledger in ledgers for count in (ledger.documents, ledger.tokens) if count is not None]
    return Check("balance", "of ledgers", sum(count.balance() == 0 for count in counts), len(counts))


def _inputs(used: Collection[Artifact]) -> Check:
    """Whether each stage read the bytes that this run holds under its input's fingerprint."""
    digests = {artifact.fingerprint: artifact.digest for artifact in used}
    read = [source for artifact in used for source in artifact.manifest["inputs"].values() if source["fingerprint"] in digests]
    same = sum(digests[source["fingerprint"]] == source["digest"] for source in read)
    return Check("digest", "of inputs", same, len(read))


def _export(used: Collection[Artifact]) -> Check:
    """Each prompt on which transformers wrote the same text as our model (else export publishes nothing), and once for the logits."""
    exports = [artifact.figures for artifact in used if "max_logit_difference" in artifact.figures]
    prompts = sum(figures["greedy_prompts"] for figures in exports)
    same = sum(figures["max_logit_difference"] <= MAX_LOGIT_DIFFERENCE for figures in exports)
    of = f"of the export (logits, and greedy text on {prompts} prompt{plural(prompts)})"
    return Check("answer", of, same + prompts, len(exports) + prompts)


def plural(number: int) -> str:
    return "" if number == 1 else "s"
