"""Selectors against a naive evaluator, and on arbitrary text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.datastore.selector import Selector, SelectorError

CASES = {"oracle": 0, "any text": 0}
FLOOR = 200

names = st.sampled_from(["rack", "role", "a.b/c", "not", "in", "all", "has", "contains"])
values = st.sampled_from(["", "a", "ab", "b", "r1 && has(x)", "{", "(", "'"])
labels = st.dictionaries(names, values, max_size=4)


def quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


@st.composite
def comparisons(draw):
    """(text, naive function of labels) of one comparison."""
    name = draw(names)
    kind = draw(st.integers(0, 7))
    value = draw(values)
    chosen = draw(st.lists(values, max_size=3))
    listed = "{" + ", ".join(quoted(each) for each in chosen) + "}"
    return [
        (f"has({name})", lambda at: name in at),
        (f"{name} == {quoted(value)}", lambda at: at.get(name) == value),
        (f"{name} != {quoted(value)}", lambda at: name not in at or at[name] != value),
        (f"{name} in {listed}", lambda at: name in at and at[name] in chosen),
        (f"{name} not in {listed}", lambda at: name not in at or at[name] not in chosen),
        (f"{name} contains {quoted(value)}", lambda at: name in at and value in at[name]),
        (
            f"{name} starts with {quoted(value)}",
            lambda at: name in at and at[name][: len(value)] == value,
        ),
        (
            f"{name} ends with {quoted(value)}",
            lambda at: (
                name in at
                and at[name][len(at[name]) - len(value) :] == value
                and len(value) <= len(at[name])
            ),
        ),
    ][kind]


def combined(parts):
    def joined(operator, combine):
        return st.lists(parts, min_size=2, max_size=3).map(
            lambda several: (
                "(" + operator.join(text for text, _ in several) + ")",
                lambda at: combine(test(at) for _, test in several),
            )
        )

    negated = parts.map(lambda part: (f"!({part[0]})", lambda at: not part[1](at)))
    return joined(" && ", all) | joined("||", any) | negated


selectors = st.recursive(
    comparisons() | st.just(("all()", lambda _at: True)), combined, max_leaves=8
)


@settings(max_examples=500)
@given(selector=selectors, at=labels)
def test_a_selector_says_what_its_parts_say(selector, at):
    """The parser and a direct reading of the parts agree on any labels."""
    CASES["oracle"] += 1
    text, expected = selector
    assert Selector.parse(text).matches(at) == expected(at), text


@settings(max_examples=500)
@given(
    text=st.text(max_size=40)
    | st.lists(
        st.sampled_from(
            ["has(", "all()", "(", ")", "!", "&&", "||", "a", "==", "'x'", "in", "{", "}", ",", " "]
        ),
        max_size=15,
    ).map("".join)
)
def test_any_text_is_a_selector_or_a_selector_error(text):
    """Nothing else is raised, and the position lies in the text."""
    CASES["any text"] += 1
    position = 0
    try:
        Selector.parse(text).matches({"a": "x"})
    except SelectorError as error:
        position = error.position
    assert 0 <= position <= len(text)


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert all(count >= FLOOR for count in CASES.values()), CASES
