"""slash32 evidence: what this node says about one packet, as JSON, for ``explain`` elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import click

from routing.cli.exits import UNREACHABLE, USAGE, Exit


@click.command(hidden=True)
@click.argument("destination", required=False)
@click.option("--source", help="The packet's source address.")
@click.option("--probe", is_flag=True, help="Send real packets too.")
@click.option("--find-pod", help="Only find a pod here, by namespace/name or name.")
@click.option("--node", envvar="SLASH32_NODE", help="This node's name.")
@click.option(
    "--run-dir",
    envvar="SLASH32_RUN_DIR",
    default="/run/slash32",
    type=click.Path(path_type=Path),
    help="The agent's run directory.",
)
def evidence(
    destination: str | None,
    source: str | None,
    probe: bool,
    find_pod: str | None,
    node: str | None,
    run_dir: Path,
) -> None:
    """What this node's kernel and agent say about a packet to DESTINATION. Reads only."""
    from routing.explain.codec import to_json
    from routing.explain.evidence import Question
    from routing.explain.witnesses import find_local_pod, local_evidence

    if (destination is None) == (find_pod is None):
        raise click.UsageError("give either DESTINATION or --find-pod")
    try:
        if find_pod is not None:
            click.echo(json.dumps({"addresses": find_local_pod(find_pod)}))
            return
        question = Question(str(destination), source, probe)
        click.echo(json.dumps(to_json(local_evidence(question, node=node, run_dir=run_dir))))
    except ValueError as error:
        raise Exit(str(error), USAGE) from None
    except OSError as error:
        raise Exit(f"the kernel cannot be read: {error}", UNREACHABLE) from None
