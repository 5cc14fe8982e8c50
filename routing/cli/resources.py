"""slash32 apply, get, delete: the store's resources from the command line.

An invocation is all or nothing: every file is read and judged before the store is opened, and what
the store has to say about the whole is said inside one transaction. The Kubernetes API has none:
there everything is judged, and the server asked for a dry run of each, before the first is written.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from bgp.paths import SessionState
from routing.cli.exits import USAGE, Exit, errors_as_exit_codes
from routing.cli.resources_options import store_option
from routing.cli.table import render
from routing.datastore.documents import INPUT_MAX_BYTES, InvalidDocument, dump
from routing.datastore.fields import Malformed, parse_cidr
from routing.datastore.kinds.peer import endpoint_text
from routing.datastore.opening import Store, open_store
from routing.datastore.resources import (
    KINDS,
    block_name,
    kind_of,
    parse_resources,
    resolve_kind,
    to_document,
)
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPFilterResource,
    BGPPeerResource,
    BlockResource,
    InvalidResource,
    IPPoolResource,
    Meta,
    NodeResource,
    NodeStatusResource,
    Resource,
    SecretResource,
)

T = TypeVar("T")
NAMED_MAX = 3
"""Nodes that one sentence names; the others are counted."""

_HEADERS: Mapping[str, Sequence[str]] = {
    "IPPool": ("NAME", "CIDR", "BLOCKSIZE", "DISABLED", "SELECTOR"),
    "Node": ("NAME", "ADDRESSES", "ASN"),
    "BGPPeer": ("NAME", "PEER", "ASN", "NODES", "HOLDTIME", "FILTERS"),
    "BGPFilter": ("NAME", "EXPORTV4", "IMPORTV4", "EXPORTV6", "IMPORTV6"),
    "BGPConfiguration": ("NAME", "ASN", "LISTENPORT", "MESH", "IMPORTALLOW"),
    "Block": ("NAME", "CIDR", "POOL", "NODE", "STATE"),
    "NodeStatus": ("NAME", "ESTABLISHED", "ROUTES", "READY", "OBSERVED"),
    "Secret": ("NAME", "KEYS"),
}


@click.command()
@click.option(
    "-f", "--filename", "files", multiple=True, required=True, help="A YAML or JSON file, or -."
)
@store_option
def apply(files: tuple[str, ...], store: str) -> None:
    """Create or change resources: all of them, or none.

    Exit codes: 0 applied, 1 changed meanwhile, 2 invalid, 3 store unreachable.
    """
    with errors_as_exit_codes():
        resources = _read_files(files)
        done = with_store(store, lambda opened: opened.apply(resources), create=True)
    for applied in done:
        click.echo(f"{_reference(applied.resource)} {applied.outcome}")


@click.command()
@click.argument("kind")
@click.argument("name", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml", "name"]),
    default="table",
    show_default=True,
)
@store_option
def get(kind: str, name: str | None, output: str, store: str) -> None:
    """Show resources of a KIND, or the one called NAME.

    Exit codes: 0 found, 1 not found, 2 usage, 3 store unreachable.
    """
    known = _kind(kind)
    with errors_as_exit_codes():
        if name is None:
            found = with_store(store, lambda opened: opened.list(known))
        else:
            wanted = _name(known, name)
            found = [with_store(store, lambda opened: opened.get(known, wanted))]
    if not found and output in ("table", "name"):
        click.echo(f"No {known} found.", err=True)
        return
    click.echo(_shown(known, found, output=output, is_list=name is None))


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-f", "--filename", "files", multiple=True, help="A YAML or JSON file, or -.")
@store_option
def delete(kind: str | None, names: tuple[str, ...], files: tuple[str, ...], store: str) -> None:
    """Delete resources by KIND and NAME, or those that files name: all of them, or none.

    A node that loses its last peer by it keeps its sessions for keepLastPeersFor (10 min unless
    BGPConfiguration says otherwise), and standard error says so.

    Exit codes: 0 deleted, 1 not found, 2 invalid or forbidden, 3 store unreachable.
    """
    if bool(files) == bool(kind) or (kind is not None and not names):
        raise click.UsageError("give either KIND and NAME, or -f FILE")
    with errors_as_exit_codes():
        if kind is None:
            keys = [(kind_of(each), each.meta.name) for each in _read_files(files)]
        else:
            known = _kind(kind)
            keys = [(known, each) for each in dict.fromkeys(_name(known, n) for n in names)]
        hint = with_store(store, lambda opened: _deleted(opened, keys))
    for key in keys:
        click.echo(f"{key[0].lower()}/{key[1]} deleted")
    if hint:
        click.echo(f"slash32: {hint}", err=True)


async def _deleted(store: Store, keys: Sequence[tuple[str, str]]) -> str | None:
    """Deletes; a sentence where nodes lose their last peers by it, and will not act on that yet."""
    of_peers = ("BGPPeer", "BGPConfiguration")
    if not any(kind in of_peers for kind, _ in keys):
        await store.delete_all(keys)
        return None
    from routing.datastore.snapshot import Snapshot
    from routing.last_peers import left_without_peers

    found = [each for kind in (*of_peers, "Node") for each in await store.list(kind)]
    await store.delete_all(keys)
    kept = [each for each in found if (kind_of(each), each.meta.name) not in keys]
    before, after = (
        Snapshot(
            nodes=tuple(each for each in there if isinstance(each, NodeResource)),
            peers=tuple(each for each in there if isinstance(each, BGPPeerResource)),
            bgp=next(
                (each for each in there if isinstance(each, BGPConfigurationResource)),
                # With none at all there is no mesh.
                BGPConfigurationResource(Meta("default")),
            ),
        )
        for there in (found, kept)
    )
    nodes = left_without_peers(before, after)
    if not nodes or not after.bgp.keep_last_peers_s:
        return None
    named = ", ".join(nodes[:NAMED_MAX])
    more = f" and {len(nodes) - NAMED_MAX} more" if len(nodes) > NAMED_MAX else ""
    minutes, seconds = divmod(after.bgp.keep_last_peers_s, 60)
    span = " ".join([f"{minutes} min"] * bool(minutes) + [f"{seconds} s"] * bool(seconds))
    return (
        f"no peer is left for {named}{more}: the last sessions there are kept for {span}, in case "
        "this is a mistake (keepLastPeersFor in BGPConfiguration default; 0s lets them go at once)"
    )


def with_store(where: str, work: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
    """Runs ``work`` on the store and closes it.

    Raises:
        StoreError: it cannot be opened, or what ``work`` raised.
    """

    async def run() -> T:
        opened = await open_store(where, kubeconfig=_kubeconfig(), create=create)
        try:
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


def _kubeconfig() -> Path | None:
    """Where kubectl would look; None where there is none, as in a pod."""
    given = os.environ.get("KUBECONFIG")
    if given:
        return Path(given)
    usual = Path.home() / ".kube" / "config"
    return usual if usual.is_file() else None


def _read_files(names: Sequence[str]) -> list[Resource]:
    """The resources of all files. Raises InvalidResource, Exit."""
    found: dict[tuple[str, str], Resource] = {}
    for name in names:
        for resource in parse_resources(_read(name), source=_source(name)):
            key = (kind_of(resource), resource.meta.name)
            if key in found:
                raise InvalidResource(*key, "metadata.name", key[1], "is given in two files")
            found[key] = resource
    return list(found.values())


def _source(name: str) -> str:
    return "standard input" if name == "-" else name


def _read(name: str) -> str:
    """A file's text. One byte more than the limit is read, so that /dev/zero ends too."""
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(INPUT_MAX_BYTES + 1)
        else:
            with open(name, "rb") as file:
                raw = file.read(INPUT_MAX_BYTES + 1)
    except OSError as error:
        raise Exit(f"cannot read {_source(name)}: {error.strerror}", USAGE) from None
    if len(raw) > INPUT_MAX_BYTES:
        raise InvalidDocument(_source(name), f"is larger than {INPUT_MAX_BYTES} bytes (1 MiB)")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidDocument(
            _source(name), f"is not text in UTF-8 (at byte {error.start})"
        ) from None


def _kind(word: str) -> str:
    kind = resolve_kind(word)
    if kind is None:
        raise Exit(f"no kind {word[:80]!r}; known: {', '.join(KINDS)}", USAGE)
    return kind


def _name(kind: str, name: str) -> str:
    """The resource's name; a Block may also be called by its CIDR."""
    if kind != "Block" or "/" not in name:
        return name
    try:
        return block_name(parse_cidr(name))
    except Malformed as error:
        raise Exit(f"Block {name[:80]!r}: {error}", USAGE) from None


def _reference(resource: Resource) -> str:
    return f"{kind_of(resource).lower()}/{resource.meta.name}"


def _shown(kind: str, found: Sequence[Resource], *, output: str, is_list: bool) -> str:
    if output == "name":
        return "\n".join(_reference(resource) for resource in found)
    if output == "table":
        return render(_HEADERS[kind], [_row(resource) for resource in found])
    items = [to_document(resource) for resource in found]
    document: dict[str, Any] = (
        {"apiVersion": "v1", "kind": "List", "items": items} if is_list else items[0]
    )
    if output == "json":
        return json.dumps(document, indent=2)
    return dump([document]).removesuffix("\n")


def _row(resource: Resource) -> list[str]:
    name = resource.meta.name
    match resource:
        case IPPoolResource():
            size = f"/{resource.block_size}"
            disabled = _yes(resource.disabled)
            return [name, str(resource.cidr), size, disabled, resource.node_selector]
        case NodeResource():
            addresses = ",".join(str(each) for each in resource.addresses)
            return [name, addresses, "" if resource.asn is None else str(resource.asn)]
        case BGPPeerResource():
            where = resource.node or resource.node_selector or "all()"
            peer = resource.peer_selector or ""
            if resource.peer_ip is not None:
                peer = endpoint_text(resource.peer_ip, resource.port)
            asn = "" if resource.asn is None else str(resource.asn)
            filters = ",".join(resource.filters)
            return [name, peer, asn, where, f"{resource.hold_time_s}s", filters]
        case BGPFilterResource():
            rules = (
                resource.export_v4, resource.import_v4, resource.export_v6, resource.import_v6
            )  # fmt: skip
            return [name, *(str(len(each)) for each in rules)]
        case BGPConfigurationResource():
            allow = ",".join(str(each) for each in resource.import_allow)
            mesh = _yes(resource.mesh_enabled)
            return [name, str(resource.asn), str(resource.listen_port), mesh, allow]
        case BlockResource(block=block):
            return [name, str(block.cidr), block.pool, block.node, block.state.value]
        case NodeStatusResource():
            return _status_row(resource)
        case SecretResource():
            return [name, ",".join(resource.passwords)]


def _status_row(status: NodeStatusResource) -> list[str]:
    up = sum(peer.state == SessionState.ESTABLISHED.value for peer in status.peers)
    ready = next((c.status.value for c in status.conditions if c.type == "Ready"), "")
    routes = str(sum(status.routes.values()))
    return [status.meta.name, f"{up}/{len(status.peers)}", routes, ready, status.observed_at]


def _yes(value: bool) -> str:
    return "true" if value else "false"
