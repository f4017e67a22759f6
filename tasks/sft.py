"""sft: the pretrained model learns to answer, with the prompt masked out of the loss."""

from contract.ledger import Ledger
from store.artifact import Artifact
from tasks.stage import Output, stage
from tasks.training import FineTuning, check_ranks, context_of, fine_tuning, pair_figures, train, write_pairs


@stage(version=1, config=lambda c: fine_tuning(c.align, c.align.sft), exclusive=True)
def sft(base: Artifact, pairs: Artifact, tokenizer: Artifact, config: FineTuning, out: Output) -> Ledger:
    """model/, losses.jsonl, validation.json (nats a response token on the validation pairs)."""
    check_ranks(config.method.batch_size, out.run.ranks, "align.sft.batch_size")
    table, data = pairs.table("sft.parquet"), out.scratch / "pairs"
    pair_figures(out, table, write_pairs(data, table, tokenizer, ["response"], context_of(base)))
    train(
        out,
        "sft",
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
