"""The quick rows of the fault matrix (``make chaos`` runs all of them)."""

from __future__ import annotations

import logging
import os
import shutil

import pytest

from lab.chaos.__main__ import chosen, run_rows
from lab.chaos.table import line
from lab.waiting import Progress

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.netns,
    pytest.mark.bird,
    pytest.mark.exabgp,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(shutil.which("bird") is None, reason="the lab's routers run BIRD 2"),
]

log = logging.getLogger(__name__)


def test_the_quick_rows_pass() -> None:
    """Each does its damage in one lab, with its controls and the oracle after it."""
    results = run_rows(chosen("", quick=True), say=Progress())
    for result in results:
        log.info(line(result))
    assert [line(result) for result in results if not result.passed] == []
