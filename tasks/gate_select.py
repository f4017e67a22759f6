"""gate_select: is enough text left, and is it clean? Its bounds are the `After select` ones of `gates` (filters/config.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from contract.config import Fraction, Frozen
from contract.ledger import Ledger
from engine.parts import PartWriter
from engine.stage import Output, stage
from filters.config import GatesConfig
from filters.decisions import PERPLEXITY, RULES
from filters.signals import signals_of
from store.artifact import Artifact
from tasks.gating import TOTAL, Bound, Row, judge
from tasks.scoring import same_documents, score_parts

REASONS = {PERPLEXITY, *(rule.reason for rule in RULES)}
"""What select drops for; any other reason is dedup's."""


class SelectGate(Frozen):
    gates: GatesConfig
    language_domains: tuple[str, ...]
    max_overlap_fraction: Fraction
    signals: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)
    """The user's own signals, which are reasons of select too."""


def _select_slice(config: Any) -> SelectGate:
    rules = config.filters.select.rules()
    return SelectGate(
        gates=config.gates,
        language_domains=tuple(sorted(domain for domain, bounds in rules.items() if bounds.min_language_probability is not None)),
        max_overlap_fraction=config.filters.contamination.max_overlap_fraction,
        signals=tuple(signals_of(config.filters.signals)),
    )


@stage(version=1, config=_select_slice)
def gate_select(
    documents: Artifact,
    splits: Artifact,
    selection: Artifact,
    rules: Artifact,
    language: Artifact,
    toxicity: Artifact,
    pii: Artifact,
    config: SelectGate,
    out: Output,
    perplexity: Artifact | None = None,
    contamination: Artifact | None = None,
) -> Ledger:
    """Is enough left, does no rule drop everything, is the text for training clean, and is each group on one side only?"""
    families = {"language": (language, "target_probability"), "toxicity": (toxicity, "toxic_words_per_1000"), "rules": (rules, "words")}
    if contamination is not None:
        families["contamination"] = (contamination, "overlap_fraction")
    spec = {"documents": documents, "splits": splits, "selection": selection, "families": families}
    parts = score_parts(out, _kept_statistics, **spec)
    rows = [_domain_row(domain, parts, config) for domain in sorted({domain for part in parts for domain in part})]
    totals = _select_totals(selection, splits, rows, {*REASONS, *config.signals})
    why = f"most are dropped for {totals['largest_reason']}"
    gates, most_overlap = config.gates, float(np.float32(config.max_overlap_fraction))  # as the signal's column holds it
    bounds = [
        Bound("totals", "train_documents", gates.min_train_documents, None, "gates.min_train_documents"),
        Bound("totals", "kept_fraction", gates.min_kept_fraction, None, "gates.min_kept_fraction", why),
        Bound("totals", "largest_reason_fraction", None, gates.max_reason_fraction, "gates.max_reason_fraction", why),
        Bound("totals", "groups_on_two_sides", None, 0, "a group stands on one side of the split"),
        Bound("domains", "mean_language_probability", gates.min_mean_language_probability, None, "gates.min_mean_language_probability"),
        Bound("domains", "mean_toxic_words_per_1000", None, gates.max_toxic_words_per_1000, "gates.max_toxic_words_per_1000"),
        Bound("domains", "highest_overlap_fraction", None, most_overlap, "filters.contamination.max_overlap_fraction"),
    ]
    return judge({"totals": [totals], "domains": rows}, bounds, out)


def _kept_statistics(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    """By domain: documents kept for training, and of each signal its sum, count and highest value over them."""
    name = spec["name"]
    documents = spec["documents"].table(name, ["id", "domain"])
    decisions = same_documents(documents, spec["selection"].table(name, ["id", "kept"]), name)
    splits = same_documents(documents, spec["splits"].table(name, ["id", "split"]), name)
    columns = {
        family: same_documents(documents, artifact.table(name, ["id", column]), name)[column]
        for family, (artifact, column) in spec["families"].items()
    }
    train = pc.and_(decisions["kept"], pc.equal(splits["split"], "train"))
    table = pa.table({"domain": documents["domain"], **columns})
    made: dict[str, Any] = {}
    for domain in sorted(set(documents["domain"].to_pylist())):
        rows = table.filter(pc.and_(train, pc.equal(table["domain"], domain)))
        made[domain] = {"train_documents": len(rows)} | {family: _sum_count_max(rows[family]) for family in columns}
    return made


def _sum_count_max(column: pa.ChunkedArray) -> list[Any]:
    values = pc.cast(column.drop_null(), pa.float64())
    return [pc.sum(values).as_py() or 0.0, len(values), pc.max(values).as_py()]


def _domain_row(domain: str, parts: Sequence[Mapping[str, Any]], config: SelectGate) -> Row:
    here = [part[domain] for part in parts if domain in part]

    def mean(family: str) -> float | None:
        count = sum(row[family][1] for row in here)
        return sum(row[family][0] for row in here) / count if count else None

    highest = [row["contamination"][2] for row in here if row.get("contamination", [0, 0, None])[2] is not None]
    return {
        "domain": domain,
        "train_documents": sum(row["train_documents"] for row in here),
        "mean_words": mean("rules"),
        "mean_language_probability": mean("language") if domain in config.language_domains else None,
        "mean_toxic_words_per_1000": mean("toxicity"),
        "highest_overlap_fraction": max(highest, default=None),
    }


def _select_totals(selection: Artifact, splits: Artifact, rows: Sequence[Row], reasons: set[str]) -> Row:
    count = selection.ledger.documents
    assert count is not None
    ours = {reason: n for reason, n in count.dropped.items() if reason in reasons}
    judged = count.out + sum(ours.values())
    largest = max(ours.items(), key=lambda item: (item[1], item[0]), default=("none", 0))
    return {
        "domain": TOTAL,
        "train_documents": sum(row["train_documents"] for row in rows),
        "kept_fraction": count.out / max(1, judged),
        "largest_reason": largest[0],
        "largest_reason_fraction": largest[1] / max(1, judged),
        "groups_on_two_sides": _groups_on_two_sides(splits),
    }


def _groups_on_two_sides(splits: Artifact) -> int:
    pairs: set[tuple[str, str]] = set()
    for name in splits.names():
        table = splits.table(name, ["group", "split"])
        pairs |= set(zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True))
    return len(pairs) - len({group for group, _ in pairs})
