"""docs/security.md: every line of the threat model names what tests it, and that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.chaos.__main__ import ROWS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
HEAD = "| tries | what stops it | tested by |"
_ROW = re.compile(r"(?<![`\w/])([A-Z]\d+[a-z]?)(?![\w.])")
_FILE = re.compile(r"`((?:tests|lab)/[^`:]+\.py)(?:::(\w+))?`")


def threats(page: str) -> list[tuple[str, str, str]]:
    """(heading, what is tried, what tests it) of every line of every such table."""
    found = []
    heading, is_table = "", False
    for line in page.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        is_table = line == HEAD or (is_table and line.startswith("|"))
        if is_table and line != HEAD and not line.startswith("|---"):
            tries, _stops, tested = line.strip("|").split(" | ")
            found.append((heading, tries.strip(), tested.strip()))
    return found


def missing(tested: str) -> list[str]:
    """What a last cell names that is not there; that it names nothing at all."""
    rows = {row.id for row in ROWS}
    named, files = _ROW.findall(tested), _FILE.findall(tested)
    wrong = [f"row {name}" for name in named if name not in rows]
    for name, test in files:
        path = ROOT / name
        if not path.is_file():
            wrong.append(name)
        elif test and not re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE):
            wrong.append(f"{name}::{test}")
    return wrong if named or files else ["names nothing"]


THREATS = threats(PAGE.read_text())


def test_who_attacks_is_complete():
    """The five of the model, each with its table; not a page of one line."""
    headings = [each for each, _tries, _tested in THREATS]
    assert len(set(headings)) == 5
    assert len(THREATS) >= 30


@pytest.mark.parametrize(("heading", "tries", "tested"), THREATS)
def test_what_tests_it_is_there(heading: str, tries: str, tested: str):
    """A row of the fault matrix, a test module, or a test of it."""
    assert missing(tested) == [], f"{heading}: {tries}"


def test_what_is_not_there_is_found():
    """The control."""
    assert missing("S1, B1") == []
    assert missing("S99") == ["row S99"]
    assert missing("`tests/unit/test_threat_model.py::test_no_such`, S1") == [
        "tests/unit/test_threat_model.py::test_no_such"
    ]
    assert missing("`tests/unit/test_nothing.py`") == ["tests/unit/test_nothing.py"]
    assert missing("somebody") == ["names nothing"]
