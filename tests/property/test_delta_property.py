"""The laws of diff: applying a difference makes the table right, and only what is owned changes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.delta import Delta, diff

CASES = {"laws": 0, "gate": 0}
FLOOR = 100

tables = st.dictionaries(st.integers(0, 20), st.integers(0, 5), max_size=15)


def apply(delta: Delta[int, int], table: dict[int, int]) -> dict[int, int]:
    after = {key: value for key, value in table.items() if key not in delta.delete}
    after.update({key: new for key, (_old, new) in delta.replace.items()})
    after.update(delta.create)
    return after


@settings(max_examples=300)
@given(desired=tables, actual=tables)
def test_applying_the_difference_gives_the_desired_table(desired, actual):
    """apply(diff(d, a), a) == d, diff(d, d) is empty, and replace names the true old value."""
    CASES["laws"] += 1
    delta = diff(desired, actual)
    assert apply(delta, actual) == desired
    assert not diff(desired, desired)
    assert all(actual[key] == old for key, (old, _new) in delta.replace.items())
    assert not set(delta.create) & set(actual)
    assert set(delta.delete) <= set(actual)


@settings(max_examples=300)
@given(desired=tables, actual=tables, kept=st.sets(st.integers(0, 20)))
def test_a_closed_gate_keeps_entries_and_stops_nothing_else(desired, actual, kept):
    """A held entry stays; every other change still happens."""
    CASES["gate"] += 1
    after = apply(diff(desired, actual, lambda key, _value: key not in kept), actual)
    assert after == desired | {
        key: value for key, value in actual.items() if key in kept and key not in desired
    }


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert all(count >= FLOOR for count in CASES.values()), CASES
