"""Sides by group: on one side whatever the order, shares as asked, least counts per domain, and trusted rows."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.config_split import SplitConfig
from filters.group_split import COUNTS, add_counts, assign, count_groups, exceptions, group_names, side, sides_of, trusted_rows

ROWS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["web", "books", "code"]), st.integers(0, 4)), min_size=1, max_size=60)
CONFIGS = st.builds(
    SplitConfig,
    seed=st.integers(0, 5),
    validation=st.sampled_from([0.0, 0.03, 0.2]),
    test=st.sampled_from([0.0, 0.1, 0.3]),
    least_documents=st.integers(0, 8),
    max_held_out=st.sampled_from([0.1, 0.2, 0.5]),
)


def counts(rows: list[tuple[int, str, int]]) -> pa.Table:
    columns = [[f"group {number}" for number, _, _ in rows], [domain for _, domain, _ in rows], [kept for *_, kept in rows]]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, COUNTS, strict=True)], schema=COUNTS)


def sides(table: pa.Table, config: SplitConfig) -> dict[str, str]:
    groups = assign(table, config)
    assert groups["group"].to_pylist() == sorted(set(table["group"].to_pylist())), "every group is listed once"
    return dict(zip(groups["group"].to_pylist(), groups["split"].to_pylist(), strict=True))


def kept_by_side(rows: list[tuple[int, str, int]], given_sides: dict[str, str]) -> Counter:
    tally: Counter = Counter()
    for number, domain, kept in rows:
        tally[domain, given_sides[f"group {number}"]] += kept
        tally[domain] += kept
    return tally


@settings(deadline=None)
@given(rows=ROWS, config=CONFIGS, data=st.data())
def test_sides_do_not_depend_on_row_order_or_parts(rows: list, config: SplitConfig, data: st.DataObject):
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    parts = add_counts([counts(shuffled[:cut]), counts(shuffled[cut:])])
    assert sides(parts, config) == sides(counts(rows), config)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, config=CONFIGS)
def test_held_out_sides_reach_the_least_count_or_no_group_fits(rows: list, config: SplitConfig):
    """For each domain and side: enough documents, or each further group of train takes too much of a domain, or leaves too little."""
    given_sides = sides(counts(rows), config)
    tally = kept_by_side(rows, given_sides)
    for domain in {domain for _, domain, _ in rows}:
        for held_out in ("validation", "test"):
            if tally[domain, held_out] >= min(config.least_documents, int(tally[domain] * config.max_held_out)):
                continue
            for number in {number for number, of, kept in rows if of == domain and kept and given_sides[f"group {number}"] == "train"}:
                own = Counter()
                for other, of, kept in rows:
                    own[of] += kept * (other == number)
                assert any(
                    tally[of, held_out] + kept > int(tally[of] * config.max_held_out) or 3 * (tally[of, "train"] - kept) < tally[of]
                    for of, kept in own.items()
                )


@settings(deadline=None)
@given(rows=ROWS, config=CONFIGS)
def test_least_counts_leave_a_third_of_a_domain_in_train(rows: list, config: SplitConfig):
    drawn = kept_by_side(rows, sides(counts(rows), config.model_copy(update={"least_documents": 0})))
    tally = kept_by_side(rows, sides(counts(rows), config))
    for domain in {domain for _, domain, _ in rows}:
        assert tally[domain, "train"] >= min(drawn[domain, "train"], tally[domain] / 3)


def test_shares_come_out_as_asked_and_groups_move_for_no_other_reason():
    config = SplitConfig(validation=0.03, test=0.05, seed=7)
    table = counts([(number, "web", 1) for number in range(20_000)])
    found = sides(table, config)
    shares = {name: number / 20_000 for name, number in Counter(found.values()).items()}
    assert shares["validation"] == pytest.approx(0.03, abs=0.005)
    assert shares["test"] == pytest.approx(0.05, abs=0.006)
    assert found == {group: side(group, config) for group in found}, "with enough documents the hash alone decides"
    assert found != sides(table, config.model_copy(update={"seed": 8}))


def test_a_groups_side_stays_when_other_groups_come():
    few = sides(counts([(number, "web", 1) for number in range(3000)]), SplitConfig())
    more = sides(counts([(number, "web", 1) for number in range(6000)]), SplitConfig())
    assert few == {group: more[group] for group in few}


def test_a_dominant_group_stays_in_train_and_a_small_domain_is_filled():
    rows = [(number, "code", 1) for number in range(400)]
    config = next(c for c in (SplitConfig(seed=seed) for seed in range(999)) if side("group 1000", c) == "test")
    rows += [(1000, "code", 300), *((2000 + number, "books", 1) for number in range(100))]
    found = sides(counts(rows), config)
    tally = kept_by_side(rows, found)
    assert found["group 1000"] == "train"
    assert all(20 <= tally["books", held_out] <= 23 for held_out in ("validation", "test"))


def test_three_books_have_one_on_each_side_and_a_single_one_stays_in_train():
    assert sorted(sides(counts([(1, "books", 30), (2, "books", 30), (3, "books", 30)]), SplitConfig()).values()) == [
        "test",
        "train",
        "validation",
    ]
    assert sides(counts([(1, "books", 30)]), SplitConfig()) == {"group 1": "train"}


def test_dropped_documents_do_not_count_towards_the_least_number():
    """A group that holds only dropped documents is never moved, and the kept ones reach the count by themselves."""
    rows = [(number, "web", 1) for number in range(200)] + [(number, "web", 0) for number in range(200, 2000)]
    found = sides(counts(rows), SplitConfig(validation=0, test=0))
    moved = {group for group, given_side in found.items() if given_side != "train"}
    assert len(moved) == 40
    assert all(int(group.split()[1]) < 200 for group in moved)


def test_documents_without_a_group_stay_with_their_survivor():
    a, b, c = (bytes([i]) * 16 for i in range(3))
    ids = pa.chunked_array([[a, b], [c]], pa.binary(16))
    names = group_names(ids, pa.chunked_array([[None, None], ["host"]], pa.string()), pa.chunked_array([[None, a], [a]], pa.binary(16)))
    assert names.to_pylist() == [f"component:{a.hex()}", f"component:{a.hex()}", "host"]


@settings(deadline=None)
@given(rows=ROWS, config=CONFIGS)
def test_sides_of_rows_are_those_of_their_groups(rows: list, config: SplitConfig):
    table = counts(rows)
    groups = assign(table, config)
    want = dict(zip(groups["group"].to_pylist(), groups["split"].to_pylist(), strict=True))
    names = table["group"].combine_chunks()
    assert sides_of(names, exceptions(groups, config), config).to_pylist() == [want[name] for name in names.to_pylist()]


def test_counts_of_a_part_are_its_kept_documents():
    names = pa.array(["g", "g", "h", "g"])
    part = count_groups(names, pa.chunked_array([["web", "code", "web", "web"]]), pa.chunked_array([[True, True, False, True]]))
    assert part.to_pylist() == [
        {"group": "g", "domain": "code", "kept": 1},
        {"group": "g", "domain": "web", "kept": 2},
        {"group": "h", "domain": "web", "kept": 0},
    ]


def test_trusted_is_what_named_sources_or_domains_hold():
    sources, domains = pa.chunked_array([["manuals", "crawl", "crawl"]]), pa.chunked_array([["web", "books", "web"]])
    config = SplitConfig(trusted_sources=("manuals",), trusted_domains=("books",))
    assert trusted_rows(sources, domains, config).to_pylist() == [True, True, False]
    assert trusted_rows(sources, domains, SplitConfig(trusted_domains=())).to_pylist() == [False] * 3


def test_held_out_shares_above_a_half_are_refused():
    with pytest.raises(ValueError, match="keep their sum"):
        SplitConfig(validation=0.3, test=0.3)
