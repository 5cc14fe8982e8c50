"""A short soak; ``make soak`` runs the long one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.build import PROJECT_DIR
from lab.soak.figures import outcome_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
    pytest.mark.skipif(
        PROJECT_DIR.is_relative_to("/tmp"),
        reason="the soak has a /tmp of its own, and the working copy is in /tmp",
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the static launcher must be compiled"),
]
PAIRS, RESTARTS = 240, 3


def test_hundreds_of_pods_and_a_few_killed_agents_leave_nothing() -> None:
    """Launchers killed at random, agents killed under load; the oracle is clean at the end."""
    # Not in the working copy, which may be in /tmp: the run has a /tmp of its own.
    out = Path("/var/tmp") / f"slash32-soak-{os.getpid()}.json"
    command = [sys.executable, "-m", "lab.soak", "--pairs", str(PAIRS), "--restarts", str(RESTARTS)]
    try:
        done = subprocess.run(
            [*command, "--out", str(out)],
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        outcome = outcome_of(out.read_text())
    finally:
        out.unlink(missing_ok=True)
    assert outcome.samples[-1].pairs >= PAIRS
    assert outcome.samples[-1].restarts == RESTARTS
    killed = outcome.answers.get("launcher killed in ADD", 0)
    killed += outcome.answers.get("launcher killed in DEL", 0)
    assert killed >= 3, outcome.answers
    assert outcome.answers["ADD ok"] >= PAIRS // 2
