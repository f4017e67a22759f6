"""dpo: SFT's model moved towards preferred answers without a reward model, tied to itself as reference (Rafailov et al. 2023)."""

from contract.config import Frozen
from contract.ledger import Ledger
from store.artifact import Artifact
from tasks.stage import Output, stage
from tasks.training import check_ranks, context_of, pair_figures, train, write_pairs
from training.config import DpoConfig, EngineName


class DirectTuning(Frozen):
    engine: EngineName
    zero_stage: int
    method: DpoConfig


@stage(
    version=1,
    config=lambda c: DirectTuning(engine=c.align.engine, zero_stage=c.align.zero_stage, method=c.align.dpo),
    exclusive=True,
)
def dpo(base: Artifact, pairs: Artifact, tokenizer: Artifact, config: DirectTuning, out: Output) -> Ledger:
    """model/, losses.jsonl, validation.json (loss, and accuracy of the implicit reward)."""
    check_ranks(config.method.batch_size, out.run.ranks, "align.dpo.batch_size")
    table, data = pairs.table("preferences.parquet"), out.scratch / "pairs"
    pair_figures(out, table, write_pairs(data, table, tokenizer, ["chosen", "rejected"], context_of(base)))
    train(
        out,
        "dpo",
        config.method,
        engine=config.engine,
        zero_stage=config.zero_stage,
        init=base.folder("model"),
        data=data,
        batch_size=config.method.batch_size,
        steps=config.method.max_steps,
        unit="steps",
    )
    return Ledger()
