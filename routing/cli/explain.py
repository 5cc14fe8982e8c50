"""slash32 explain: why a packet gets there, or at which step it does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from routing.cli.exits import FINDINGS, PARTIAL, UNREACHABLE, USAGE, Exit
from routing.cli.options import colour_of, node_here
from routing.cli.resources_options import run_dir_option, store_option

if TYPE_CHECKING:
    from routing.explain.evidence import ClusterEvidence, SessionFacts
    from routing.explain.steps import Report

_COLOURS = {"ok": "green", "wrong": "red", "unknown": "yellow"}


@click.command()
@click.argument("subject", metavar="POD|ADDRESS|PREFIX")
@click.option(
    "--from", "start", metavar="NODE|POD", help="Where the packet starts; default: this node."
)
@click.option("--probe", is_flag=True, help="Send real packets as well (ICMP echo, two sizes).")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "svg", "dot"]),
    default="text",
    show_default=True,
)
@click.option(
    "--via",
    envvar="SLASH32_VIA",
    metavar="COMMAND",
    help="How slash32 is run on another node: a command with {node} in it, such as "
    "'ssh root@{node} slash32', or kubectl (SLASH32_VIA).",
)
@click.option("--local", is_flag=True, help="Ask nobody but this node: no store, no other node.")
@click.option("--node", envvar="SLASH32_NODE", help="The name of this node (SLASH32_NODE).")
@run_dir_option
@store_option
def explain(
    subject: str,
    start: str | None,
    probe: bool,
    output: str,
    via: str | None,
    local: bool,
    node: str | None,
    run_dir: Path,
    store: str,
) -> None:
    """The whole way to a pod, an address or a prefix and back, and the first step that is wrong.

    Address, block and owner; who announces it, who receives it, accepted or why not, best or why
    not; the kernel's own decision; next hops; the far pod's link, sysctls, address and routes; the
    way back. Reads only, but for --probe. The last line names what is wrong and its remedy.

    Exit codes: 0 nothing wrong, 1 something is, 2 usage, 3 nobody could be asked, 4 nothing wrong
    was found but not everything could be seen.
    """
    from routing.explain.asking import NotFound, Unclear, make_case
    from routing.explain.judge import explain as judge
    from routing.explain.witnesses import NotHeard, Witnesses, way_of

    cluster, reports = (_nothing(), {}) if local else _read_cluster(store)
    here = node_here(node, run_dir, cluster.nodes)
    witnesses = Witnesses(
        here=here, run_dir=run_dir, way=None if local else way_of(via), reports=reports
    )
    try:
        case = make_case(subject, start=start, cluster=cluster, witnesses=witnesses, probe=probe)
    except Unclear as error:
        raise Exit(str(error), USAGE) from None
    except NotFound as error:
        raise Exit(str(error), FINDINGS) from None
    except NotHeard as error:
        raise Exit(str(error), UNREACHABLE) from None
    report = judge(case, probed=probe)
    _show(report, output)
    _exit(report, is_blind=case.origin.agent is None and case.origin.kernel is None)


def _nothing() -> ClusterEvidence:
    from routing.explain.evidence import ClusterEvidence

    return ClusterEvidence(error="not asked (--local)")


def _read_cluster(
    store: str,
) -> tuple[ClusterEvidence, dict[str, tuple[str, tuple[SessionFacts, ...]]]]:
    from routing.cli.cluster import read_cluster
    from routing.datastore.snapshot import StoreError
    from routing.explain.evidence import ClusterEvidence
    from routing.explain.from_store import cluster_of, reports_of

    try:
        snapshot, statuses = read_cluster(store)
    except StoreError as error:
        return ClusterEvidence(error=str(error)), {}
    return cluster_of(snapshot), reports_of(statuses)


def _show(report: Report, output: str) -> None:
    from routing.explain import picture

    if output == "json":
        click.echo(json.dumps(document(report), indent=2))
    elif output == "svg":
        click.echo(picture.to_svg(report), nl=False)
    elif output == "dot":
        click.echo(picture.to_dot(report), nl=False)
    else:
        _print_text(report)


def _print_text(report: Report) -> None:
    from routing.explain.picture import SIGNS

    is_coloured = colour_of(sys.stdout)
    click.echo(f"From {report.source} to {report.destination}")
    place = None
    for step in report.steps:
        if step.place != place:
            place = step.place
            click.echo(f"\n{place}")
        sign = click.style(SIGNS[step.verdict], fg=_COLOURS[step.verdict.value])
        fault = f" [{step.fault}]" if step.fault else ""
        line = f"  {sign} {step.title}{fault}\n      {step.evidence}"
        click.echo(line, color=is_coloured)
        if step.remedy and step.verdict.value != "ok":
            click.echo(f"      -> {step.remedy}")
    click.echo("")
    click.echo(report.conclusion)


def document(report: Report) -> dict[str, Any]:
    """The JSON of a report (docs/schemas/explain.json)."""
    wrong = report.first_wrong
    return {
        "subject": report.subject,
        "source": report.source,
        "destination": report.destination,
        "verdict": "wrong" if wrong else "unknown" if report.unknown else "ok",
        "firstWrong": None
        if wrong is None
        else {"step": wrong.id, "place": wrong.place, "fault": wrong.fault, "remedy": wrong.remedy},
        "conclusion": report.conclusion,
        "steps": [
            {
                "id": step.id,
                "place": step.place,
                "title": step.title,
                "verdict": step.verdict.value,
                "evidence": step.evidence,
                "fault": step.fault,
                "remedy": step.remedy,
            }
            for step in report.steps
        ],
    }


def _exit(report: Report, *, is_blind: bool) -> None:
    if report.first_wrong is not None:
        raise SystemExit(FINDINGS)
    if is_blind:
        raise SystemExit(UNREACHABLE)
    if report.unknown:
        raise SystemExit(PARTIAL)
