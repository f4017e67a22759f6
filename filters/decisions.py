"""From signals to decisions: which documents of a part are kept, and for each of the others the one reason why it is dropped.

The first rule of RULES that a document breaks is its reason; duplicates keep dedup's. A signal that is null breaks no rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.schemas import DECISIONS
from filters.config import Bounds, RuleSet

Ranges = dict[tuple[str, str], tuple[float, float]]
"""Lowest and highest perplexity kept, by (language, domain); by ("", domain) for languages with few documents."""


@dataclass(frozen=True)
class Rule:
    """`column` of `family` must not be below (bound "min") or above ("max") the number in RuleSet's `field`."""

    reason: str
    family: str
    column: str
    bound: str
    field: str


def _rule(reason: str, family: str, field: str, column: str | None = None) -> Rule:
    bound, _, name = field.partition("_")
    return Rule(reason, family, column or name, bound, field)


RULES = (
    # First the reasons that no other reason may hide; then texts for which later signals mean nothing (a dozen words, line noise);
    # then the language; then the style.
    Rule("contamination", "contamination", "overlap_fraction", "max", ""),
    Rule("pii", "pii", "count", "max", ""),
    _rule("toxicity", "toxicity", "max_toxic_words_per_1000"),
    _rule("toxicity", "toxicity", "max_toxic_probability", "probability"),
    _rule("words", "rules", "min_words"),
    _rule("punctuation", "rules", "max_punctuation_fraction"),
    _rule("language", "language", "min_language_probability", "target_probability"),
    _rule("unwanted_phrases", "rules", "max_unwanted_phrases"),
    _rule("word_length", "rules", "min_mean_word_chars", "mean_word_chars"),
    _rule("word_length", "rules", "max_mean_word_chars", "mean_word_chars"),
    _rule("symbols", "rules", "max_symbol_word_ratio"),
    _rule("alpha_words", "rules", "min_alpha_word_fraction"),
    _rule("stop_words", "rules", "min_stop_words"),
    _rule("bullet_lines", "rules", "max_bullet_line_fraction"),
    _rule("ellipsis_lines", "rules", "max_ellipsis_line_fraction"),
    _rule("duplicate_lines", "rules", "max_duplicate_line_fraction"),
    _rule("duplicate_lines", "rules", "max_duplicate_line_char_fraction"),
    _rule("duplicate_paragraphs", "rules", "max_duplicate_paragraph_fraction"),
    _rule("duplicate_paragraphs", "rules", "max_duplicate_paragraph_char_fraction"),
    *(_rule("duplicate_ngrams", "rules", f"max_top_{n}gram_char_fraction") for n in (2, 3, 4)),
    *(_rule("duplicate_ngrams", "rules", f"max_duplicate_{n}gram_char_fraction") for n in range(5, 11)),
)


def own_rules(signals: Mapping[str, Mapping[str, Bounds]]) -> list[Rule]:
    """A rule for each bound of the user's signals (name -> domain -> bounds) in any domain. The reason is the signal's name."""
    fields = {name: dict.fromkeys(field for bounds in domains.values() for field in bounds) for name, domains in signals.items()}
    return [_rule(name, name, field) for name, found in fields.items() for field in found]


PERPLEXITY = "perplexity"
"""The last reason: the perplexity is outside the middle of its (language, domain)."""


@dataclass(frozen=True)
class Thresholds:
    """Everything that decides: rule sets by domain, the bounds that hold everywhere, the ranges of perplexity."""

    rules: Mapping[str, RuleSet]
    max_overlap_fraction: float
    max_pii: float
    ranges: Ranges
    signals: Mapping[str, Mapping[str, Bounds]] = field(default_factory=dict)
    """Bounds by domain of each signal of the user's own."""

    def bounds(self, rule: Rule) -> dict[str, float | None]:
        """The rule's bound in every domain; None where it is left out."""
        if rule.family == "contamination":
            return dict.fromkeys(self.rules, self.max_overlap_fraction)
        if rule.family == "pii":
            return dict.fromkeys(self.rules, self.max_pii)
        if rule.family in self.signals:
            return {domain: bounds.get(rule.field) for domain, bounds in self.signals[rule.family].items()}
        return {domain: getattr(rules, rule.field) for domain, rules in self.rules.items()}


def percentile_ranges(rows: pa.Table, rules: Mapping[str, RuleSet], min_group: int) -> Ranges:
    """The middle of the perplexities of each (language, domain) whose rule set asks for one.

    rows: domain, label (language), perplexity of the documents that count: those of the train split that are neither
    duplicates nor trusted. Linear interpolation between ranks. A language with fewer than `min_group` documents in a domain has no
    entry, and neither has a domain with fewer.
    """
    rows = rows.filter(pc.is_valid(rows["perplexity"]))
    domains, labels = (np.asarray(pc.fill_null(rows[name], "").to_pylist(), object) for name in ("domain", "label"))
    values = rows["perplexity"].to_numpy()
    ranges: Ranges = {}
    for domain in sorted(set(domains)):
        middle = rules[domain].perplexity_middle
        here = domains == domain
        if middle is None or here.sum() < min_group:
            continue
        tails = [50 * (1 - middle), 100 - 50 * (1 - middle)]
        groups = {"": here} | {label: here & (labels == label) for label in sorted(set(labels[here]) - {""})}
        for label, group in groups.items():
            if group.sum() >= min_group:
                low, high = np.percentile(values[group].astype(np.float64), tails)
                ranges[label, domain] = (float(low), float(high))
    return ranges


def decide(
    duplicates: pa.Table, domain: pa.ChunkedArray, splits: pa.Table, signals: Mapping[str, pa.Table], thresholds: Thresholds
) -> pa.Table:
    """DECISIONS of one part. All tables hold the same documents in the same order. `signals` has a table by family; some may be missing."""
    domains = np.asarray(domain.to_pylist(), object)
    reason = np.full(len(domains), "", object)
    for rule in (*RULES, *own_rules(thresholds.signals)):
        if rule.family in signals:
            broken = _breaks(signals[rule.family][rule.column], rule, thresholds, domains)
            reason[broken & (reason == "")] = rule.reason
    if "perplexity" in signals and "language" in signals:
        outside = _outside(signals["perplexity"]["perplexity"], signals["language"]["label"], domains, thresholds.ranges)
        outside &= ~splits["trusted"].to_numpy()
        reason[outside & (reason == "")] = PERPLEXITY
    is_original = duplicates["kept"].to_numpy()
    reason = np.where(is_original, reason, np.asarray(duplicates["reason"].to_pylist(), object))
    kept = is_original & (reason == "")
    columns = [duplicates["id"], pa.array(kept), pa.array(reason, pa.string(), mask=kept), duplicates["survivor"]]
    return pa.table(columns, schema=DECISIONS)


def _breaks(column: pa.ChunkedArray, rule: Rule, thresholds: Thresholds, domains: np.ndarray) -> np.ndarray:
    values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)  # null becomes nan, which compares as false
    bounds = thresholds.bounds(rule)
    limit = np.array([np.nan if bounds[domain] is None else bounds[domain] for domain in domains], np.float64)
    if column.type == pa.float32():
        limit = limit.astype(np.float32)  # so that a share of exactly 0.9 does not exceed 0.9
    return np.asarray(values < limit if rule.bound == "min" else values > limit)


def _outside(perplexity: pa.ChunkedArray, labels: pa.ChunkedArray, domains: np.ndarray, ranges: Ranges) -> np.ndarray:
    values = perplexity.to_numpy(zero_copy_only=False)
    nowhere = (-np.inf, np.inf)
    pairs = zip(labels.to_pylist(), domains, strict=True)
    found = [ranges.get((label or "", domain), ranges.get(("", domain), nowhere)) for label, domain in pairs]
    limits = np.array(found, np.float64).reshape(-1, 2)
    return np.asarray((values < limits[:, 0]) | (values > limits[:, 1]))
