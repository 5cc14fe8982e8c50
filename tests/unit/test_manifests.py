"""What an operator is told to apply can be applied, and README shows the same."""

from __future__ import annotations

import textwrap
from pathlib import Path

from click.testing import CliRunner

from routing.cli.resources import apply, get

ROOT = Path(__file__).parents[2]
NETWORK = ROOT / "manifests" / "network.yaml"


def test_the_example_network_is_accepted(tmp_path: Path):
    """By the command README names, on a fresh store."""
    store = ["--store", str(tmp_path / "store.db")]
    done = CliRunner().invoke(apply, ["-f", str(NETWORK), *store])
    assert done.exit_code == 0, done.output
    assert "ippool/pods created" in done.output
    shown = CliRunner().invoke(get, ["bgppeer", "tor", *store])
    assert "192.0.2.1" in shown.output


def test_readme_shows_the_example_as_it_is():
    """Two copies that differ are one lie."""
    _comment, _, body = NETWORK.read_text().partition("\n")
    assert (
        textwrap.indent(body, "       ", lambda _line: True).rstrip()
        in (ROOT / "README.md").read_text()
    )
