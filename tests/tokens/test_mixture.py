"""The plan of the mixture: exact sums, caps, proportions."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.schemas import DOMAINS
from tokens.config import MixConfig
from tokens.mixture import Draw, allocate, draw, plan, shares
from tokens.order import id_words, keys

NAMES = st.sampled_from(DOMAINS)
CAPS = st.dictionaries(NAMES, st.integers(0, 10**12), max_size=6)
WEIGHTS = st.dictionaries(NAMES, st.floats(0, 1e6), max_size=6)


@given(caps=CAPS, weights=WEIGHTS, total=st.integers(0, 10**13))
def test_all_is_given_out_unless_the_caps_forbid(caps: dict[str, int], weights: dict[str, float], total: int) -> None:
    got = allocate(caps, weights, total)
    weighted = [name for name in caps if weights.get(name, 0) > 0]
    assert sum(got.values()) == min(total, sum(caps[name] for name in weighted))
    assert all(0 <= got[name] <= caps[name] for name in caps)
    assert all(got[name] == 0 for name in caps if name not in weighted)


@given(caps=CAPS, weights=WEIGHTS, total=st.integers(0, 10**13))
def test_shares_are_in_proportion_among_those_below_their_cap_and_a_capped_one_is_owed_more(
    caps: dict[str, int], weights: dict[str, float], total: int
) -> None:
    got = allocate(caps, weights, total)
    below = [name for name in caps if weights.get(name, 0) > 0 and got[name] < caps[name]]
    for a in below:
        for b in caps:
            if weights.get(b, 0) > 0:  # a unit of weight is worth the same below the caps, to the odd unit, and never more at a cap
                assert (got[b] - 1) / weights[b] <= (got[a] + 1) / weights[a] * (1 + 1e-9)


@given(caps=CAPS, weights=WEIGHTS, total=st.integers(0, 10**13), data=st.data())
def test_the_order_of_names_does_not_matter(caps: dict[str, int], weights: dict[str, float], total: int, data: st.DataObject) -> None:
    turned = dict(data.draw(st.permutations(list(caps.items()))))
    assert allocate(turned, weights, total) == allocate(caps, weights, total)


def test_a_short_domain_is_capped_and_its_remainder_shared_and_capped_again() -> None:
    # 100 wanted at 50/30/20 with caps 10, 40, 1000: 50 -> 10; the other 90 at 30:20 are 54 -> 40 and 36 + 14
    assert allocate({"web": 10, "code": 40, "books": 1000}, {"web": 50, "code": 30, "books": 20}, 100) == {
        "web": 10,
        "code": 40,
        "books": 50,
    }


@given(caps=CAPS, weights=WEIGHTS.filter(lambda weights: sum(weights.values()) > 0), total=st.integers(1, 10**13))
def test_what_is_asked_sums_to_the_total_wherever_a_weighted_domain_has_text(
    caps: dict[str, int], weights: dict[str, float], total: int
) -> None:
    rows = plan(caps, MixConfig(weights=weights, total_tokens=total)).domains
    there = [name for name in caps if caps[name] and rows[name].weight > 0]  # a share may be too small for a float
    assert sum(row.asked for row in rows.values()) == (total if there else 0)
    assert all(row.available for row in rows.values() if row.asked)


def test_default_mixture_when_every_domain_has_plenty() -> None:
    got = plan(dict.fromkeys(DOMAINS, 10**9), MixConfig(total_tokens=1000)).domains
    assert {name: row.got for name, row in got.items()} == {
        "web": 400, "books": 200, "code": 150, "academic": 100, "reference": 100, "conversation": 50
    }  # fmt: skip
    assert all(row.asked == row.got for row in got.values())


def test_shares_are_asked_among_the_domains_that_have_text_and_repeats_are_capped() -> None:
    result = plan({"web": 100, "code": 10_000}, MixConfig(max_epochs=2.5, total_tokens=1000))
    assert (result.domains["web"].asked, result.domains["code"].asked) == (727, 273), "40 to 15"
    assert (result.domains["books"].weight, result.domains["books"].asked, result.domains["books"].got) == (0.2, 0, 0)
    assert result.domains["web"].got == 250
    assert result.domains["web"].epochs == 2.5
    assert result.domains["code"].got == 750
    assert result.got == result.asked == 1000


def test_unset_total_takes_as_much_as_there_is_and_one_epoch_takes_all_once() -> None:
    stock = {"web": 100, "code": 10_000, "books": 7}
    result = plan(stock, MixConfig(max_epochs=1))
    assert {name: row.got for name, row in result.domains.items() if row.got} == stock


def test_what_no_cap_allows_is_seen_as_got_below_asked() -> None:
    result = plan({"web": 100}, MixConfig(total_tokens=1000, max_epochs=4))
    assert (result.asked, result.got) == (1000, 400)
    assert plan({}, MixConfig()).got == 0


@pytest.mark.parametrize(("temperature", "want"), [(1.0, 0.8), (2.0, 2 / 3), (1e9, 0.5)])
def test_temperature_flattens_the_natural_shares(temperature: float, want: float) -> None:
    got = shares({"web": 400, "code": 100, "books": 0}, {"books": 1.0}, temperature)
    assert got["web"] == pytest.approx(want)
    assert set(got) == {"web", "code"}


def test_unknown_domains_and_all_zero_weights_are_refused() -> None:
    with pytest.raises(ValidationError, match="unknown domain webb"):
        MixConfig(weights={"webb": 1})
    with pytest.raises(ValidationError, match="all weights are 0"):
        MixConfig(weights={"web": 0})


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), wanted=st.integers(0, 3000), turn=st.integers(0, 29))
def test_a_draw_gives_exactly_what_is_wanted_and_cuts_one_document_at_most(sizes: list[int], wanted: int, turn: int) -> None:
    words = id_words(pa.array([i.to_bytes(16, "big") for i in range(len(sizes))], pa.binary(16)))
    key, size = keys(words, 1, "select"), np.array(sizes, np.int64)
    got = draw(key, words, size, wanted)
    taken = got.taken(key, words, size)
    assert got.passes * sum(sizes) + taken.sum() == wanted
    kinds = Counter("all" if t == s else "none" if t == 0 else "cut" for t, s in zip(taken.tolist(), sizes, strict=True))
    assert kinds["cut"] <= 1
    roll = np.roll(np.arange(len(sizes)), turn)
    assert draw(key[roll], words[roll], size[roll], wanted) == got


def test_a_draw_from_nothing_takes_nothing() -> None:
    none = np.zeros(0, np.uint64)
    assert draw(none, np.zeros((0, 2), np.uint64), np.zeros(0, np.int64), 5) == Draw(0)
