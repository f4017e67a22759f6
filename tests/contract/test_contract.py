import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.config import Frozen, canonical_json
from contract.errors import ConfigError, IntegrityError
from contract.ledger import Count, Ledger, total
from contract.schemas import document_id

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_canonical_json_does_not_depend_on_key_order(value):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: "a"}, object(), len, {"a": {1, 2}}])
def test_a_value_with_no_stable_form_is_refused(value):
    with pytest.raises(ConfigError):
        canonical_json(value)


def test_frozen_settings_refuse_unknown_keys_and_change():
    class Settings(Frozen):
        steps: int = 1

    with pytest.raises(ValueError, match="Extra inputs"):
        Settings.model_validate({"stepz": 2})
    with pytest.raises(ValueError, match="frozen"):
        Settings().steps = 2  # type: ignore[misc]


@given(st.text(), st.text(), st.text(), st.text())
def test_document_ids_meet_only_for_the_same_source_and_locator(a, b, c, d):
    assert (document_id(a, b) == document_id(c, d)) == ((a, b) == (c, d))


COUNTS = st.builds(
    Count, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))
)


@given(st.lists(COUNTS))
def test_the_balance_of_a_total_is_the_total_of_balances(counts):
    assert total(counts).balance() == sum(count.balance() for count in counts)


@given(COUNTS)
def test_a_ledger_survives_its_json(count):
    assert Ledger.from_json(Ledger(documents=count).to_json()) == Ledger(documents=count)


def test_a_ledger_that_does_not_add_up_is_refused_with_its_figures():
    with pytest.raises(IntegrityError, match=r"in 10 \+ added 0 is not out 7 \+ dropped 2 \+ quarantined 0 \(\+1\)"):
        Ledger(documents=Count(came_in=10, out=7, dropped={"duplicate": 2})).check("select")
