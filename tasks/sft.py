"""sft: the pretrained model learns to answer, with the prompt masked out of the loss."""

from contract.ledger import Ledger
from engine.stage import Output, stage
from store.artifact import Artifact
from tasks.training_stages import FineTuning, fine_tune, fine_tuning


@stage(version=1, config=lambda c: fine_tuning(c.align, c.align.sft), exclusive=True)
def sft(
    base: Artifact, pairs: Artifact, tokenizer: Artifact, config: FineTuning, out: Output, calibration: Artifact | None = None
) -> Ledger:
    """model/, losses.jsonl, validation.json (nats a response token on the validation pairs)."""
    fine_tune(out, config, base, pairs, tokenizer, calibration)
    return Ledger()
