"""``python -m lab.soak``: 20,000 ADD/DEL pairs and 200 agents' ends on one node; what grows?

Exit 0 when everything is flat and the oracle finds nothing, 1 when not.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

from lab import build, teardown
from lab.chaos.world import World
from lab.interrupts import Interrupted, interruptible
from lab.plan import LabFailure, Shape
from lab.soak.document import document
from lab.soak.figures import Outcome, outcome_of, problems
from lab.soak.plot import svg
from lab.soak.run import Size, Soak
from lab.waiting import Progress

COOLDOWN_S = 2.0
INSIDE = "SLASH32_SOAK_INSIDE"
HIDDEN = Path("/tmp")  # noqa: S108 - what is hidden, not what is used


def soak(name: str, size: Size, *, progress: Progress) -> Outcome:
    """In a lab of its own, with a router, that is taken down whatever happens.

    Raises:
        LabFailure: there was no lab to run in.
    """
    lab = build.claim(name, Shape(nodes=1, tors=1, pods=1), progress=Progress(io.StringIO()))
    try:
        # A minute's pods are a day's here; with the usual rest they would need every block.
        lab.agent_options = ("--cooldown", f"{COOLDOWN_S:g}")
        build.up(lab)
        world = World(lab)
        world.settled()
        return Soak(world, size, progress).run()
    finally:
        teardown.down(lab)


def enter(out: Path) -> int:
    """Runs this again with a /tmp of its own, so that what is left there is this run's."""
    if out.resolve().is_relative_to(HIDDEN):
        print(f"soak: --out {out}: the run has a {HIDDEN} of its own", file=sys.stderr)
        return 2
    script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    again = [sys.executable, "-m", "lab.soak", *sys.argv[1:]]
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", script, str(HIDDEN), *again],
        env={**os.environ, INSIDE: f"k{os.getpid()}"},
        check=False,
    )
    return done.returncode


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.split("\n")[0])
    whole = Size()
    parser.add_argument("--pairs", type=int, default=whole.pairs)
    parser.add_argument("--restarts", type=int, default=whole.restarts)
    parser.add_argument("--seed", type=int, default=whole.seed)
    parser.add_argument("--out", type=Path, default=Path("build/soak.json"))
    parser.add_argument("--document", type=Path, help="write it up there, the picture beside it")
    parser.add_argument("--again", type=Path, help="judge and draw this earlier run, run nothing")
    arguments = parser.parse_args()
    if not arguments.again and INSIDE not in os.environ:
        return enter(arguments.out)
    progress = Progress()
    try:
        if arguments.again:
            outcome = outcome_of(arguments.again.read_text())
        else:
            with interruptible():
                build.check_machine(Shape())
                size = Size(arguments.pairs, arguments.restarts, arguments.seed)
                outcome = soak(os.environ[INSIDE], size, progress=progress)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(outcome.as_json())
    except LabFailure as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        return error.exit_code
    if arguments.document:
        picture = arguments.document.with_suffix(".svg")
        last = outcome.samples[-1]
        title = f"{last.pairs:,} ADD/DEL pairs; agents killed in the shaded part"
        picture.write_text(svg(outcome.samples, title))
        arguments.document.write_text(document(outcome, picture.name))
    found = problems(outcome)
    for sentence in found:
        print(f"soak: {sentence}")
    print(f"soak: {'flat' if not found else 'not flat'} after {outcome.seconds:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
