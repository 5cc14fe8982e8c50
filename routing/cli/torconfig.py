"""slash32 tor-config: the router's part of our sessions, printed from the live resources."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from routing.cli.exits import USAGE, Exit, errors_as_exit_codes
from routing.cli.resources import with_store
from routing.cli.resources_options import store_option
from routing.datastore.fields import Malformed, parse_cidr
from routing.datastore.selector import Selector, SelectorError
from routing.torconfig.side import RouterSide, router_sides
from routing.torconfig.vendors import VENDORS


@click.command("tor-config")
@click.option("--vendor", type=click.Choice(list(VENDORS)), required=True, help="Whose words.")
@click.option(
    "--rack",
    metavar="L",
    help="Only nodes with these labels: a selector, key=value, or the value of the label rack.",
)
@click.option("--peer", metavar="NAME", help="Only the router that this BGPPeer names.")
@click.option(
    "--listen-range",
    metavar="CIDR",
    help="From where nodes connect; without it the smallest network that has them all.",
)
@store_option
def tor_config(
    vendor: str, rack: str | None, peer: str | None, listen_range: str | None, store: str
) -> None:
    """The router's side: who may connect, what is let in and out, limits, timers.

    One part for each router that the nodes speak to, to be read before it is loaded. A password is
    never in it, only where to write it.

    Exit codes: 0 printed, 2 nothing to print or usage, 3 store unreachable.
    """
    with errors_as_exit_codes():
        labels = None if rack is None else _selector(rack)
        snapshot = with_store(store, lambda opened: opened.snapshot())
        sides = router_sides(snapshot, rack=labels, peer=peer)
        if not sides:
            raise Exit(_nothing(rack, peer), USAGE)
        sides = [_with_range(side, listen_range) for side in sides]
    for side in sides:
        sys.stdout.write(VENDORS[vendor](side))


def _selector(text: str) -> Selector:
    """``rack == 'L'`` for a plain word, ``key == 'value'`` for key=value, else a selector."""
    key, equals, value = text.partition("=")
    is_word = all(character.isalnum() or character in "-_./" for character in f"{key}{value}")
    if is_word:
        text = f"{key} == '{value}'" if equals else f"rack == '{key}'"
    try:
        return Selector.parse(text)
    except SelectorError as error:
        raise Exit(f"--rack {text}: {error}", USAGE) from None


def _nothing(rack: str | None, peer: str | None) -> str:
    where = f" with --rack {rack}" if rack else ""
    which = f" by BGPPeer {peer}" if peer else ""
    return f"no node{where} has a session with a router{which}; see `slash32 get bgppeer`"


def _with_range(side: RouterSide, text: str | None) -> RouterSide:
    if text is None:
        return side
    try:
        network = parse_cidr(text)
    except Malformed as error:
        raise Exit(f"--listen-range {text}: {error}", USAGE) from None
    if len(side.groups) > 1:
        numbers = ", ".join(str(group.asn) for group in side.groups)
        raise Exit(
            f"--listen-range {text}: the nodes of {side.address} have several AS numbers "
            f"({numbers}), and a range has one; choose a rack, or leave it out",
            USAGE,
        )
    for group in side.groups:
        for address in group.addresses:
            if address.version != network.version or address not in network:
                raise Exit(f"--listen-range {text}: the node {address} is not in it", USAGE)
    return replace(side, listen_range=network)
