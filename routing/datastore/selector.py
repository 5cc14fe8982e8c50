"""Selector: Calico's selector language over labels. Pure.

    or    = and { "||" and }
    and   = not { "&&" not }
    not   = { "!" } term
    term  = "(" or ")" | "all()" | "global()" | "has(" label ")"
          | label "==" text | label "!=" text
          | label "in" set | label "not in" set
          | label "contains" text | label "starts with" text | label "ends with" text
    set   = "{" [ text { "," text } [ "," ] ] "}"
    text  = "'" characters "'" | '"' characters '"'       (no escapes)

Meanings as in Calico: ``!=`` and ``not in`` also match where the label is absent, the other
comparisons do not; ``global()`` matches everything, as does the empty selector. White space is
blanks and tabs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

LENGTH_MAX = 4096
"""Characters in a selector. A parser that takes any length is a way to stop an agent."""
DEPTH_MAX = 32
"""Parentheses inside parentheses; each level is a level of recursion here."""

Labels = Mapping[str, str]
Test = Callable[[Labels], bool]


class SelectorError(ValueError):
    """A selector that cannot be read. ``position`` counts characters from 0."""

    def __init__(self, text: str, position: int, problem: str) -> None:
        super().__init__(f"{problem} at position {position}")
        self.text = text
        self.position = position
        self.problem = problem


@dataclass(frozen=True, slots=True, eq=False)
class Selector:
    """A parsed selector; equal when the text is."""

    text: str
    _test: Test

    @classmethod
    def parse(cls, text: str) -> Selector:
        """The selector a text stands for.

        Raises:
            SelectorError: the text is not a selector; says where and what was expected.
        """
        return _parse(text)

    def matches(self, labels: Labels) -> bool:
        """Whether an object with these labels is selected."""
        return self._test(labels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=256)
def _parse(text: str) -> Selector:
    # Cached: pools are asked for at every ADD, and their selectors hardly ever change.
    if len(text) > LENGTH_MAX:
        raise SelectorError(text, LENGTH_MAX, f"longer than {LENGTH_MAX} characters; cut off")
    return Selector(text, _Parser(text).whole())


_BLANKS = re.compile(r"[ \t]*")
_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,512}")
_TEXT = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_CALL = re.compile(r"(all|global|has)\(")
_OPERATOR = re.compile(r"==|!=|in|not[ \t]*in|contains|starts[ \t]*with|ends[ \t]*with")


def _equal(label: str, value: str) -> Test:
    return lambda labels: labels.get(label) == value


def _unequal(label: str, value: str) -> Test:
    return lambda labels: labels.get(label) != value


def _contains(label: str, value: str) -> Test:
    return lambda labels: label in labels and value in labels[label]


def _starts(label: str, value: str) -> Test:
    return lambda labels: label in labels and labels[label].startswith(value)


def _ends(label: str, value: str) -> Test:
    return lambda labels: label in labels and labels[label].endswith(value)


_COMPARISONS: Mapping[str, Callable[[str, str], Test]] = {
    "==": _equal,
    "!=": _unequal,
    "contains": _contains,
    "startswith": _starts,
    "endswith": _ends,
}


class _Parser:
    """Recursive descent over one text; ``_at`` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip_blanks()

    def whole(self) -> Test:
        """The test for the whole text."""
        if self._at == len(self._text):
            return lambda _labels: True
        test = self._or(0)
        if self._at != len(self._text):
            raise self._error("expected && or || or the end")
        return test

    def _or(self, depth: int) -> Test:
        tests = [self._and(depth)]
        while self._take("||"):
            tests.append(self._and(depth))
        return tests[0] if len(tests) == 1 else lambda labels: any(t(labels) for t in tests)

    def _and(self, depth: int) -> Test:
        tests = [self._not(depth)]
        while self._take("&&"):
            tests.append(self._not(depth))
        return tests[0] if len(tests) == 1 else lambda labels: all(t(labels) for t in tests)

    def _not(self, depth: int) -> Test:
        is_negated = False
        while self._take("!"):
            is_negated = not is_negated
        test = self._term(depth)
        return (lambda labels: not test(labels)) if is_negated else test

    def _term(self, depth: int) -> Test:
        if self._take("("):
            if depth == DEPTH_MAX:
                raise self._error(f"more than {DEPTH_MAX} parentheses inside each other")
            test = self._or(depth + 1)
            self._expect(")")
            return test
        call = self._match(_CALL)
        if call is None:
            return self._comparison()
        if call[1] == "has":
            label = self._label()
            self._expect(")")
            return lambda labels: label in labels
        self._expect(")")
        return lambda _labels: True

    def _comparison(self) -> Test:
        label = self._label()
        found = self._match(_OPERATOR)
        if found is None:
            raise self._error(
                f"expected ==, !=, in, not in, contains, starts with or ends with after {label!r}"
            )
        operator = re.sub(r"[ \t]", "", found[0])
        if operator in ("in", "notin"):
            values = self._set()
            if operator == "in":
                return lambda labels: labels.get(label) in values
            return lambda labels: labels.get(label) not in values
        return _COMPARISONS[operator](label, self._quoted())

    def _set(self) -> frozenset[str]:
        self._expect("{")
        values = set()
        while not self._take("}"):
            values.add(self._quoted())
            if not self._take(","):
                self._expect("}")
                break
        return frozenset(values)

    def _label(self) -> str:
        found = self._match(_LABEL)
        if found is None:
            raise self._error("expected a label name, has(), all() or (")
        return found[0]

    def _quoted(self) -> str:
        found = self._match(_TEXT)
        if found is None:
            raise self._error("expected a value in quotes")
        return found[1] if found[1] is not None else found[2]

    def _take(self, symbol: str) -> bool:
        if not self._text.startswith(symbol, self._at):
            return False
        self._at += len(symbol)
        self._skip_blanks()
        return True

    def _expect(self, symbol: str) -> None:
        if not self._take(symbol):
            raise self._error(f"expected {symbol}")

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
            self._skip_blanks()
        return found

    def _skip_blanks(self) -> None:
        found = _BLANKS.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _error(self, problem: str) -> SelectorError:
        return SelectorError(self._text, self._at, problem)
