"""--store, --run-dir and --state-dir, for every command that has them; apart, for they must cost no
import."""

from __future__ import annotations

from pathlib import Path

import click

DEFAULT_STORE = "/var/lib/slash32/store.db"

store_option = click.option(
    "--store",
    envvar="SLASH32_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    help="The embedded store's path, or kubernetes, by KUBECONFIG (also SLASH32_STORE).",
)
run_dir_option = click.option(
    "--run-dir",
    envvar="SLASH32_RUN_DIR",
    default="/run/slash32",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The agent's run directory: sockets and exabgp.conf (SLASH32_RUN_DIR).",
)
state_dir_option = click.option(
    "--state-dir",
    envvar="SLASH32_STATE_DIR",
    default="/var/lib/slash32",
    show_default=True,
    type=click.Path(path_type=Path),
    help="What may outlive a reboot: journal, cool-down, cache (SLASH32_STATE_DIR).",
)
