"""--store, for every command that reads or writes the store; apart, for it must cost no import."""

from __future__ import annotations

import click

DEFAULT_STORE = "/var/lib/slash32/store.db"

store_option = click.option(
    "--store",
    envvar="SLASH32_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    help="The embedded store's path, or kubernetes, by KUBECONFIG (also SLASH32_STORE).",
)
