"""``python -m lab.interop``: the table, printed and, when asked, kept in docs/interop.md."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from lab import build, interrupts
from lab.interop.catalogue import CASES
from lab.interop.results import Cell, Outcome, table
from lab.interop.run import DAEMONS, run_all
from lab.plan import LabFailure
from lab.waiting import Progress

BEGIN, END = "<!-- interop table -->", "<!-- end of interop table -->"


def _chosen(text: str, known: list[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or known
    for name in names:
        if name not in known:
            raise click.UsageError(f"{option} {name}: known are {', '.join(known)}")
    return [name for name in known if name in names]


@click.command()
@click.option("--only", default="", help=f"Daemons: {','.join(DAEMONS)}.")
@click.option("--cases", default="", help=f"Cases: {','.join(CASES)}.")
@click.option(
    "--write",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Keep the table in this file, between its two marks.",
)
def main(only: str, cases: str, write: Path | None) -> None:
    """Our agent beside real BGP daemons. Needs root; touches nothing but its own namespaces.

    Exit codes: 0 every cell ok or the peer's own limit, 1 a failure, 2 usage.
    """
    daemons = _chosen(only, list(DAEMONS), "--only")
    chosen = _chosen(cases, list(CASES), "--cases")
    progress = Progress()

    def tell(cell: Cell) -> None:
        words = f" ({cell.text})" if cell.text else ""
        progress.say(
            f"{cell.daemon:9} {cell.case:13} {cell.outcome.value}{words} {cell.took_s:.0f} s"
        )

    try:
        build.require_root()
        with interrupts.interruptible():
            cells = run_all(daemons, chosen, tell=tell)
            versions = {
                name: DAEMONS[name].title_and_version() if DAEMONS[name].is_installed() else name
                for name in daemons
            }
    except LabFailure as error:
        raise click.ClickException(str(error)) from None
    except interrupts.Interrupted as error:
        raise SystemExit(error.exit_code) from None
    text = table(cells, titles={name: entry[0] for name, entry in CASES.items()}, daemons=versions)
    click.echo(text)
    if write is not None:
        _keep(write, text)
    sys.exit(1 if any(cell.outcome is Outcome.FAIL for cell in cells) else 0)


def _keep(path: Path, text: str) -> None:
    head, mark, rest = path.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise click.ClickException(f"{path}: the marks {BEGIN} and {END} are not there")
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    machine = f"Linux {platform.release()}, {_processors()}, Python {platform.python_version()}"
    path.write_text(f"{head}{BEGIN}\nMeasured {when} on {machine}.\n\n{text}{END}{tail}")


def _processors() -> str:
    count = os.cpu_count() or 1
    return f"{count} processor{'' if count == 1 else 's'}"


if __name__ == "__main__":
    main()
