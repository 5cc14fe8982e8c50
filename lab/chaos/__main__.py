"""``python -m lab.chaos``: runs rows of the fault matrix in labs of its own, and prints the table.

Exit 0 when every row passed or was skipped (this machine lacks what it needs), 1 when one did not,
2 when a row is asked for that is not there.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import cast

import structlog

from lab import build, teardown
from lab.chaos import (
    control_plane,
    disks,
    executable,
    flood,
    hostile,
    intruders,
    kernel,
    links,
    many_routes,
    memory,
    misbehaving_api,
    mistaken_peers,
    plugin,
    restarts,
    router_kinds,
    secrets,
    security,
    stale_pods,
    suites,
    topologies,
    unwelcome,
    wires,
)
from lab.chaos.rows import Result, Row, Skipped, Stage, Verdict, judge_controls, with_controls
from lab.chaos.table import document, inserted, line
from lab.chaos.world import World
from lab.interrupts import Interrupted, interruptible
from lab.plan import LabFailure, Shape
from lab.waiting import Progress

MODULES = (
    restarts,
    router_kinds,
    secrets,
    links,
    hostile,
    intruders,
    kernel,
    plugin,
    executable,
    flood,
    many_routes,
    memory,
    misbehaving_api,
    mistaken_peers,
    control_plane,
    disks,
    security,
    stale_pods,
    suites,
    topologies,
    unwelcome,
    wires,
)

ROWS: list[Row] = [row for module in MODULES for row in module.ROWS]

SHAPES = {
    Stage.ONE_TOR: Shape(nodes=3, tors=1, pods=1),
    Stage.TWO_TORS: Shape(nodes=2, tors=2, pods=1),
    Stage.REFLECTORS: Shape(nodes=3, tors=2, pods=1, topology="rr"),
    Stage.MESH: Shape(nodes=3, tors=1, pods=1, topology="mesh"),
    Stage.KUBERNETES: Shape(nodes=3, tors=1, pods=1, store="kubernetes"),
}


@contextmanager
def world_of(stage: Stage) -> Iterator[World | None]:
    """A lab of that stage, up, converged and quiet; taken down whatever happens."""
    if stage is Stage.NO_LAB:
        yield None
        return
    progress = Progress(io.StringIO())
    lab = build.claim(f"x{os.getpid()}", SHAPES[stage], progress=progress)
    try:
        build.up(lab)
        world = World(lab)
        world.settled()
        yield world
    finally:
        teardown.down(lab)


def run_row(row: Row, world: World | None) -> Result:
    """One experiment, and the oracle after it. A failure of the experiment is its problem."""
    verdict = Verdict()
    skipped, begun_s = "", time.monotonic()
    try:
        if world:
            # What the row before left in motion would be held against this one.
            world.at_ease()
        # A row of a stage without a lab looks at no world.
        row.run(cast(World, world), verdict)
        findings = world.at_rest() if world else []
        verdict.must(not findings, f"the oracle finds: {'; '.join(findings[:3])}")
        told = secrets.token_in_logs(world) if world else []
        verdict.must(not told, "; ".join(told[:3]))
    except Skipped as error:
        skipped = str(error)
    except Exception as error:
        # Whatever an experiment fails of is this row's finding; the others still run.
        verdict.must(False, f"{type(error).__name__}: {error}")
    took_s = time.monotonic() - begun_s
    return Result(row, tuple(verdict.measured), tuple(verdict.problems), took_s, skipped)


def run_rows(rows: list[Row], *, say: Progress) -> list[Result]:
    """Runs rows, those of one stage in one lab. A lab that a row left broken is built anew."""
    results: list[Result] = []
    by_stage = sorted(rows, key=lambda row: (list(Stage).index(row.stage), row.order))
    for stage, group in groupby(by_stage, key=lambda row: row.stage):
        say.say(f"lab: {stage.value}")
        with ExitStack() as labs:
            world = labs.enter_context(world_of(stage))
            for row in group:
                result = run_row(row, world)
                say.say(line(result))
                results.append(result)
                if result.failed or not row.leaves_lab:
                    labs.pop_all().close()
                    world = labs.enter_context(world_of(stage))
    return sorted(judge_controls(results), key=lambda result: result.row.order)


def chosen(names: str, *, quick: bool) -> list[Row]:
    """The rows of a list such as ``R1,L,K2``; a letter alone is its whole group.

    Raises:
        KeyError: there is no such row.
    """
    if not names:
        return with_controls(
            [row for row in ROWS if (row.is_quick or not quick) and not row.is_long], ROWS
        )
    wanted = []
    for name in names.replace(" ", ",").split(","):
        found = [
            row
            for row in ROWS
            if row.id == name or (len(name) == 1 and row.id[0] == name and not row.is_long)
        ]
        if name and not found:
            raise KeyError(name)
        wanted += found
    return with_controls(wanted, ROWS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="", help="such as R1,L,K2; a letter is its whole group")
    parser.add_argument("--quick", action="store_true", help="the rows that `make test` runs")
    parser.add_argument(
        "--document",
        type=Path,
        help="also write the table there, as Markdown; rows that are not run keep their line",
    )
    parser.add_argument(
        "--into", type=Path, help="also put the table between that document's two markers"
    )
    arguments = parser.parse_args()
    try:
        rows = chosen(arguments.rows, quick=arguments.quick)
    except KeyError as error:
        names = " ".join(row.id for row in ROWS)
        print(f"chaos: there is no row {error}; there are {names}", file=sys.stderr)
        return 2
    # Rows that run our code in this process would fill the table with its log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with interruptible():
            build.check_machine(Shape())
            results = run_rows(rows, say=Progress())
    except LabFailure as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        return error.exit_code
    failed = [result.row.id for result in results if result.failed]
    skipped = [result.row.id for result in results if result.skipped]
    if arguments.document:
        path = arguments.document
        path.write_text(document(results, ROWS, path.read_text() if path.exists() else ""))
    if arguments.into:
        arguments.into.write_text(inserted(arguments.into.read_text(), results))
    passed = len(results) - len(failed) - len(skipped)
    print(f"chaos: {passed} of {len(results)} rows passed")
    if skipped:
        print(f"chaos: could not be run here: {' '.join(skipped)}")
    if failed:
        print(f"chaos: not passed: {' '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
