"""reward: a Bradley-Terry reward model, SFT's trunk under a scalar head, from pairs of a preferred and a rejected answer."""

import json

import pyarrow as pa

from contract.ledger import Ledger
from engine.stage import Output, stage
from evaluation.intervals import share_interval
from store.artifact import Artifact
from tasks.training_stages import FineTuning, fine_tune, fine_tuning


@stage(version=1, config=lambda c: fine_tuning(c.align, c.align.reward), exclusive=True)
def reward(
    base: Artifact, pairs: Artifact, tokenizer: Artifact, config: FineTuning, out: Output, calibration: Artifact | None = None
) -> Ledger:
    """model/ (with score.weight), losses.jsonl, validation.json, margins.json (of every test pair: what the accuracies are made of)."""
    kept = fine_tune(out, config, base, pairs, tokenizer, calibration)
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
