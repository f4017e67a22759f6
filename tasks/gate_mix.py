"""gate_mix: are there blocks, and is the mixture the one asked for? Its bounds are the `After mix` ones of `gates`."""

import pyarrow.compute as pc

from contract.ledger import Ledger
from engine.stage import Output, stage
from filters.config import GatesConfig
from store.artifact import Artifact
from tasks.gating import TOTAL, Bound, judge


@stage(version=1, config=lambda c: c.gates)
def gate_mix(blocks: Artifact, config: GatesConfig, out: Output) -> Ledger:
    """Are there blocks, each traceable to its documents, and is the mixture near the one asked for?"""
    figures = blocks.figures
    lengths = [pc.list_value_length(blocks.table(name, ["documents"])["documents"]) for name in blocks.names()]
    untraced = sum(length == 0 for column in lengths for length in column.to_pylist())
    total = {"domain": TOTAL, "blocks": sum(blocks.rows(name) for name in blocks.names()), "blocks_without_documents": untraced}
    rows = []
    for domain, row in sorted(figures["domains"].items()):
        asked, got = row["asked"] / max(1, figures["asked"]), row["got"] / max(1, figures["got"])
        rows.append({"domain": domain, "asked_share": asked, "share": got, "share_deviation": abs(got - asked), "epochs": row["epochs"]})
    bounds = [
        Bound("totals", "blocks", config.min_blocks, None, "gates.min_blocks"),
        Bound("totals", "blocks_without_documents", None, 0, "every block names its documents"),
        Bound("domains", "share_deviation", None, config.max_share_deviation, "gates.max_share_deviation"),
    ]
    return judge({"totals": [total], "domains": rows}, bounds, out)
