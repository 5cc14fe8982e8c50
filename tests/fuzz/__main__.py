"""A campaign: every target under atheris, the corpus renewed, the table written.

    python -m tests.fuzz --cases 1000000 [--only NAME,NAME] [--keep] [--document docs/fuzzing.md]

Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import campaign
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- campaign: written by make fuzz -->", "<!-- end of campaign -->"
CASES_MIN = 200


def main() -> int:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="in all, shared by weight")
    parser.add_argument("--only", default="", help="targets, comma-separated")
    parser.add_argument("--keep", action="store_true", help="renew tests/fuzz/corpus")
    parser.add_argument(
        "--document", type=Path, help="put the table into this file; of one run over all targets"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="targets at a time")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or list(TARGETS)
    if arguments.document is not None and names != list(TARGETS):
        parser.error("--document records a whole campaign, and --only is a part of one")
    targets = [TARGETS[name] for name in names]
    lacking = {target.name: why for target in targets if (why := target.missing()) is not None}
    for name, why in lacking.items():
        print(f"{name}: NOT FUZZED, {why}", flush=True)  # noqa: T201
    shares = {
        name: cases
        for name, cases in cases_of(targets, arguments.cases).items()
        if name not in lacking
    }
    head = commit()
    begun_s = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    table = ""
    # A process a target: each opens sockets and loops, and switches logging off for itself.
    with ProcessPoolExecutor(
        arguments.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        running = {
            pool.submit(campaign, name, cases, keep=arguments.keep): name
            for name, cases in shares.items()
        }
        for done in as_completed(running):
            name = running[done]
            results[name] = done.result()
            print(line_of(TARGETS[name], results[name]), flush=True)  # noqa: T201
            for where, found in results[name]["findings"].items():
                print(f"  {where}: {found['what']}\n    {found['input'][:400]}", flush=True)  # noqa: T201
            # After each, so that a run which somebody ends is not lost; it says how far it came.
            table = table_of(
                results, time.monotonic() - begun_s, head, arguments.workers,
                of=len(shares), lacking=lacking,
            )  # fmt: skip
            if arguments.document is not None:
                put_into(arguments.document, table)
    print(f"\n{table}")  # noqa: T201
    return 1 if any(result["findings"] for result in results.values()) else 0


def cases_of(targets: list[Target], cases: int) -> dict[str, int]:
    """How many of ``cases`` each target gets, in the order in which they are run: those of many
    cases first, which are cheap, so that a run which somebody ends has had most of its cases."""
    weights = sum(target.weight for target in targets)
    return {
        target.name: max(CASES_MIN, -(-cases * target.weight // weights))
        for target in sorted(targets, key=lambda each: -each.weight)
    }


def commit() -> str:
    """Of the code that is run, as git names it; "no commit" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return done.stdout.strip()


def line_of(target: Target, result: dict[str, Any]) -> str:
    """One row of the table."""
    share = result["accepted"] / max(1, result["cases"])
    return (
        f"| {target.name} | {target.what} | {result['cases']:,} | {share:.1%} | "
        f"{result['seconds']:.0f} | {result['slowest_s'] * 1000:.0f} | {result['corpus']} | "
        f"{len(result['findings'])} |"
    )


def table_of(
    results: dict[str, dict[str, Any]],
    took_s: float,
    commit: str,
    workers: int,
    *,
    of: int,
    lacking: dict[str, str],
) -> str:
    """All rows in the registry's order, their sum, and what the machine had nothing for."""
    cases = sum(result["cases"] for result in results.values())
    findings = sum(len(result["findings"]) for result in results.values())
    end = "" if len(results) == of else f", ended after {len(results)} of {of} targets"
    lines = [
        f"{cases:,} cases in one run of {took_s / 60:.0f} minutes{end}, {findings} findings "
        f"({commit}; {workers} at a time; Python {platform.python_version()}, "
        f"atheris {version('atheris')}).",
        "",
        "| target | what it reads | cases | accepted | seconds | slowest, ms | kept | findings |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        *(line_of(TARGETS[name], results[name]) for name in TARGETS if name in results),
        *(f"| {name} | not fuzzed: {why} | 0 | | | | | |" for name, why in lacking.items()),
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
