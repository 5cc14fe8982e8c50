"""A campaign: every target under atheris, the corpus renewed, the table written.

    python -m tests.fuzz --cases 1000000 [--only NAME,NAME] [--keep] [--document docs/fuzzing.md]

Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz import corpus
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- campaign: written by make fuzz -->", "<!-- end of campaign -->"
SECONDS_A_CASE = 0.2
"""A campaign that takes longer than this a case, and five minutes, is stopped."""


def main() -> int:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="in all, shared by weight")
    parser.add_argument("--only", default="", help="targets, comma-separated")
    parser.add_argument("--keep", action="store_true", help="renew tests/fuzz/corpus")
    parser.add_argument("--document", type=Path, help="put the table into this file")
    parser.add_argument(
        "--results", type=Path, help="a file that remembers targets from one run to the next"
    )
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or list(TARGETS)
    targets = [TARGETS[name] for name in names]
    weights = sum(target.weight for target in targets)
    results: dict[str, dict[str, Any]] = {}
    if arguments.results is not None and arguments.results.exists():
        results = json.loads(arguments.results.read_text())
    lacking = {target.name: why for target in targets if (why := target.missing()) is not None}
    for name, why in lacking.items():
        print(f"{name}: NOT FUZZED, {why}", flush=True)  # noqa: T201
    for target in targets:
        if target.name in lacking:
            continue
        cases = max(200, -(-arguments.cases * target.weight // weights))
        results[target.name] = campaign(target, cases, keep=arguments.keep)
        print(line_of(target, results[target.name]), flush=True)  # noqa: T201
        for where, found in results[target.name]["findings"].items():
            print(f"  {where}: {found['what']}\n    {found['input'][:400]}")  # noqa: T201
        if arguments.results is not None:
            arguments.results.write_text(json.dumps(results))
    table = table_of([TARGETS[name] for name in TARGETS if name in results], results)
    print(f"\n{table}")  # noqa: T201
    if arguments.document is not None:
        put_into(arguments.document, table)
    return 1 if any(result["findings"] for result in results.values()) else 0


def campaign(target: Target, cases: int, *, keep: bool) -> dict[str, Any]:
    """One target: what guided.py says, and how large its corpus is now."""
    with tempfile.TemporaryDirectory(prefix="slash32-fuzz-") as name:
        directory = Path(name)
        for place in ("seeds", "found"):
            (directory / place).mkdir()
        seeds = [*target.seeds(), *corpus.read(target.name)]
        for number, seed in enumerate(seeds):
            (directory / "seeds" / str(number)).write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzz.guided", target.name, str(cases), name]
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300 + cases * SECONDS_A_CASE,
            check=False,
        )
        written = directory / "result.json"
        if not written.exists():
            raise SystemExit(f"{target.name}: no result; {done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(written.read_text())
        found = [each.read_bytes() for each in (directory / "found").iterdir()]
    if keep:
        corpus.write(target.name, corpus.chosen(target, [*corpus.read(target.name), *found]))
    result["corpus"] = len(corpus.read(target.name))
    return result


def line_of(target: Target, result: dict[str, Any]) -> str:
    """One row of the table."""
    share = result["accepted"] / max(1, result["cases"])
    return (
        f"| {target.name} | {target.what} | {result['cases']:,} | {share:.1%} | "
        f"{result['seconds']:.0f} | {result['slowest_s'] * 1000:.0f} | {result['corpus']} | "
        f"{len(result['findings'])} |"
    )


def table_of(targets: list[Target], results: dict[str, dict[str, Any]]) -> str:
    """All rows, and their sum."""
    cases = sum(result["cases"] for result in results.values())
    seconds = sum(result["seconds"] for result in results.values())
    findings = sum(len(result["findings"]) for result in results.values())
    lines = [
        f"{cases:,} cases in {seconds / 60:.0f} minutes, {findings} findings "
        f"(Python {platform.python_version()}, atheris {version('atheris')}).",
        "",
        "| target | what it reads | cases | accepted | seconds | slowest, ms | kept | findings |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        *(line_of(target, results[target.name]) for target in targets),
    ]
    return "\n".join(lines)


def put_into(path: Path, table: str) -> None:
    """Replaces what stands between the campaign's two marks."""
    put_into_between((BEGIN, END), path, table)


def put_into_between(marks: tuple[str, str], path: Path, table: str) -> None:
    """Replaces what stands between two marks of a page."""
    begin, end = marks
    text = path.read_text()
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not between.search(text):
        raise SystemExit(f"{path} has no place for the table")
    path.write_text(between.sub(lambda _: f"{begin}\n{table}\n{end}", text))


if __name__ == "__main__":
    sys.exit(main())
