"""Runs cases: a stand per kind of daemon, used again from case to case unless one failed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from lab.interop.bird import Bird
from lab.interop.catalogue import CASES
from lab.interop.daemon import Daemon
from lab.interop.frr import Frr
from lab.interop.gobgp import GoBgp
from lab.interop.openbgpd import OpenBgpd
from lab.interop.results import Cell, Outcome
from lab.interop.stand import Stand
from lab.plan import LabFailure

DAEMONS: Mapping[str, type[Daemon]] = {
    daemon.name: daemon for daemon in (Bird, Frr, GoBgp, OpenBgpd)
}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a daemon cannot do. The case is run all the same: it must fail as ``sign`` says.

    So a limit that a newer version no longer has is noticed (the cell is then ok), and another
    failure is not taken for it.
    """

    reason: str
    sign: str


LIMITS: Mapping[tuple[str, str], Limit] = {
    ("gobgp", "refresh"): Limit(
        "it keeps what it received and reads that again (`softresetin`); no command of its client "
        "sends ROUTE-REFRESH",
        r"our answer to ROUTE-REFRESH: .*no UPDATE again",
    ),
    ("openbgpd", "both"): Limit(
        "on a session over IPv4 the Linux version writes the address of its loopback, ::1, as the "
        "next hop of IPv6 routes, whatever `set nexthop` says; give IPv6 a session of its own",
        r"their routes in our kernel: .*fd44:10:244::100/122 goes over nothing",
    ),
    ("openbgpd", "gr-helper"): Limit(
        "it announces graceful restart for no address family (only End-of-RIB), so nobody may "
        "keep its routes",
        r"goes over nothing while the peer restarts",
    ),
}


class Runner:
    """Runs cases of one kind of daemon; a context manager that leaves nothing behind."""

    def __init__(self, daemon: type[Daemon]) -> None:
        self.daemon = daemon
        self._stand: Stand | None = None
        self._number = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the stand. Raises LabFailure when something is left."""
        stand, self._stand = self._stand, None
        if stand is not None and (left := stand.close()):
            raise LabFailure("; ".join(left))

    def _ready(self) -> Stand:
        if self._stand is None:
            self._number += 1
            stand = Stand(self.daemon, tag=f"s32i-{os.getpid()}-{self.daemon.name}{self._number}")
            self._stand = stand
            stand.build()
        return self._stand

    def run(self, case: str) -> Cell:
        """One cell; a failure ends the stand, so that it cannot spoil the next case."""
        name = self.daemon.name
        if not self.daemon.is_installed():
            return Cell(name, case, Outcome.MISSING, f"apt-get install {self.daemon.package}")
        begun_s = time.monotonic()
        limit = LIMITS.get((name, case))
        try:
            with ExitStack() as cleanup:
                cleanup.callback(self.close)
                stand = self._ready()
                text = CASES[case][1](stand)
                stand.clear()
                cleanup.pop_all()
        except LabFailure as error:
            took_s = time.monotonic() - begun_s
            if limit is not None and re.search(limit.sign, str(error)):
                return Cell(name, case, Outcome.LIMIT, limit.reason, took_s)
            return Cell(name, case, Outcome.FAIL, str(error), took_s)
        except Exception as error:  # a fault in here; the other cells are worth having
            took_s = time.monotonic() - begun_s
            return Cell(name, case, Outcome.FAIL, f"{type(error).__name__}: {error}", took_s)
        return Cell(name, case, Outcome.OK, text, time.monotonic() - begun_s)


def run_all(
    daemons: Sequence[str], cases: Sequence[str], *, tell: Callable[[Cell], None]
) -> list[Cell]:
    """Every case with every daemon, one after another."""
    cells: list[Cell] = []
    for name in daemons:
        with Runner(DAEMONS[name]) as runner:
            for case in cases:
                cell = runner.run(case)
                tell(cell)
                cells.append(cell)
    return cells
