"""docs/commands.md is what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from routing.cli.main import COMMANDS
from routing.cli.reference import markdown

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_reference_is_what_the_commands_say():
    """``make docs`` writes it anew, and it is asked as there: click remembers of a command the help
    option that it had when it was first run, here perhaps without the others above it."""
    command = [sys.executable, "-m", "routing.cli.reference"]
    written = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert written == PAGE.read_text(), "docs/commands.md is stale: run `make docs`"


def test_every_command_is_in_it():
    """But those that only other commands call."""
    text = PAGE.read_text()
    for name, (_, _, summary) in COMMANDS.items():
        assert not summary or f"## slash32 {name}" in text


def test_a_change_of_an_option_would_be_seen(monkeypatch):
    """The control: the page follows the code."""
    from routing.cli.topology import topology

    monkeypatch.setattr(topology, "params", [*topology.params, click.Option(["--new-one"])])
    assert "--new-one" in markdown()
    assert markdown() != PAGE.read_text()
