"""What an operator is told to apply can be applied, and README shows the same."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml
from click.testing import CliRunner

from lab.chaos.memory import LIMIT_MIB
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


def test_no_container_gets_less_memory_than_was_tried():
    """Row O10 of the fault matrix runs agent and speaker in as much as this."""
    for name in ("agent.yaml", "install.yaml"):
        documents = yaml.safe_load_all((ROOT / "manifests" / name).read_text())
        pods = (each for each in documents if each["kind"] == "DaemonSet")
        containers = next(pods)["spec"]["template"]["spec"]["containers"]
        limits = {each["name"]: each["resources"]["limits"]["memory"] for each in containers}
        assert set(limits) == {"agent", "speaker"}
        assert all(int(limit.removesuffix("Mi")) >= LIMIT_MIB for limit in limits.values())
