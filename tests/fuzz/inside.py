"""A plugin of pytest for hunts: counts the properties that stand inside a test function too.

hypothesis's own counts only what pytest collected as a property. Each run of one inside is named
after its test, with a number behind it, and told in hypothesis's own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import is_hypothesis_test
from hypothesis.statistics import collector, describe_statistics

TOLD: list[str] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Listens where hypothesis does not."""
    if is_hypothesis_test(getattr(item, "obj", None)):
        yield
        return
    here: list[str] = []

    def note(statistics: Any) -> None:
        statistics["nodeid"] = f"{item.nodeid}#{len(here) + 1}"
        here.append(describe_statistics(statistics))

    with collector.with_value(note):  # type: ignore[arg-type]  # its type is that of None
        yield
    TOLD.extend(here)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Behind hypothesis's own."""
    for told in TOLD:
        terminalreporter.write_line(told + "\n\n")
