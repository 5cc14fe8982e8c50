"""The property tests with fresh seeds and many more cases, counted by hypothesis itself.

    python -m tests.fuzz.hunt [--cases N] [--document docs/fuzzing.md] [FILE ...]

FILE is a test module of ``tests/property``; without any it is all of them, and then each property
that stands there must be counted. Each module is run with ``HYPOTHESIS_PROFILE=hunt`` in a process
of its own, and the table says how many cases were drawn and how many of them were cases at all
(the others broke a precondition). Exit code 1 when a property does not hold, or is not counted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.__main__ import commit, put_into_between

ROOT = Path(__file__).parents[2]
PROPERTIES = ROOT / "tests" / "property"
MODULE_DEADLINE_S = 3600
MARKS = "<!-- hunt: written by make hunt -->", "<!-- end of hunt -->"
COSTLY = {
    "test_cache_property": 3,
    "test_ipam_machine": 10,
    "test_recorded_streams": 10,
}
"""Module: by how much fewer cases its properties get, because one of them takes so much
longer."""
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


def owed(text: str) -> int:
    """How many properties a module's source has."""
    return len(re.findall(r"^ *@given\(|\(RuleBasedStateMachine\)", text, re.MULTILINE))


def uncounted(found: dict[str, Counted], sources: dict[str, str]) -> list[str]:
    """Modules of which fewer properties were counted than stand there."""
    names = {
        module: {each.partition("[")[0] for each in counted.properties}
        for module, counted in found.items()
    }
    return [module for module, text in sources.items() if len(names.get(module, ())) < owed(text)]


def table_of(found: dict[str, Counted]) -> str:
    """A row a module, and the sum."""
    total = sum(each.passing for each in found.values())
    failing = sum(each.failing for each in found.values())
    properties = sum(len(each.properties) for each in found.values())
    lines = [
        f"{total:,} cases of {properties} properties, {failing} failures "
        f"({commit()}; hypothesis {version('hypothesis')}).",
        "",
        "| module of tests/property | properties | cases | not a case | failures | seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [line_of(name, each) for name, each in sorted(found.items())]
    return "\n".join(lines)


def line_of(name: str, each: Counted) -> str:
    """One row of the table."""
    return (
        f"| {name} | {len(each.properties)} | {each.passing:,} | {each.invalid:,} | "
        f"{each.failing} | {each.seconds:.0f} |"
    )


def hunt(module: str, cases: int) -> subprocess.CompletedProcess[str]:
    """One module, with ``cases`` of each of its properties."""
    command = [sys.executable, "-m", "pytest", "-q", "--hypothesis-show-statistics"]
    few = max(1, cases // COSTLY.get(module, 1))
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "tests.fuzz.inside",
         f"--timeout={MODULE_DEADLINE_S}", f"tests/property/{module}.py"],
        cwd=ROOT,
        env={**os.environ, "HYPOTHESIS_PROFILE": "hunt", "HUNT_CASES": str(few)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=MODULE_DEADLINE_S,
        check=False,
    )  # fmt: skip


def main() -> int:
    """Runs the hunt."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.hunt", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--cases", type=int, default=3000, help="of each property")
    parser.add_argument("--document", type=Path, help="put the table into this file")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="modules at a time")
    arguments = parser.parse_args()
    files = arguments.files or sorted(PROPERTIES.glob("test_*.py"))
    sources = {file.stem: file.read_text() for file in files}
    if arguments.document is not None and arguments.files:
        parser.error("--document records a whole hunt, and files are a part of one")
    found: dict[str, Counted] = {}
    failed: list[str] = []
    begun_s = time.monotonic()
    with ThreadPoolExecutor(arguments.workers) as pool:
        running = {
            pool.submit(hunt, module, arguments.cases): module
            for module, text in sources.items()
            if owed(text)
        }
        for done in as_completed(running):
            module = running[done]
            said = done.result()
            here = counted(said.stdout)
            found |= here
            print(line_of(module, here.get(module, Counted())), flush=True)  # noqa: T201
            if said.returncode:
                failed.append(module)
                print(said.stdout[-6000:], flush=True)  # noqa: T201
    table = table_of(found)
    print(f"\n{table}\n\n{time.monotonic() - begun_s:.0f} seconds")  # noqa: T201
    lacking = uncounted(found, sources)
    if lacking:
        print(f"NOT COUNTED: {', '.join(lacking)}")  # noqa: T201
    elif arguments.document is not None:
        put_into_between(MARKS, arguments.document, table)
    return 1 if failed or lacking else 0


if __name__ == "__main__":
    sys.exit(main())
