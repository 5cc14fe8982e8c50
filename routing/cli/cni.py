"""``slash32 cni``: puts the CNI plugin and its configuration on this host, or takes them away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cni import install as installer
from routing.cli.exits import FINDINGS, USAGE, Exit

_DIRECTORY = click.Path(file_okay=False, path_type=Path)

bin_dir_option = click.option(
    "--bin-dir",
    type=_DIRECTORY,
    default=Path("/opt/cni/bin"),
    show_default=True,
    help="The runtime's plugin directory.",
)
conf_dir_option = click.option(
    "--conf-dir",
    type=_DIRECTORY,
    default=Path("/etc/cni/net.d"),
    show_default=True,
    help="The runtime's configuration directory.",
)
network_option = click.option(
    "--network",
    default=installer.DEFAULT_NETWORK,
    show_default=True,
    help="Name of the network.",
)


@contextmanager
def _refusals_as_exit_codes() -> Iterator[None]:
    try:
        yield
    except installer.InstallError as error:
        raise Exit(str(error), USAGE) from None
    except OSError as error:
        raise Exit(f"{error.filename}: {error.strerror}", FINDINGS) from None


@click.group()
def cni() -> None:
    """Install or remove the CNI plugin on this host."""


@cni.command()
@bin_dir_option
@conf_dir_option
@click.option(
    "--run-dir",
    type=_DIRECTORY,
    default=installer.DEFAULT_RUN_DIR,
    show_default=True,
    envvar="SLASH32_RUN_DIR",
    help="The agent's run directory; the plugin finds the agent's socket there.",
)
@network_option
@click.option(
    "--launcher",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Install this static launcher (python -m cni.launcher.build --out FILE) instead of the "
    "Python plugin.",
)
def install(
    bin_dir: Path, conf_dir: Path, run_dir: Path, network: str, launcher: Path | None
) -> None:
    """Install the plugin, then the configuration that makes the runtime use it."""
    with _refusals_as_exit_codes():
        paths = installer.install(
            bin_dir=bin_dir,
            conf_dir=conf_dir,
            run_dir=run_dir.absolute(),
            network=network,
            launcher=launcher,
        )
        if installer.is_our_plugin(paths.loopback):
            click.echo(f"installed {paths.loopback}")
        elif not paths.loopback.exists():
            click.echo(
                f"{paths.loopback} is missing: Kubernetes' runtimes need it, and the slash32 "
                f"plugin can be it only with --run-dir {installer.DEFAULT_RUN_DIR}",
                err=True,
            )
        click.echo(f"installed {paths.plugin}")
        click.echo(f"installed {paths.conflist}")


@cni.command()
@bin_dir_option
@conf_dir_option
@network_option
def uninstall(bin_dir: Path, conf_dir: Path, network: str) -> None:
    """Remove the configuration, then the plugin; pods that run keep their network."""
    with _refusals_as_exit_codes():
        removed = installer.uninstall(bin_dir=bin_dir, conf_dir=conf_dir, network=network)
        for path in removed:
            click.echo(f"removed {path}")
        if not removed:
            click.echo("nothing to remove")
