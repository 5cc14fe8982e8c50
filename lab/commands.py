"""``slash32 lab``: the same lab as the demo's for someone who wants to look around."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from lab import build, demo, interrupts, namespaces, processes, routers, teardown
from lab.build import Lab
from lab.plan import STORES, TOPOLOGIES, InvalidShape, LabFailure, Shape
from lab.waiting import Progress
from routing.cli.exits import FINDINGS, UNREACHABLE, USAGE, Exit
from routing.cli.table import render

DEFAULT_NAME = "lab"


@contextmanager
def _failures_as_exit_codes() -> Iterator[None]:
    try:
        with interrupts.interruptible():
            yield
    except InvalidShape as error:
        raise Exit(str(error), USAGE) from None
    except LabFailure as error:
        raise Exit(str(error), FINDINGS) from None
    except interrupts.Interrupted as error:
        raise Exit(str(error), error.exit_code) from None


def _shape_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--topology",
        type=click.Choice(TOPOLOGIES),
        default=TOPOLOGIES[0],
        show_default=True,
        help="Nodes speak to routers, to each other, or to route reflectors (--tors of them).",
    )(command)
    return _size_options(command)


def _size_options(command: Callable[..., None]) -> Callable[..., None]:
    for option, default, text in (
        ("--pods", 2, "Pods on each node."),
        ("--tors", 1, "Top-of-rack routers; every node is linked to every one."),
        ("--nodes", 3, "Nodes."),
    ):
        command = click.option(option, type=int, default=default, show_default=True, help=text)(
            command
        )
    command = click.option(
        "--store",
        type=click.Choice(STORES),
        default=STORES[0],
        show_default=True,
        help="Where the cluster's state is: a file, or a (small) Kubernetes API.",
    )(command)
    return click.option(
        "--families",
        type=click.Choice(["v4", "dual"]),
        default="dual",
        show_default=True,
        help="IPv4 alone, or IPv4 and IPv6.",
    )(command)


def _name_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--name",
        envvar="SLASH32_LAB",
        default=DEFAULT_NAME,
        show_default=True,
        help="The lab's name; several can be up at once.",
    )(command)


def _open(name: str, *, progress: Progress) -> Lab:
    build.require_root()
    found = build.open_lab(name, progress=progress)
    if found is None:
        raise Exit(f"no lab {name!r} here; 'slash32 lab up' builds one", UNREACHABLE)
    return found


@click.group()
def lab() -> None:
    """A whole cluster in network namespaces: nodes, routers (BIRD 2), pods, a client.

    Needs root. Nothing outside the lab's own namespaces is touched.
    """


@lab.command()
@_name_option
@_shape_options
def up(
    name: str, nodes: int, tors: int, pods: int, families: str, topology: str, store: str
) -> None:
    """Build a lab and leave it running."""
    with _failures_as_exit_codes():
        progress = Progress()
        dual_stack = families == "dual"
        shape = Shape(nodes, tors, pods, dual_stack=dual_stack, topology=topology, store=store)
        build.check_machine(shape)
        built = build.claim(name, shape, progress=progress)
        try:
            build.up(built)
            built.finish()
        except BaseException:
            teardown.down(built)
            raise
        progress.say(f"lab {name!r} is up")
        suffix = "" if name == DEFAULT_NAME else f" --name {name}"
        demo.show_picture(built)
        first = built.plan.nodes[0].name
        click.echo(f"\nLook around:  slash32 lab exec{suffix} {first} -- slash32 status")
        click.echo(f"              slash32 lab exec{suffix} {first} -- ip route")
        click.echo(f"End it:       slash32 lab down{suffix}")


@lab.command()
@_name_option
def down(name: str) -> None:
    """Take a lab away: pods by CNI DEL, then processes, namespaces and files."""
    with _failures_as_exit_codes():
        progress = Progress()
        build.require_root()
        found = build.open_lab(name, progress=progress)
        if found is None:
            click.echo(f"no lab {name!r} here")
            return
        problems = teardown.down(found)
        problems += teardown.remains(found.paths, found.record)
        for problem in problems:
            click.echo(f"problem: {problem}", err=True)
        if problems:
            raise SystemExit(FINDINGS)
        progress.say(f"lab {name!r} is gone; nothing left")


@lab.command()
@_name_option
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def status(name: str, output: str) -> None:
    """Processes, sessions and pods of a lab. Exit 1 when something is not as it should be."""
    with _failures_as_exit_codes():
        found = _open(name, progress=Progress())
        rows = [*_process_rows(found), *_session_rows(found), *_pod_rows(found)]
        healthy = found.record.is_up and all(row["ok"] for row in rows)
        if output == "json":
            document = {"name": name, "up": found.record.is_up, "healthy": healthy, "parts": rows}
            click.echo(json.dumps(document, indent=2))
        else:
            click.echo(
                render(
                    ["KIND", "ON", "NAME", "STATE"],
                    [[row["kind"], row["on"], row["name"], row["state"]] for row in rows],
                )
            )
            if not found.record.is_up:
                click.echo(f"lab {name!r} is being built or taken down, or was left half-way")
        if not healthy:
            raise SystemExit(FINDINGS)


def _row(kind: str, on: str, name: str, *, state: str, ok: bool) -> dict[str, Any]:
    return {"kind": kind, "on": on, "name": name, "state": state, "ok": ok}


def _process_rows(found: Lab) -> Iterator[dict[str, Any]]:
    for process in found.record.processes:
        program, _, machine = process.name.partition("-")
        alive = processes.is_alive(process)
        words = f"running, pid {process.pid}" if alive else "ended"
        yield _row("process", machine, program, state=words, ok=alive)


def _session_rows(found: Lab) -> Iterator[dict[str, Any]]:
    for tor in found.plan.tors:
        try:
            sessions = routers.sessions(found.paths, tor)
        except namespaces.CommandFailed:
            yield _row("session", tor.name, "*", state="BIRD does not answer", ok=False)
            continue
        for session in sessions:
            words = session.info or session.state
            yield _row(
                "session", tor.name, session.neighbour, state=words, ok=session.is_established
            )


def _pod_rows(found: Lab) -> Iterator[dict[str, Any]]:
    for pod in found.plan.pods:
        there = namespaces.inode(pod.namespace) is not None
        try:
            addresses = found.addresses_of(pod) if there else ()
        except LabFailure:
            addresses = ()
        words = " ".join(str(a) for a in addresses) or "not added"
        yield _row("pod", pod.node, pod.name, state=words, ok=bool(addresses))


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@_name_option
@click.argument("target")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, target: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the network of TARGET: a node, a router, the client or a pod.

    There ``slash32 status``, ``peers`` and the like ask that node's agent.
    """
    with _failures_as_exit_codes():
        found = _open(name, progress=Progress())
        try:
            namespace = found.plan.namespace_of(target)
        except LabFailure as error:
            raise Exit(str(error), USAGE) from None
        if namespaces.inode(namespace) is None:
            raise LabFailure(f"{target} has no namespace; lab {name!r} is not whole")
        node = next((p.node for p in found.plan.pods if p.name == target), target)
        environment = os.environ | build.environment(found.paths)
        environment["PATH"] += ":" + os.environ.get("PATH", "")
        if node in {n.name for n in found.plan.nodes}:
            environment["SLASH32_RUN_DIR"] = str(found.paths.run_dir(node))
            environment["SLASH32_STATE_DIR"] = str(found.paths.state_dir(node))
            environment["SLASH32_NODE"] = node
        environment["SLASH32_VIA"] = build.way_to_nodes(found)
        argv = namespaces.enter(namespace, command)
    os.execvpe(argv[0], argv, environment)  # noqa: S606  (no shell is the point)


@lab.command(name="demo")
@_size_options
def demo_(nodes: int, tors: int, pods: int, families: str, store: str) -> None:
    """Build a lab, prove that it works, show it, and leave nothing behind. Exit 0 if all holds."""
    with _failures_as_exit_codes():
        dual_stack = families == "dual"
        shape = Shape(nodes, tors, pods, dual_stack=dual_stack, store=store)
        if nodes * pods < 2:
            raise InvalidShape(f"--nodes {nodes} --pods {pods}: a demo needs two pods at least")
        verdict = demo.run(shape, progress=Progress())
        demo.print_verdict(verdict)
        if not verdict.holds:
            raise SystemExit(FINDINGS)
