"""The property tests with fresh seeds and many more cases, counted by hypothesis itself.

    python -m tests.fuzz.hunt [--document docs/fuzzing.md] [FILE ...]

FILE is a test module of ``tests/property``; without any it is all of them. Each is run with
``HYPOTHESIS_PROFILE=hunt``, and the table says how many cases were drawn and how many of them were
cases at all (the others broke a precondition). Exit code 1 when a property does not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.__main__ import put_into_between

ROOT = Path(__file__).parents[2]
DEADLINE_S = 3 * 3600
MARKS = "<!-- hunt: written by make hunt -->", "<!-- end of hunt -->"
_PROPERTY = re.compile(r"^tests/property/(\w+)\.py::(.+):$")
_PHASE = re.compile(r"(\d+) passing, (\d+) failing, and (\d+) invalid test cases")
_SECONDS = re.compile(r"phase \(([0-9.]+) seconds\)")


@dataclass
class Counted:
    """What hypothesis says of one module's properties."""

    properties: set[str] = field(default_factory=set)
    passing: int = 0
    failing: int = 0
    invalid: int = 0
    seconds: float = 0.0


def counted(text: str) -> dict[str, Counted]:
    """By module, from what ``--hypothesis-show-statistics`` prints."""
    found: dict[str, Counted] = {}
    module = Counted()
    for line in text.splitlines():
        if named := _PROPERTY.match(line):
            module = found.setdefault(named[1], Counted())
            module.properties.add(named[2])
        if numbers := _PHASE.search(line):
            passing, failing, invalid = map(int, numbers.groups())
            module.passing += passing
            module.failing += failing
            module.invalid += invalid
        if seconds := _SECONDS.search(line):
            module.seconds += float(seconds[1])
    return found


def table_of(found: dict[str, Counted]) -> str:
    """A row a module, and the sum."""
    total = sum(each.passing for each in found.values())
    failing = sum(each.failing for each in found.values())
    properties = sum(len(each.properties) for each in found.values())
    lines = [
        f"{total:,} cases of {properties} properties, {failing} failures "
        f"(hypothesis {version('hypothesis')}).",
        "",
        "| module of tests/property | properties | cases | not a case | failures | seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {len(each.properties)} | {each.passing:,} | {each.invalid:,} | "
        f"{each.failing} | {each.seconds:.0f} |"
        for name, each in sorted(found.items())
    ]
    return "\n".join(lines)


def main() -> int:
    """Runs the hunt."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.hunt", description=__doc__)
    parser.add_argument("files", nargs="*", default=["tests/property"])
    parser.add_argument("--document", type=Path, help="put the table into this file")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "-q", "--hypothesis-show-statistics"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--timeout=3600", *arguments.files],
        cwd=ROOT,
        env={**os.environ, "HYPOTHESIS_PROFILE": "hunt"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    found = counted(done.stdout)
    table = table_of(found)
    print(table)  # noqa: T201
    if done.returncode:
        print(done.stdout[-6000:])  # noqa: T201
    if arguments.document is not None:
        put_into_between(MARKS, arguments.document, table)
    return 1 if done.returncode or not found else 0


if __name__ == "__main__":
    sys.exit(main())
