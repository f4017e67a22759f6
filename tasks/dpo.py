"""dpo: SFT's model moved towards preferred answers without a reward model, tied to itself as reference (Rafailov et al. 2023)."""

from contract.ledger import Ledger
from engine.stage import Output, stage
from store.artifact import Artifact
from tasks.training_stages import FineTuning, fine_tune
from training.config import DpoConfig


class DirectTuning(FineTuning):
    method: DpoConfig


@stage(
    version=1,
    config=lambda c: DirectTuning(engine=c.align.engine, zero_stage=c.align.zero_stage, method=c.align.dpo),
    exclusive=True,
)
def dpo(
    base: Artifact, pairs: Artifact, tokenizer: Artifact, config: DirectTuning, out: Output, calibration: Artifact | None = None
) -> Ledger:
    """model/, losses.jsonl, validation.json (loss, and accuracy of the implicit reward)."""
    fine_tune(out, "dpo", config, base, pairs, tokenizer, calibration)
    return Ledger()
