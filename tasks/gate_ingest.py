"""gate_ingest: is there text, and could it be read? Its bounds are the `After ingest` ones of `gates` (filters/config.py)."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from contract.ledger import Ledger
from engine.parts import PartWriter
from engine.stage import Output, stage
from filters.config import GatesConfig
from store.artifact import Artifact
from tasks.gating import TOTAL, Bound, judge
from tasks.scoring import score_parts, summed


@stage(version=1, config=lambda c: c.gates)
def gate_ingest(documents: Artifact, config: GatesConfig, out: Output) -> Ledger:
    """Is there text, could it be read, and is it more than white space? statistics.json, validation.json."""
    counts = summed(score_parts(out, _count_documents, documents=documents))
    rows = [
        {"domain": key.split("/")[1], "documents": count, "empty_fraction": counts.get(f"empty/{key.split('/')[1]}", 0) / count}
        for key, count in counts.items()
        if key.startswith("documents/")
    ]
    read = documents.ledger.documents
    assert read is not None
    total = {"domain": TOTAL, "documents": read.out, "quarantined_fraction": read.quarantined / max(1, read.out + read.quarantined)}
    bounds = [
        Bound("totals", "documents", config.min_documents, None, "gates.min_documents"),
        Bound(
            "totals", "quarantined_fraction", None, config.max_quarantined_fraction, "gates.max_quarantined_fraction", most_often(documents)
        ),
        Bound("domains", "empty_fraction", None, config.max_empty_fraction, "gates.max_empty_fraction"),
    ]
    return judge({"totals": [total], "domains": rows}, bounds, out)


def most_often(documents: Artifact) -> str:
    """The commonest reason of the quarantine, and the file that it names most; reasons that differ in numbers alone are one."""
    if "quarantine.parquet" not in documents.files or not documents.rows("quarantine.parquet"):
        return ""
    table = documents.table("quarantine.parquet", ["uri", "reason"])
    kinds = pc.replace_substring_regex(table["reason"], r"\d[\d,.]*", "N")
    kind, count = _commonest(kinds)
    rows = table.filter(pc.equal(kinds, kind))
    file, there = _commonest(rows["uri"])
    return f"most often ({count:,} of {len(table):,}) {rows['reason'][0]}; most of these ({there:,}) in {file}"


def _commonest(column: pa.ChunkedArray) -> tuple[str, int]:
    return min(((row["values"], row["counts"]) for row in pc.value_counts(column).to_pylist()), key=lambda row: (-row[1], row[0]))


def _count_documents(spec: dict[str, Any], write: PartWriter) -> dict[str, int]:
    table = spec["documents"].table(spec["name"], ["domain", "text"])
    empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table["text"])), 0)
    counts = {f"documents/{row['values']}": row["counts"] for row in pc.value_counts(table["domain"]).to_pylist()}
    return counts | {f"empty/{row['values']}": row["counts"] for row in pc.value_counts(table["domain"].filter(empty)).to_pylist()}
