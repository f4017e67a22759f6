"""dpo: SFT's model moved towards preferred answers without a reward model, tied to itself as reference (Rafailov et al. 2023).

The stages of other methods that do the same with another loss are this one too, under their names.
"""

from dataclasses import replace

from contract.ledger import Ledger
from engine.stage import Output, Stage, stage
from store.artifact import Artifact
from tasks.training_stages import FineTuning, fine_tune, fine_tuning
from training.config import METHODS


@stage(version=METHODS["dpo"].version, config=lambda c: fine_tuning(c.align, c.align.dpo), exclusive=True)
def dpo(
    base: Artifact, pairs: Artifact, tokenizer: Artifact, config: FineTuning, out: Output, calibration: Artifact | None = None
) -> Ledger:
    """model/, losses.jsonl, validation.json (loss, and accuracy of the implicit reward)."""
    fine_tune(out, config, base, pairs, tokenizer, calibration)
    return Ledger()


def direct(name: str) -> Stage:
    """The stage of a method whose row in METHODS says `direct`."""
    return replace(dpo, name=name, version=METHODS[name].version, config=lambda c: fine_tuning(c.align, getattr(c.align, name)))
