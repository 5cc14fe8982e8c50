"""The lab that the tests with real runtimes share; building it costs more than most of them."""

import os

import pytest

from tests.e2e.observed import lab_of


@pytest.fixture(scope="session")
def runtime_lab():
    """Two nodes, a router and the client behind it, without pods."""
    with lab_of(f"rt-{os.getpid()}", nodes=2) as lab:
        yield lab
