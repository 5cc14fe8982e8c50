"""A part of `make interop` that fits: every daemon, and every kind of case with one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from lab.interop.catalogue import CASES
from lab.interop.results import Outcome
from lab.interop.run import DAEMONS, Runner

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

CHOSEN = [
    *(("bird", case) for case in ("both", "md5", "gr-helper", "hold", "ecmp")),
    *(("frr", case) for case in ("both", "gtsm", "gr-restarter", "communities", "refresh")),
    *(("gobgp", case) for case in ("both", "wrong-md5", "asn4")),
    *(("openbgpd", case) for case in ("ipv4", "ipv6", "max-prefix", "shutdown")),
]


def test_every_case_is_chosen_once_at_least() -> None:
    """What is left out here is seen by nobody but who runs `make interop`."""
    assert {case for _, case in CHOSEN} == set(CASES)
    assert {daemon for daemon, _ in CHOSEN} == set(DAEMONS)


@pytest.fixture(scope="module")
def runner_of() -> Iterator[Callable[[str], Runner]]:
    """One stand for the cases of a daemon, built when the first of them runs."""
    runners: dict[str, Runner] = {}
    with ExitStack() as stack:

        def of(name: str) -> Runner:
            if name not in runners:
                runners[name] = stack.enter_context(Runner(DAEMONS[name]))
            return runners[name]

        yield of


@pytest.mark.parametrize(("daemon", "case"), CHOSEN, ids=[f"{d}-{c}" for d, c in CHOSEN])
def test_a_daemon_and_we_understand_each_other(
    runner_of: Callable[[str], Runner], daemon: str, case: str
) -> None:
    """The cell is ok; a limit of the peer's would be no proof of anything of ours."""
    if not DAEMONS[daemon].is_installed():
        pytest.skip(f"needs {DAEMONS[daemon].package}")
    cell = runner_of(daemon).run(case)
    assert (cell.outcome, cell.text if cell.outcome is not Outcome.OK else "") == (Outcome.OK, "")
