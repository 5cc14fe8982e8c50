"""The ``slash32`` command. Sub-commands are imported when they are called, by name.

A status that takes 200 ms because it loaded the BGP code is a status nobody polls; and ``lab`` is
a guest on top of routing: an installation without it still has every other command.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping

import click

COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "agent": ("routing.cli.agent", "agent", "Run this node's routing agent."),
    "controller": ("routing.cli.controller", "controller", "Run the cluster's controller."),
    "speaker": ("routing.cli.speaker", "speaker", "Run ExaBGP for this node's agent."),
    "status": ("routing.cli.status", "status", "A node on one screen, or all nodes."),
    "peers": ("routing.cli.inspect", "peers", "BGP sessions."),
    "routes": ("routing.cli.inspect", "routes", "Routes: wanted, in the kernel, rejected."),
    "blocks": ("routing.cli.inspect", "blocks", "Address blocks and who owns them."),
    "pods": ("routing.cli.inspect", "pods", "Pods of this node and their addresses."),
    "explain": ("routing.cli.explain", "explain", "Why a packet arrives, or at which step not."),
    "ipam": ("routing.cli.ipam", "ipam", "Pools and their use, an audit, giving back."),
    "history": ("routing.cli.history", "history", "What changed, when and why."),
    "diff": ("routing.cli.history", "diff", "What is other than it was."),
    "doctor": ("routing.cli.doctor", "doctor", "Is this machine fit, before and after installing."),
    "diag": ("routing.cli.diag", "diag", "All that a ticket needs, without secrets."),
    "evidence": ("routing.cli.evidence", "evidence", ""),
    "topology": ("routing.cli.topology", "topology", "BGP of the cluster as a picture."),
    "apply": ("routing.cli.resources", "apply", "Create or change resources from YAML."),
    "get": ("routing.cli.resources", "get", "Show resources."),
    "delete": ("routing.cli.resources", "delete", "Delete resources."),
    "node": ("routing.cli.node", "node", "Take a node out of service (drain), and back."),
    "tor-config": ("routing.cli.torconfig", "tor_config", "The router's side of our sessions."),
    "cni": ("routing.cli.cni", "cni", "Install or remove the CNI plugin on this host."),
    "uninstall": ("routing.cli.uninstall", "uninstall", "Take slash32 off this machine."),
    "version": ("routing.cli.about_itself", "version", "Versions of what runs here."),
    "completion": ("routing.cli.about_itself", "completion", "A completion script for a shell."),
    "migrate": ("routing.cli.migrate", "migrate", "Translate another network's resources."),
    "lab": ("lab.commands", "lab", "A whole cluster in network namespaces."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order an operator meets them, not in alphabetical order."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands from the table above, without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items() if entry[2]])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", "wants_version", is_flag=True, is_eager=True, expose_value=False,
    callback=lambda context, _option, given: _print_version(context) if given else None,
    help="Show the version and exit.",
)  # fmt: skip
def main() -> None:
    """slash32: a BGP-routed, pure layer-3 pod network.

    Exit codes: 0 healthy, 1 findings, 2 usage, 3 agent or store unreachable, 4 partial answer,
    5 timeout of a wait.
    """


def _print_version(context: click.Context) -> None:
    click.echo(f"slash32 {version()}")
    context.exit()


def kubectl_main() -> None:
    """``kubectl slash32 ...`` (an executable kubectl-slash32 on PATH): the store is the API that
    kubectl speaks to, and nodes are asked in their agents' pods, unless options say otherwise."""
    os.environ.setdefault("SLASH32_VIA", "kubectl")
    os.environ.setdefault("SLASH32_STORE", "kubernetes")
    main(prog_name="kubectl slash32")


def version() -> str:
    """The installed version, or 0+source when run from a checkout that is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("slash32")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


if __name__ == "__main__":
    main()
