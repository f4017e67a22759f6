"""select: the one stage that drops. Signals and rule sets by domain in, one decision a document out (filters/decisions.py)."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from contract.config import Fraction, Frozen
from contract.errors import InputError, StageFailed
from contract.ledger import Count, Ledger, total
from engine.parts import PartWriter
from engine.stage import Output, stage
from filters.config import FiltersConfig, RuleSet, SignalBounds
from filters.decisions import RULES, Ranges, Thresholds, decide, own_rules, percentile_ranges
from filters.histograms import added, histograms
from filters.signals import signals_of
from store.artifact import Artifact
from tasks.score_signal import OWN
from tasks.scoring import same_documents, score_parts


class Selecting(Frozen):
    """What decides, in full: rule sets of all domains, and what signals' own settings say about dropping."""

    rules: dict[str, RuleSet]
    min_perplexity_group: int
    max_overlap_fraction: Fraction
    drop_pii: bool
    signals: dict[str, SignalBounds] = Field(default_factory=dict, exclude_if=lambda value: not value)
    """Of the user's own signals; left out where there are none, so that fingerprints stay those of before."""


def _slice(config: Any) -> Selecting:
    filters: FiltersConfig = config.filters
    return Selecting(
        rules=filters.select.rules(),
        min_perplexity_group=filters.select.min_perplexity_group,
        max_overlap_fraction=filters.contamination.max_overlap_fraction,
        drop_pii=filters.pii.action == "drop",
        signals={name: SignalBounds(bounds=own.bounds, domains=own.domains) for name, (_, own) in signals_of(filters.signals).items()},
    )


@stage(version=1, config=_slice, counts="documents", rows="in")
def select(
    documents: Artifact,
    duplicates: Artifact,
    splits: Artifact,
    rules: Artifact,
    language: Artifact,
    toxicity: Artifact,
    pii: Artifact,
    config: Selecting,
    out: Output,
    perplexity: Artifact | None = None,
    contamination: Artifact | None = None,
    **signals: Artifact,
) -> Ledger:
    """DECISIONS parts beside the parts of `documents`: duplicates keep dedup's reason and survivor, others the first rule they break.

    `signals` are the user's own. The percentiles of perplexity are taken over all parts first, from train documents that are neither
    duplicates nor trusted (about 30 bytes each in memory). figures: kept and dropped by domain, ranges of perplexity, histograms of
    the signals.
    Raises InputError when no train document is kept, with the commonest reason; StageFailed for other signals than configured.
    """
    if (given := {role.removeprefix(OWN) for role in signals}) != config.signals.keys():
        raise StageFailed(
            f"select is given the signals {sorted(given)}, and filters.signals has {sorted(config.signals)}; correct the flow that calls it"
        )
    families = {"rules": rules, "language": language, "toxicity": toxicity, "pii": pii}
    families |= {name: given for name, given in (("perplexity", perplexity), ("contamination", contamination)) if given is not None}
    families |= {role.removeprefix(OWN): artifact for role, artifact in signals.items()}
    spec = {"documents": documents, "duplicates": duplicates, "splits": splits, "families": families}
    ranges = _ranges(spec, config) if perplexity is not None else {}
    max_pii = 0.0 if config.drop_pii else float("inf")
    by_domain = {name: own.by_domain() for name, own in config.signals.items()}
    thresholds = Thresholds(config.rules, config.max_overlap_fraction, max_pii, ranges, by_domain)
    results = score_parts(out, _select_part, thresholds=thresholds, **spec)
    tally: Counter[tuple[str, str, str]] = Counter()
    for result in results:
        tally.update({tuple(key): count for key, count in result["tally"]})
    _refuse_nothing(tally, config)
    out.figures |= {
        "domains": _by_domain(tally),
        "splits": _kept_by_split(tally),
        "perplexity_ranges": {f"{domain}/{label or '*'}": list(limits) for (label, domain), limits in sorted(ranges.items())},
        "histograms": added(result["histograms"] for result in results),
    }
    return Ledger(documents=total(Count.from_json(result["count"]) for result in results))


def _ranges(spec: dict[str, Any], config: Selecting) -> Ranges:
    """Percentiles over the rows of all parts that count."""
    tables = []
    for name in spec["documents"].names():
        domain, splits = spec["documents"].table(name, ["domain"])["domain"], spec["splits"].table(name, ["split", "trusted"])
        label = spec["families"]["language"].table(name, ["label"])["label"]
        perplexity = spec["families"]["perplexity"].table(name, ["perplexity"])["perplexity"]  # null where dedup dropped it
        rows = pa.table({"domain": domain, "label": label, "perplexity": perplexity})
        tables.append(rows.filter(pc.and_(pc.equal(splits["split"], "train"), pc.invert(splits["trusted"]))))
    return percentile_ranges(pa.concat_tables(tables), config.rules, config.min_perplexity_group)


def _select_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    name, thresholds = spec["name"], spec["thresholds"]
    documents = spec["documents"].table(name, ["id", "domain"])
    duplicates = same_documents(documents, spec["duplicates"].table(name), name)
    splits = same_documents(documents, spec["splits"].table(name, ["id", "split", "trusted"]), name)
    signals = {
        family: same_documents(documents, artifact.table(name, _columns(family, thresholds)), name)
        for family, artifact in spec["families"].items()
    }
    decisions = decide(duplicates, documents["domain"], splits, signals, thresholds)
    write.table(name, decisions)
    reasons = [reason or "" for reason in decisions["reason"].to_pylist()]
    tally = Counter(zip(documents["domain"].to_pylist(), splits["split"].to_pylist(), reasons, strict=True))
    dropped = Counter(reason for reason in reasons if reason)
    kept = int(np.count_nonzero(decisions["kept"].to_numpy()))
    count = Count(came_in=len(decisions), out=kept, dropped=dict(sorted(dropped.items())))
    return {"count": count.to_json(), "tally": [[list(key), n] for key, n in sorted(tally.items())], "histograms": histograms(signals)}


def _columns(family: str, thresholds: Thresholds) -> list[str] | None:
    """Spans, and what a user's signal has besides its bounds, are not needed to decide."""
    if family not in ("pii", "contamination", *thresholds.signals):
        return None
    return ["id", *sorted({rule.column for rule in (*RULES, *own_rules(thresholds.signals)) if rule.family == family})]


def _by_domain(tally: Mapping[tuple[str, str, str], int]) -> dict[str, dict[str, Any]]:
    domains: dict[str, dict[str, Any]] = {}
    for (domain, _, reason), count in sorted(tally.items()):
        row = domains.setdefault(domain, {"in": 0, "kept": 0, "dropped": {}})
        row["in"] += count
        if reason:
            row["dropped"][reason] = row["dropped"].get(reason, 0) + count
        else:
            row["kept"] += count
    return domains


def _kept_by_split(tally: Mapping[tuple[str, str, str], int]) -> dict[str, int]:
    return {
        side: sum(n for (_, split, reason), n in tally.items() if split == side and not reason) for side in ("train", "validation", "test")
    }


def _refuse_nothing(tally: Mapping[tuple[str, str, str], int], config: Selecting) -> None:
    """An empty train part is the user's to repair: say why it is empty."""
    if _kept_by_split(tally)["train"]:
        return
    reasons: Counter[str] = Counter()
    for (_, split, reason), count in tally.items():
        if split == "train":
            reasons[reason] += count
    if not reasons:
        raise InputError("select has no train document: none came in. Give it more text, or smaller shares in `split`.")
    reason, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    fields = sorted({rule.field for rule in RULES if rule.reason == reason and rule.field})
    where = f"filters.select.default.{fields[0]} (and by domain in filters.select.domains)" if fields else "its settings"
    where = "its bounds in filters.signals" if reason in config.signals else where
    raise InputError(
        f"select keeps none of the {reasons.total():,} train documents; {count:,} of them were dropped for '{reason}'. "
        f"Look at the text, or at {where}."
    )
