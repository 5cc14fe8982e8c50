"""slash32 version and completion."""

from __future__ import annotations

import platform

import click


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
)
def version(output: str) -> None:
    """Versions of slash32, Python and ExaBGP."""
    from routing.cli.main import version as own

    found = {"slash32": own(), "python": platform.python_version(), "exabgp": _exabgp()}
    if output != "table":
        from routing.cli.output import show_document

        show_document(found, output)
    else:
        for name, number in found.items():
            click.echo(f"{name:<8} {number}")


def _exabgp() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("exabgp")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script: for bash, `source <(slash32 completion bash)`."""
    from click.shell_completion import get_completion_class

    from routing.cli.main import main

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    # source() would ask the shell for its version; the script itself needs no answer.
    maker = kind(main, {}, "slash32", "_SLASH32_COMPLETE")
    click.echo(maker.source_template % maker.source_vars())
