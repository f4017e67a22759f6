"""reward: a Bradley-Terry reward model, SFT's trunk under a scalar head, from pairs of a preferred and a rejected answer."""

import json

import pyarrow as pa

from contract.ledger import Ledger
from evaluation.intervals import share_interval
from store.artifact import Artifact
from tasks.stage import Output, stage
from tasks.training import FineTuning, check_ranks, context_of, fine_tuning, pair_figures, train, write_pairs


@stage(version=1, config=lambda c: fine_tuning(c.align, c.align.reward), exclusive=True)
def reward(base: Artifact, pairs: Artifact, tokenizer: Artifact, config: FineTuning, out: Output) -> Ledger:
    """model/ (with score.weight), losses.jsonl, validation.json, margins.json (of every test pair: what the accuracies are made of)."""
    check_ranks(config.method.batch_size, out.run.ranks, "align.reward.batch_size")
    table, data = pairs.table("preferences.parquet"), out.scratch / "pairs"
    kept = write_pairs(data, table, tokenizer, ["chosen", "rejected"], context_of(base))
    pair_figures(out, table, kept)
    train(
        out,
        "reward",
        config.method,
        engine=config.engine,
        zero_stage=config.zero_stage,
        init=base.folder("model"),
        data=data,
        batch_size=config.method.batch_size,
        steps=config.method.max_steps,
        unit="steps",
    )
    measured = json.loads((out.scratch / "result" / "margins.json").read_text())
    out.json("margins.json", measured)
    out.figures["accuracy"] = accuracies(kept.take(measured["rows"]), measured["margins"])
    return Ledger()


def accuracies(table: pa.Table, margins: list[float]) -> dict[str, dict]:
    """Share of test pairs in which the chosen wins, by kind of rejected answer, with 95 % intervals clustered by group; a tie is half."""
    hits = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    kinds, groups = table["kind"].to_pylist(), table["group"].to_pylist()
    found = {}
    for kind in [*sorted(set(kinds)), "all"]:
        rows = [i for i, other in enumerate(kinds) if kind in (other, "all")]
        if rows:
            found[kind] = share_interval([hits[i] for i in rows], [groups[i] for i in rows]).to_json()
    return found
