"""A real kube-apiserver for the whole session, where KUBEBUILDER_ASSETS leads to one."""

from __future__ import annotations

import pytest

from tests.fakes.kube_apiserver import CRDS, SKIPPED, assets, running


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """(a kube-apiserver with our CRDs, their collections), or a skip."""
    directory = assets()
    if directory is None:
        pytest.skip(SKIPPED)
    if not CRDS.is_dir():
        pytest.skip(f"{CRDS} is not there")
    with running(directory, tmp_path_factory.mktemp("kube-apiserver")) as server:
        yield server, server.install()
