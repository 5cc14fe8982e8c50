"""docs/commands.md, from the commands themselves: ``python -m routing.cli.reference``.

A page that somebody writes beside the code is wrong after a month; this one is compared with the
code by a test, and ``make docs`` writes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from routing.cli.main import main

HEAD = """# Commands

Written by `make docs` from the commands themselves; `slash32 COMMAND --help` says the same.

Exit codes are the same everywhere: 0 healthy or done, 1 findings, 2 usage, 3 agent or store
unreachable, and where a command says so 4 (only part of the nodes answered) and 5 (a wait was
over). Data goes to standard output, everything else to standard error.
"""


def markdown() -> str:
    """The whole page."""
    root = click.Context(main, info_name="slash32", max_content_width=1000)
    commands = list(_walk(main, root))
    contents = "\n".join(f"- [`{path}`](#{_anchor(path)}) {short}" for path, short, _ in commands)
    return "\n".join([HEAD, contents, "", *(text for _, _, text in commands)])


def _walk(group: click.Group, context: click.Context) -> Iterator[tuple[str, str, str]]:
    """(path, summary, section) of every command that can be run, in the order of ``--help``."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _walk(command, inner)
        else:
            path = inner.command_path
            yield path, command.get_short_help_str(limit=200), _section(path, command, inner)


def _anchor(path: str) -> str:
    return path.replace(" ", "-")


def _section(path: str, command: click.Command, context: click.Context) -> str:
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc((command.help or "").partition("\f")[0]).replace("\b\n", "")
    lines = [f"## {path}", "", f"    {usage}", "", text, ""]
    rows = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    if rows:
        lines += ["| option | |", "|---|---|"]
        lines += [f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text for a cell of a table: one line, no bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    click.echo(markdown(), nl=False)
