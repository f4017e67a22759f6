import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.schemas import DECISIONS, DOMAINS
from filters.config import ContaminationConfig, RuleSet, SelectConfig
from filters.decisions import PERPLEXITY, RULES, Thresholds, decide, percentile_ranges
from filters.histograms import EDGES, added, histograms

OFF = RuleSet.model_validate(dict.fromkeys(RuleSet.model_fields))
TYPES = {"count": pa.int32(), "words": pa.int32(), "unwanted_phrases": pa.int32(), "stop_words": pa.int32(), "label": pa.string()}


def table(signals: dict[str, dict[str, list]]) -> dict[str, pa.Table]:
    return {
        family: pa.table({name: pa.array(values, TYPES.get(name, pa.float32())) for name, values in columns.items()})
        for family, columns in signals.items()
    }


def made(signals: dict[str, dict[str, list]], rules: RuleSet, n: int, **given) -> list[dict]:
    everything: dict[str, dict[str, list]] = {}
    for rule in RULES:
        if rule.family in signals:
            everything.setdefault(rule.family, {}).setdefault(rule.column, [None] * n)
    for family, columns in signals.items():
        everything.setdefault(family, {}).update(columns)
    kept = given.get("kept", [True] * n)
    duplicates = pa.Table.from_pylist(
        [{"id": bytes([i]) * 16, "kept": k, "reason": None if k else "near_duplicate", "survivor": None if k else b"s" * 16}
         for i, k in enumerate(kept)],
        DECISIONS,
    )  # fmt: skip
    domain = pa.chunked_array([pa.array(given.get("domains", ["web"] * n), pa.string())])
    splits = pa.table({"trusted": given.get("trusted", [False] * n)})
    thresholds = Thresholds(
        dict.fromkeys(DOMAINS, rules) | given.get("by_domain", {}), 0.3, given.get("max_pii", np.inf), given.get("ranges", {})
    )
    table_made = decide(duplicates, domain, splits, table(everything), thresholds)
    assert table_made.schema.equals(DECISIONS)
    return table_made.to_pylist()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.field], ids=lambda rule: rule.field)
def test_each_rule_keeps_its_bound_drops_beyond_it_and_spares_null(rule):
    bound = 1 if rule.column in TYPES else 0.9
    beyond = bound - 1 if rule.bound == "min" else bound + 1
    values = {rule.family: {rule.column: [bound, beyond, None]}}
    on = RuleSet.model_validate(OFF.model_dump() | {rule.field: bound})
    assert [row["reason"] for row in made(values, on, 3)] == [None, rule.reason, None]
    assert [row["reason"] for row in made(values, OFF, 3)] == [None] * 3
    elsewhere = {**dict.fromkeys(DOMAINS, OFF), "code": on}
    assert [row["reason"] for row in made(values, OFF, 3, by_domain=elsewhere, domains=["web", "web", "code"])] == [None] * 3


def test_every_bound_of_a_rule_set_has_its_rule():
    assert {rule.field for rule in RULES if rule.field} | {"perplexity_middle"} == set(RuleSet.model_fields)


def test_the_first_broken_rule_is_the_reason_and_duplicates_keep_dedups():
    signals = {
        "rules": {"words": [1, 1, 1]},
        "contamination": {"overlap_fraction": [0.3, 0.31, 0.31]},
        "pii": {"count": [0, 5, 5]},
    }
    rows = made(signals, RuleSet(), 3, kept=[True, True, False])
    assert [row["reason"] for row in rows] == ["words", "contamination", "near_duplicate"]
    assert [row["survivor"] for row in rows] == [None, None, b"s" * 16]
    assert made(signals, OFF, 3, max_pii=0)[0]["reason"] is None
    assert made({"pii": {"count": [0, 1]}}, OFF, 2, max_pii=0)[1]["reason"] == "pii"


def test_perplexity_is_judged_by_language_and_domain_and_trusted_rows_are_spared():
    signals = {
        "perplexity": {"perplexity": [5.0, 50.0, 5.0, 5.0, None, 5.0]},
        "language": {"label": ["en", "en", "fr", "en", "en", "en"]},
    }
    ranges = {("en", "web"): (10.0, 40.0), ("", "web"): (1.0, 9.0)}
    domains = ["web", "web", "web", "web", "web", "code"]
    rows = made(signals, OFF, 6, ranges=ranges, domains=domains, trusted=[False, False, False, True, False, False])
    assert [row["reason"] for row in rows] == [PERPLEXITY, PERPLEXITY, None, None, None, None]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["web", "books", "code"]), st.sampled_from(["en", "fr", None]), st.integers(1, 10**6)), max_size=60)
)
def test_ranges_are_percentiles_of_groups_that_are_large_enough(rows):
    given_rows = pa.table({
        "domain": pa.array([row[0] for row in rows], pa.string()),
        "label": pa.array([row[1] for row in rows], pa.string()),
        "perplexity": pa.array([row[2] / 7 for row in rows], pa.float32()),
    })  # fmt: skip
    rules = dict.fromkeys(DOMAINS, OFF) | {"web": RuleSet(), "books": RuleSet(perplexity_middle=0.5)}
    ranges = percentile_ranges(given_rows, rules, 5)
    want = {}
    for domain, tails in (("web", (10, 90)), ("books", (25, 75))):
        for label in ("", "en", "fr"):
            values = [np.float32(p / 7) for d, name, p in rows if d == domain and label in ("", name)]
            if len(values) >= 5:
                want[label, domain] = tuple(np.percentile(np.array(values, np.float64), tails))
    assert ranges.keys() == want.keys()
    assert [ranges[key] for key in want] == [pytest.approx(want[key]) for key in want]


def test_histograms_of_parts_add_up_to_that_of_the_whole():
    values = np.random.default_rng(0).integers(0, 5000, 200).tolist()
    whole = added([histograms(table({"rules": {c: values for f, c in EDGES if f == "rules"}}))])
    parts = added(histograms(table({"rules": {c: values[i : i + 70] for f, c in EDGES if f == "rules"}})) for i in (0, 70, 140))
    assert parts == whole
    counts, edges = whole["rules.words"]["counts"], whole["rules.words"]["edges"]
    assert sum(counts) == 200 and counts[0] == sum(v < 1 for v in values) and len(edges) == len(counts) + 1


def test_domain_bounds_go_over_the_built_in_ones_and_survive_a_round_trip():
    config = SelectConfig.model_validate({"domains": {"web": {"min_words": 5}, "code": {"min_words": None}}})
    rules = config.rules()
    assert (rules["web"].min_words, rules["web"].min_stop_words) == (5, RuleSet().min_stop_words)
    assert rules["code"].min_words is None and rules["code"].min_language_probability is None
    assert SelectConfig.model_validate_json(config.model_dump_json()).rules() == rules
    assert SelectConfig.model_validate({"default": {"min_words": 7}}).rules()["books"].min_words == 7


@pytest.mark.parametrize(
    ("domains", "sentence"),
    [
        ({"wbe": {}}, "did you mean web"),
        ({"web": {"min_word": 3}}, "did you mean min_words"),
        ({"web": {"max_punctuation_fraction": 2}}, "less than or equal to 1"),
        ({"web": 3}, "table of bounds"),
    ],
)
def test_wrong_bounds_are_refused_by_name(domains, sentence):
    with pytest.raises(ValidationError, match=sentence):
        SelectConfig.model_validate({"domains": domains})
    assert ContaminationConfig().ngram_words == 13
