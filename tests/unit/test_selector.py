"""Selectors: Calico's language, its meanings, and errors that name the position."""

from __future__ import annotations

import pytest

from routing.datastore.selector import DEPTH_MAX, LENGTH_MAX, Selector, SelectorError

LABELS = {"rack": "r1", "role": "worker", "topology.kubernetes.io/zone": "eu-1a", "empty": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \t ",
        "all()",
        "all( )",
        "global()",
        "has(rack)",
        "has( rack )",
        "!has(gpu)",
        "!!has(rack)",
        "rack == 'r1'",
        'rack=="r1"',
        "rack != 'r2'",
        "gpu != 'yes'",
        "!(gpu == 'yes')",
        "rack in {'r1', \"r2\"}",
        "rack in {'r1',}",
        "rack not in {'r2'}",
        "gpu not in {'yes'}",
        "gpu not in {}",
        "rack notin {'r2'}",
        "role contains 'ork'",
        "role starts with 'wor'",
        "role starts  with 'wor'",
        "role ends with 'ker'",
        "empty == ''",
        "role contains ''",
        "topology.kubernetes.io/zone == 'eu-1a'",
        "has(rack) && role == 'worker'",
        "has(gpu) || role == 'worker'",
        "has(rack) || has(gpu) && has(gpu)",
        "(has(gpu) || has(rack)) && has(role)",
        "!(has(gpu) && has(rack)) && !has(gpu)",
        "rack=='r1'&&role=='worker'||has(gpu)",
        "(" * DEPTH_MAX + "all()" + ")" * DEPTH_MAX,
    ],
)
def test_a_selector_that_matches(text):
    """Each of these selects the labelled node."""
    assert Selector.parse(text).matches(LABELS)


@pytest.mark.parametrize(
    "text",
    [
        "!all()",
        "has(gpu)",
        "rack == 'r2'",
        "gpu == ''",
        "gpu in {''}",
        "gpu contains ''",
        "gpu starts with ''",
        "gpu ends with ''",
        "rack != 'r1'",
        "rack in {}",
        "rack not in {'r1'}",
        "(has(rack) || has(gpu)) && has(gpu)",
        "!has(rack) || has(gpu)",
        "role starts with 'ork'",
        "role ends with 'ork'",
        "!!!has(rack)",
    ],
)
def test_a_selector_that_does_not(text):
    """Absent labels match only the negative comparisons."""
    assert not Selector.parse(text).matches(LABELS)


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("rack", 4, "expected ==, !=, in, not in, contains, starts with or ends with after 'rack'"),
        ("rack = 'r1'", 5, "expected =="),
        ("rack == r1", 8, "expected a value in quotes"),
        ("rack == 'r1", 8, "expected a value in quotes"),
        ("has(rack", 8, "expected )"),
        ("has()", 4, "expected a label name"),
        ("all(x)", 4, "expected )"),
        ("all() all()", 6, "expected && or || or the end"),
        ("all() & all()", 6, "expected && or || or the end"),
        ("all() &&", 8, "expected a label name"),
        ("(all()", 6, "expected )"),
        ("all())", 5, "expected && or || or the end"),
        ("rack in ['a']", 8, "expected {"),
        ("rack in {'a' 'b'}", 13, "expected }"),
        ("rack in {,}", 9, "expected a value in quotes"),
        ("rack starts 'a'", 5, "expected =="),
        ("!", 1, "expected a label name"),
        ("räck == 'a'", 1, "expected =="),
        ("rack == 'a'\n&& all()", 11, "expected && or || or the end"),
        ("(" * (DEPTH_MAX + 1) + "all()", DEPTH_MAX + 1, f"more than {DEPTH_MAX} parentheses"),
        ("a" * (LENGTH_MAX + 1), LENGTH_MAX, f"longer than {LENGTH_MAX} characters"),
        ("has(" + "a" * 513 + ")", 516, "expected )"),
    ],
)
def test_an_error_names_the_position_and_what_was_expected(text, position, problem):
    """One short sentence, with a place to look at."""
    with pytest.raises(SelectorError) as caught:
        Selector.parse(text)

    assert caught.value.position == position
    assert caught.value.problem.startswith(problem)
    assert str(caught.value).endswith(f"at position {position}")


def test_selectors_are_equal_when_their_text_is():
    """They go into frozen values, which compare and hash."""
    assert Selector.parse("has(a)") == Selector.parse("has(a)")
    assert len({Selector.parse("has(a)"), Selector.parse("has(a)"), Selector.parse("all()")}) == 2
    assert str(Selector.parse("has( a )")) == "has( a )"
