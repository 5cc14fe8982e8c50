"""Who is asked: this node's agent, another node, or all nodes the store knows.

An agent answers on its own machine only. Other nodes are asked by running the same command there
(--via, as for explain); where there is no way, their NodeStatus in the store answers for sessions
and health, and it says when it was written.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from routing.cli.exits import UNREACHABLE, USAGE, Exit
from routing.cli.options import agent_at
from routing.cli.output import FORMATS
from routing.cli.resources_options import store_option

DEFAULT_RUN_DIR = "/run/slash32"
DEFAULT_STATE_DIR = "/var/lib/slash32"
AT_ONCE = 8
REPORTED_VIEWS = ("peers", "status")
"""What a NodeStatus can answer for."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Where:
    """The options that say who is asked."""

    run_dir: Path
    store: str
    node: str | None
    all_nodes: bool
    local: bool
    via: str | None
    timeout_s: float


@dataclass(slots=True)
class Answers:
    """What each node said, and why others said nothing."""

    by_node: dict[str, Any] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """All nodes' rows in one list, in order of node."""
        return [row for node in sorted(self.by_node) for row in self.by_node[node]]


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """--local, --node, -A, --via, --run-dir, --store, --timeout; gives the command ``where``."""

    @click.pass_context
    def with_where(context: click.Context, /, **values: Any) -> None:
        given = context.get_parameter_source("run_dir")
        run_dir = values.pop("run_dir")
        node, all_nodes = values.pop("node"), values.pop("all_nodes")
        where = Where(
            run_dir=run_dir,
            store=values.pop("store"),
            # SLASH32_NODE is set in an agent's pod; -A is typed.
            node=None if all_nodes else node,
            all_nodes=all_nodes,
            local=values.pop("local"),
            via=values.pop("via"),
            timeout_s=values.pop("timeout"),
        )
        if where.local and where.all_nodes:
            raise click.UsageError("--local and --all-nodes exclude each other")
        if not (where.local or where.all_nodes or where.node):
            is_default = given in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
            # Who points at a run directory means the agent there; and on a node from which no way
            # leads to the others, its own agent is what can be asked.
            is_alone = not where.via and (run_dir / "agent.sock").exists()
            if not is_default or is_alone:
                where = Where(**{**_fields(where), "local": True})
        context.invoke(command, where=where, **values)

    with_where.__doc__ = command.__doc__
    with_where.__name__ = command.__name__
    wrapped: Callable[..., None] = with_where
    for option in (
        click.option(
            "--timeout", type=click.FloatRange(0.1, 600), default=20.0, show_default=True,
            help="Seconds to wait for a node.",
        ),
        store_option,
        click.option(
            "--run-dir", envvar="SLASH32_RUN_DIR", default=DEFAULT_RUN_DIR, show_default=True,
            type=click.Path(path_type=Path), help="The agent's run directory (SLASH32_RUN_DIR).",
        ),
        click.option(
            "--via", envvar="SLASH32_VIA", metavar="COMMAND",
            help="How slash32 is run on another node: a command with {node}, or kubectl.",
        ),
        click.option("--local", is_flag=True, help="Only the agent here; no store is needed."),
        click.option("-A", "--all-nodes", is_flag=True, help="Every node, whatever SLASH32_NODE."),
        click.option(
            "--node", envvar="SLASH32_NODE", help="Only this node (SLASH32_NODE, as in its pod)."
        ),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def _fields(where: Where) -> dict[str, Any]:
    return {name: getattr(where, name) for name in Where.__slots__}


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """-o, --no-headers, --watch."""
    for option in (
        click.option("-w", "--watch", is_flag=True, help="Again every 2 s, until Ctrl-C."),
        click.option("--no-headers", is_flag=True, help="No header line in tables."),
        click.option(
            "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True
        ),
    ):
        command = option(command)
    return command


def hear(
    where: Where, view: str, command: Sequence[str], arguments: Mapping[str, Any] | None = None
) -> Answers:
    """Asks everybody that ``where`` names for a view of the agent's.

    Args:
        view: the view of the agent's socket.
        command: the same question as ``slash32`` arguments, for another node.
        arguments: what narrows the view; an agent that does not know them tells all of it.

    Raises:
        Exit: the agent here, or the store that should name the nodes, does not answer; or there is
            no such node.
    """
    from routing.asking import Unreachable, ask

    def ask_here(node: str) -> Any:
        del node
        try:
            deadline_s = min(where.timeout_s, 5.0)
            return ask(where.run_dir / "agent.sock", view, arguments, timeout_s=deadline_s)
        except Unreachable as error:
            raise Exit(str(error), UNREACHABLE) from None

    return hear_by(where, ask_here, command, view=view)


def hear_by(
    where: Where, ask_here: Callable[[str], Any], command: Sequence[str], *, view: str = ""
) -> Answers:
    """The same with another way to ask this node; ``ask_here`` gets its name."""
    if where.local:
        data = ask_here(where.node or "")
        return Answers({where.node or _node_of(data): data})
    here = agent_here(where)
    if where.node is not None and where.node == here:
        return Answers({where.node: ask_here(where.node)})
    nodes = None if here is None else _nodes_by_agent(where)
    reports: dict[str, Any] | None = None
    if nodes is None:
        nodes, reports = _nodes(where)
    if where.node is not None:
        if where.node not in nodes:
            raise Exit(f"no Node {where.node!r}; there is {', '.join(nodes) or 'none'}", USAGE)
        nodes = [where.node]
    answers = Answers()

    def hear_one(node: str) -> None:
        from routing.explain.witnesses import NotHeard

        try:
            answers.by_node[node] = ask_here(node) if node == here else _far(where, node, command)
        except (NotHeard, Exit) as error:
            answers.silent[node] = str(error)

    # Late: it would be a third of what `--local status` takes to start.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(hear_one, nodes))
    if answers.silent and view in REPORTED_VIEWS:
        _answer_for_the_silent(where, answers, reports, view)
    return answers


def _answer_for_the_silent(
    where: Where, answers: Answers, reports: dict[str, Any] | None, view: str
) -> None:
    """By their NodeStatus, where there is one; the store is read for it only now."""
    if reports is None:
        try:
            _, reports = _nodes(where)
        except Exit:
            # The agent named the nodes; that the store cannot speak for them leaves them silent.
            return
    for node in list(answers.silent):
        reported = _reported(reports.get(node), view)
        if reported is not None:
            del answers.silent[node]
            answers.by_node[node] = reported


def ask_node(
    where: Where,
    node: str,
    query: str,
    arguments: Mapping[str, Any],
    command: Sequence[str],
    silent: dict[str, str],
) -> Any:
    """One node's answer to a query: the agent's own here, what ``command`` prints there elsewhere.
    None, and the reason in ``silent``, when it did not answer."""
    from routing.asking import Unreachable, ask
    from routing.explain.witnesses import NotHeard

    try:
        if where.local or node == agent_here(where):
            return ask(where.run_dir / "agent.sock", query, arguments, timeout_s=where.timeout_s)
        return _far(where, node, command)
    except (Unreachable, NotHeard) as error:
        silent[node] = str(error)
        return None


def _node_of(data: Any) -> str:
    if isinstance(data, dict):
        return str(data.get("node", ""))
    return str(data[0].get("node", "")) if data else ""


def agent_here(where: Where) -> str | None:
    """The node of the agent that answers here, or None."""
    return agent_at(where.run_dir)


def _far(where: Where, node: str, command: Sequence[str]) -> Any:
    from routing.explain.witnesses import CommandWay, KubectlWay, NotHeard

    if not where.via:
        raise NotHeard("no way to it was given (--via)")
    way = (
        KubectlWay(deadline_s=where.timeout_s)
        if where.via == "kubectl"
        else CommandWay(where.via, deadline_s=where.timeout_s)
    )
    return way.run(node, [*command, "--local", "-o", "json"])


def _nodes_by_agent(where: Where) -> list[str] | None:
    """The nodes as the agent here knows them, from memory: reading an API costs a second, and may
    not be possible. None when it works with another store, or is too old to say."""
    from routing.asking import Unreachable, ask

    try:
        told = ask(where.run_dir / "agent.sock", "nodes", timeout_s=2.0)
        # One that has not read its store yet knows of nobody.
        return (sorted(map(str, told["nodes"])) or None) if told["store"] == where.store else None
    except (Unreachable, KeyError, TypeError):
        return None


def _nodes(where: Where) -> tuple[list[str], dict[str, Any]]:
    from routing.cli.cluster import read_cluster
    from routing.datastore.snapshot import StoreError

    try:
        snapshot, statuses = read_cluster(where.store)
    except StoreError as error:
        raise Exit(f"{error}; `--local` asks the agent here without a store", UNREACHABLE) from None
    names = sorted(node.meta.name for node in snapshot.nodes)
    return names, {status.meta.name: status for status in statuses}


# -- NodeStatus as rows ------------------------------------------------------------------------


def _reported(status: Any, view: str) -> Any:
    """What a NodeStatus says for one of REPORTED_VIEWS; None where there is none."""
    if status is None:
        return None
    rows = [_peer_row(status, peer) for peer in status.peers]
    return rows if view == "peers" else _status_row(status, rows)


def _peer_row(status: Any, peer: Any) -> Row:
    return {
        "node": status.meta.name,
        "peer": str(peer.address),
        "name": peer.name,
        "asn": peer.asn,
        "local_asn": None,
        "local_address": None,
        "state": peer.state,
        "since_s": _age_s(peer.since),
        "received": peer.received,
        "accepted": peer.accepted,
        "advertised": peer.advertised,
        "flaps": None,
        "hold_time_s": None,
        "reason": peer.reason,
        "reported_at": status.observed_at,
    }


def _age_s(moment: str) -> float | None:
    if not moment:
        return None
    return time.time() - calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))


def _status_row(status: Any, peers: Sequence[Mapping[str, Any]]) -> Row:
    wrong = [c for c in status.conditions if c.is_bad]
    return {
        "node": status.meta.name,
        "version": status.version,
        "healthy": not wrong and all(p["state"] == "Established" for p in peers),
        "findings": [f"{c.type}: {c.message or c.reason}" for c in wrong],
        "peers": {
            "configured": len(peers),
            "established": sum(p["state"] == "Established" for p in peers),
        },
        "routes": {"ok": sum(status.routes.values()), "not_ok": None, "by_kind": status.routes},
        "blocks": {"confirmed": None, "pending": None},
        "addresses": {
            "used": status.addresses.get("used"),
            "cooling": status.addresses.get("resting"),
            "free": status.addresses.get("free"),
        },
        "pods": None,
        "reported_at": status.observed_at,
    }
