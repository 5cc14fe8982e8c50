"""slash32 ipam release: blocks of nodes that are gone, and addresses that nobody uses any more.

Everything is judged anew when it is released, whatever a report says: a block by compare-and-swap
on its owner, an address by the agent of the node that holds it (routing/releasing.py).
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import click

from routing.cli.exits import USAGE, Exit, errors_as_exit_codes
from routing.cli.fleet import Answers, Where, ask_node, hear, where_options
from routing.cli.output import FORMATS, Columns, exit_code, show, tell_silent, text

Row = dict[str, Any]

ADDRESS_PROBLEM = "booked-without-link"
BLOCK_PROBLEM = "block-without-node"
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""As CNI 1.1 has it. --via may be ssh, whose far end is a shell: a report is text of others."""
_BAD = frozenset({"refused", "unknown", "failed"})

_COLUMNS = Columns(
    normal=[
        ("NODE", text("node")),
        ("WHAT", text("what")),
        ("OUTCOME", text("outcome")),
        ("DETAIL", text("detail")),
    ],
    wide=[],
    name=text("what"),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing to give back. From a report: ``node`` and ``holder`` as they were then."""

    what: str
    node: str | None = None
    holder: str | None = None

    @property
    def is_block(self) -> bool:
        """A block is written with its length, an address without."""
        return "/" in self.what


@click.command()
@click.argument("what", nargs=-1, metavar="[BLOCK|ADDRESS]...")
@click.option(
    "--from-report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    help="What `ipam check -o json` wrote, or -: leaked addresses and blocks without a node.",
)
@click.option("--yes", is_flag=True, help="Do it; without it only say what would be done.")
@click.option(
    "--force",
    is_flag=True,
    help="Take the link of a pod that has the address away too; the pod loses its network.",
)
@click.option("--holder", hidden=True, help="Only while this container holds it.")
@click.option("--by", hidden=True, help="Who asked, for the journal.")
@click.option("--no-headers", is_flag=True, help="No header line in tables.")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True)
@where_options
def release(
    where: Where,
    what: tuple[str, ...],
    reports: tuple[Path, ...],
    yes: bool,
    force: bool,
    holder: str | None,
    by: str | None,
    no_headers: bool,
    output: str,
) -> None:
    """Give back addresses that nobody uses any more, and blocks of nodes that are gone for good.

    An ADDRESS that a link here has is refused, and its pod named; with --force the link goes
    first. What is released rests for the cool-down, and `slash32 history` says who did it. A BLOCK
    (written with its length) of a node that exists is its agent's to give back, and is refused.

    Of what is named on the command line all is released or nothing. Of a report each entry is
    judged anew: what is in use again is refused, the rest is released.

    Exit codes: 0 done (or would be, without --yes), 1 something was refused or is not there, 2
    usage, 3 agent or store unreachable, 4 a node did not answer.
    """
    if bool(what) == bool(reports):
        raise click.UsageError("give BLOCKs and ADDRESSes, or --from-report")
    if reports and force:
        raise click.UsageError(
            "--force is for addresses that are named: a report is a list that nobody reads"
        )
    wanted = [Wanted(_checked(each), None, holder) for each in what]
    for report in reports:
        wanted += wanted_of(_document(report), str(report))
    blocks = [each.what for each in wanted if each.is_block]
    releasing = Releasing(where, force=force, by=by or _who())
    with errors_as_exit_codes():
        rows = release_blocks(where.store, blocks, is_meant=False) if blocks else []
        rows += releasing.addresses([each for each in wanted if not each.is_block], False)
        is_kept = not reports and any(row["outcome"] in _BAD for row in rows)
        if yes and not is_kept and not (releasing.silent and not reports):
            rows = release_blocks(where.store, blocks, is_meant=True) if blocks else []
            rows += releasing.addresses([each for each in wanted if not each.is_block], True)
    show(rows, _COLUMNS, output=output, no_headers=no_headers)
    tell_silent(releasing.silent)
    if is_kept and yes and len(rows) > 1:
        click.echo("slash32: nothing was released", err=True)
    if not yes and any(row["outcome"] == "would-be-released" for row in rows):
        click.echo("slash32: nothing was released; --yes does it", err=True)
    raise SystemExit(
        exit_code(
            findings=any(row["outcome"] in _BAD for row in rows),
            silent=releasing.silent,
            answered=bool(rows) or not wanted,
        )
    )


def _who() -> str:
    """Behind sudo, the person; in letters that mean nothing to the shell of another node."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        name = f"uid-{os.getuid()}"
    return re.sub(r"[^A-Za-z0-9._@-]", "_", name)


def _checked(words: str) -> str:
    try:
        return str(ip_network(words)) if "/" in words else str(ip_address(words))
    except ValueError as error:
        raise Exit(f"{words[:80]!r}: {error}", USAGE) from None


# -- reports -----------------------------------------------------------------------------------


def _document(path: Path) -> Any:
    try:
        with click.open_file(str(path), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Exit(f"{path}: {error}", USAGE) from None


def wanted_of(document: Any, name: str) -> list[Wanted]:
    """What of a report can be released; the other problems in it have other remedies.

    Raises:
        Exit: it is not what `ipam check -o json` writes.
    """
    if not isinstance(document, list):
        raise Exit(f"{name}: not a list, as `ipam check -o json` writes it", USAGE)
    found = []
    for number, entry in enumerate(document):
        try:
            problem, what = str(entry["id"]), str(entry["what"])
            if problem == ADDRESS_PROBLEM:
                # Without the holder nobody could tell whether it is still the same one's.
                holder = str(entry["holder"])
                if _CONTAINER_ID.fullmatch(holder) is None:
                    raise Exit(f"{name}: entry {number}: holder {holder[:80]!r}", USAGE)
                found.append(Wanted(_checked(what), str(entry["node"]), holder))
            elif problem == BLOCK_PROBLEM:
                found.append(Wanted(_checked(what)))
        except (KeyError, TypeError) as error:
            raise Exit(f"{name}: entry {number}: no {error}", USAGE) from None
    return found


# -- addresses ---------------------------------------------------------------------------------


class Releasing:
    """Addresses, each by the agent of the node that holds it.

    Args:
        where: who may be asked.
        force, by: passed on to the agents.
    """

    def __init__(self, where: Where, *, force: bool, by: str) -> None:
        self._where = where
        self._force = force
        self._by = by
        self._facts: Answers | None = None
        self.silent: dict[str, str] = {}

    def addresses(self, wanted: Sequence[Wanted], is_meant: bool) -> list[Row]:
        """One row for each; what a silent node would have to say is left out."""
        if not wanted:
            return []
        if self._facts is None:
            self._facts = hear(self._where, "ipam", ["ipam", "facts"])
        facts = self._facts
        return [row for each in wanted for row in self._release(each, facts, is_meant)]

    def _release(self, wanted: Wanted, facts: Answers, is_meant: bool) -> list[Row]:
        nodes = [wanted.node] if wanted.node else _nodes_with(wanted.what, facts.by_node)
        if len(nodes) > 1:
            detail = f"{' and '.join(nodes)} have it both: say which one means with --node"
            return [_row("", wanted.what, "refused", detail)]
        if not nodes:
            nodes = _owners(wanted.what, facts.by_node)
        if not nodes:
            # The node that holds it may be one that said nothing.
            self.silent.update(facts.silent)
            return [_row("", wanted.what, "unknown", "nobody holds it, and no block has it")]
        (node,) = nodes
        if node not in facts.by_node:
            self.silent[node] = facts.silent.get(node, "it was not asked (-A asks every node)")
            return []
        row = ask_node(
            self._where,
            node,
            "release",
            {
                "address": wanted.what,
                "holder": wanted.holder,
                "force": self._force,
                "is_meant": is_meant,
                "by": self._by,
            },
            [
                *("ipam", "release", wanted.what, "--by", self._by),
                *(("--holder", wanted.holder) if wanted.holder else ()),
                *(("--force",) if self._force else ()),
                *(("--yes",) if is_meant else ()),
            ],
            self.silent,
        )
        return [] if row is None else [row] if isinstance(row, dict) else list(row)


def _nodes_with(address: str, facts: Mapping[str, Any]) -> list[str]:
    return sorted(
        node
        for node, told in facts.items()
        if any(address in row["addresses"] for row in (*told["holders"], *told["pods"]))
    )


def _owners(address: str, facts: Mapping[str, Any]) -> list[str]:
    wanted = ip_address(address)
    for told in facts.values():
        for row in told["blocks"]:
            if wanted in ip_network(row["block"]):
                return [str(row["node"])]
    return []


def _row(node: str, what: str, outcome: str, detail: str, holder: str = "") -> Row:
    return {"node": node, "what": what, "outcome": outcome, "holder": holder, "detail": detail}


# -- blocks ------------------------------------------------------------------------------------


def release_blocks(store: str, wanted: Sequence[str], *, is_meant: bool) -> list[Row]:
    """One row for each block.

    Raises:
        StoreError: the store cannot be used.
    """
    from routing.cli.resources import with_store
    from routing.datastore.opening import Store
    from routing.datastore.resources import block_name
    from routing.datastore.snapshot import Conflict, NotFound

    async def work(opened: Store) -> list[Row]:
        snapshot = await opened.snapshot()
        nodes = {node.meta.name for node in snapshot.nodes}
        found = {str(each.cidr): each for each in snapshot.blocks}
        rows = []
        for cidr in wanted:
            block = found.get(cidr)
            if block is None:
                rows.append(_row("", cidr, "unknown", "there is no such block"))
                continue
            if block.node in nodes:
                detail = (
                    f"it is {block.node}'s, which exists: its agent gives it back when it is "
                    "empty; if the node is gone, delete its Node first"
                )
                rows.append(_row(block.node, cidr, "refused", detail))
                continue
            outcome, detail = "would-be-released", f"there is no Node {block.node}"
            if is_meant:
                outcome = "released"
                try:
                    # Compare-and-swap: an owner that is back has changed it meanwhile.
                    await opened.delete(
                        "Block",
                        block_name(block.cidr),
                        resource_version=block.resource_version,
                        uid=block.uid,
                    )
                except (Conflict, NotFound) as error:
                    outcome, detail = "refused", str(error)
            rows.append(_row(block.node, cidr, outcome, detail))
        return rows

    return with_store(store, work)
