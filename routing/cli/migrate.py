"""slash32 migrate: what another network's resources say, in ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from routing.calico import Migration, from_calico
from routing.cli.exits import FINDINGS, USAGE, Exit, errors_as_exit_codes
from routing.datastore.documents import INPUT_MAX_BYTES, InvalidDocument, dump, load


@click.group()
def migrate() -> None:
    """Translate another network's resources."""


@migrate.command("from-calico")
@click.option(
    "-f", "--filename", "files", multiple=True, required=True, help="A YAML or JSON file, or -."
)
@click.option("--dry-run", is_flag=True, help="Print, and change nothing: all there is today.")
@click.option(
    "-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True
)
def from_calico_command(files: tuple[str, ...], dry_run: bool, output: str) -> None:
    """Print Calico's resources as ours, and name what cannot be taken over.

    Reads projectcalico.org/v3 and crd.projectcalico.org/v1, such as the output of
    `kubectl get ippools,bgppeers,bgpfilters,bgpconfigurations -o yaml`. What is lost is named on
    stderr and, as comments, above the YAML.

    Exit codes: 0 all taken over, 1 something was not, 2 a file cannot be read.
    """
    if not dry_run:
        raise Exit(
            "migrate from-calico only prints: give --dry-run, and what it prints to "
            "`kubectl apply -f -` or `slash32 apply -f -`",
            USAGE,
        )
    with errors_as_exit_codes():
        migration = from_calico(
            [document for name in files for document in load(_text(name), source=name)]
        )
    if output == "json":
        click.echo(json.dumps(_as_json(migration), indent=2))
    else:
        for lost in migration.lost:
            click.echo(f"# {lost}")
        if migration.documents:
            click.echo(dump(migration.documents), nl=False)
    for lost in migration.lost:
        click.echo(f"slash32: {lost}", err=True)
    if migration.lost:
        sys.exit(FINDINGS)


def _text(name: str) -> str:
    """A file's text, or standard input's. Raises InvalidDocument."""
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(INPUT_MAX_BYTES + 1)
        else:
            with open(name, "rb") as file:
                raw = file.read(INPUT_MAX_BYTES + 1)
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidDocument(name, "is not text in UTF-8") from None
    except OSError as error:
        raise InvalidDocument(name, f"cannot be read: {error.strerror}") from None


def _as_json(migration: Migration) -> Mapping[str, Any]:
    return {
        "resources": list(migration.documents),
        "lost": [
            {
                "kind": lost.kind,
                "name": lost.name,
                "field": lost.field,
                "value": lost.value,
                "why": lost.why,
                "whole": lost.is_whole,
            }
            for lost in migration.lost
        ],
    }
