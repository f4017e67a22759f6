"""gate_ingest, gate_select, gate_mix: Great Expectations over small tables of statistics; a bound that does not hold stops the flow.

No stage takes a gate's artifact as input, so a changed bound re-runs the gates alone. Suites see statistics, never texts.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from contract.config import Fraction, Frozen
from contract.errors import GateFailed
from contract.ledger import Ledger
from filters.config import GatesConfig
from filters.select import PERPLEXITY, RULES
from store.artifact import Artifact
from tasks.parts import PartWriter
from tasks.scoring import same_documents, score_parts, summed
from tasks.stage import Output, stage

Row = dict[str, Any]
TOTAL = "all"
REASONS = {PERPLEXITY, *(rule.reason for rule in RULES)}
"""What select drops for; any other reason is dedup's."""


@dataclass(frozen=True)
class Bound:
    """What a column of a table of statistics must lie between, and the setting that says so (or the rule that it follows from)."""

    table: str
    column: str
    at_least: float | None
    at_most: float | None
    setting: str


class SelectGate(Frozen):
    gates: GatesConfig
    language_domains: tuple[str, ...]
    max_overlap_fraction: Fraction


def _select_slice(config: Any) -> SelectGate:
    rules = config.filters.select.rules()
    return SelectGate(
        gates=config.gates,
        language_domains=tuple(sorted(domain for domain, bounds in rules.items() if bounds.min_language_probability is not None)),
        max_overlap_fraction=config.filters.contamination.max_overlap_fraction,
    )


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
        Bound("totals", "quarantined_fraction", None, config.max_quarantined_fraction, "gates.max_quarantined_fraction"),
        Bound("domains", "empty_fraction", None, config.max_empty_fraction, "gates.max_empty_fraction"),
    ]
    return _judge({"totals": [total], "domains": rows}, bounds, out)


def _count_documents(spec: dict[str, Any], write: PartWriter) -> dict[str, int]:
    table = spec["documents"].table(spec["name"], ["domain", "text"])
    empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table["text"])), 0)
    counts = {f"documents/{row['values']}": row["counts"] for row in pc.value_counts(table["domain"]).to_pylist()}
    return counts | {f"empty/{row['values']}": row["counts"] for row in pc.value_counts(table["domain"].filter(empty)).to_pylist()}


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
    """Is enough left, does no rule eat everything, is what is kept for training clean, and does no group stand on two sides?"""
    families = {"language": (language, "target_probability"), "toxicity": (toxicity, "toxic_words_per_1000"), "rules": (rules, "words")}
    if contamination is not None:
        families["contamination"] = (contamination, "overlap_fraction")
    spec = {"documents": documents, "splits": splits, "selection": selection, "families": families}
    parts = score_parts(out, _kept_statistics, **spec)
    rows = [_domain_row(domain, parts, config) for domain in sorted({domain for part in parts for domain in part})]
    gates, most_overlap = config.gates, float(np.float32(config.max_overlap_fraction))  # as the signal's column holds it
    bounds = [
        Bound("totals", "train_documents", gates.min_train_documents, None, "gates.min_train_documents"),
        Bound("totals", "kept_fraction", gates.min_kept_fraction, None, "gates.min_kept_fraction"),
        Bound("totals", "largest_reason_fraction", None, gates.max_reason_fraction, "gates.max_reason_fraction"),
        Bound("totals", "groups_on_two_sides", None, 0, "a group stands on one side of the split"),
        Bound("domains", "mean_language_probability", gates.min_mean_language_probability, None, "gates.min_mean_language_probability"),
        Bound("domains", "mean_toxic_words_per_1000", None, gates.max_toxic_words_per_1000, "gates.max_toxic_words_per_1000"),
        Bound("domains", "highest_overlap_fraction", None, most_overlap, "filters.contamination.max_overlap_fraction"),
    ]
    return _judge({"totals": [_select_totals(selection, splits, rows)], "domains": rows}, bounds, out)


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


def _select_totals(selection: Artifact, splits: Artifact, rows: Sequence[Row]) -> Row:
    count = selection.ledger.documents
    assert count is not None
    ours = {reason: n for reason, n in count.dropped.items() if reason in REASONS}
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
    return _judge({"totals": [total], "domains": rows}, bounds, out)


def _judge(tables: Mapping[str, Sequence[Row]], bounds: Sequence[Bound], out: Output) -> Ledger:
    """Write the statistics and what Great Expectations says of them; raise GateFailed for what does not hold.

    validation.json is content: expectations, bounds and figures. What the library adds (times, ids) is attached.
    """
    verdicts: list[Row] = []
    for name, rows in tables.items():
        wanted = [bound for bound in bounds if bound.table == name and any(row.get(bound.column) is not None for row in rows)]
        verdicts += _validate(out, name, rows, wanted)
    failed = [_sentence(verdict) for verdict in verdicts if not verdict["holds"]]
    if failed:
        raise GateFailed(
            f"{out.attempt.stage} does not hold:\n" + "\n".join(failed) + "\n"
            "Look at the stage before it (`bessemer show`), and change the data, the rules or the bound; nothing was built on it."
        )
    out.json("statistics.json", tables)
    out.json("validation.json", verdicts)
    out.figures |= {"expectations": len(verdicts), "held": len(verdicts), **{name: list(rows) for name, rows in tables.items()}}
    return Ledger()


def warm_up() -> None:
    """Import Great Expectations, which takes seconds of a core: whoever has one to spare does it ahead of the first gate."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations  # noqa: F401


def _validate(out: Output, name: str, rows: Sequence[Row], bounds: Sequence[Bound]) -> list[Row]:
    """One verdict a bound, by a suite of Great Expectations over one table."""
    if not bounds:
        return []
    warm_up()
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # tells of temporary folders
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    frame = pd.DataFrame({bound.column: [row.get(bound.column) for row in rows] for bound in bounds}, dtype="float64")
    suite = gx.ExpectationSuite(name=f"{out.attempt.stage}-{name}")
    for bound in bounds:
        suite.add_expectation(ExpectColumnValuesToBeBetween(column=bound.column, min_value=bound.at_least, max_value=bound.at_most))
    asset = context.data_sources.add_pandas("statistics").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch(batch_parameters={"dataframe": frame})
    result = batch.validate(suite, result_format="COMPLETE")
    out.attach(f"great_expectations-{name}.json", orjson.dumps(result.to_json_dict(), option=orjson.OPT_INDENT_2))
    configured = [(outcome.expectation_config, outcome.success) for outcome in result.results]
    holds = {about.kwargs["column"]: (about.type, success) for about, success in configured if about is not None}
    return [
        {
            "expectation": holds[bound.column][0],
            "table": name,
            "column": bound.column,
            "at_least": bound.at_least,
            "at_most": bound.at_most,
            "setting": bound.setting,
            "holds": bool(holds[bound.column][1]),
            "figures": {str(row["domain"]): row.get(bound.column) for row in rows},
        }
        for bound in bounds
    ]


def _sentence(verdict: Row) -> str:
    low, high = verdict["at_least"], verdict["at_most"]
    broken = {
        domain: figure
        for domain, figure in verdict["figures"].items()
        if figure is not None and ((low is not None and figure < low) or (high is not None and figure > high))
    }
    found = ", ".join(f"{figure:,.10g} ({domain})" for domain, figure in broken.items())
    wanted = f"at least {low:,.10g}" if low is not None else f"at most {high:,.10g}"
    return f"  {verdict['expectation']} {verdict['column']}: found {found}, expected {wanted} ({verdict['setting']})"
