"""The main job, end to end and checked: build, probe, capture, judge, show, clean up, judge again.

The demo succeeds only if everything it looked at is right. It says what is wrong in sentences and
goes on, so that one run shows everything; only what makes going on pointless ends it early.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from lab import (
    build,
    capture,
    namespaces,
    probes,
    recording,
    report,
    routers,
    runtime,
    teardown,
)
from lab.build import Lab
from lab.capture import Crossing, Findings, World
from lab.plan import LabFailure, Shape
from lab.probes import Outcome
from lab.waiting import Progress

NAME_PREFIX = "demo-"
PROBLEMS_SHOWN_MAX = 20


@dataclass(slots=True)
class Verdict:
    """What a demo found. ``problems`` are sentences; none means that all of it holds."""

    pairs_reachable: int = 0
    pairs: int = 0
    encapsulated: int = 0
    translated: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def last_line(self) -> str:
        return (
            f"demo: {self.pairs_reachable}/{self.pairs} pod pairs reachable, "
            f"{self.encapsulated} packets encapsulated, {self.translated} translated"
        )

    @property
    def holds(self) -> bool:
        return (
            not self.problems
            and self.pairs_reachable == self.pairs > 0
            and self.encapsulated == self.translated == 0
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """What of the machine a demo must not change."""

    routes: frozenset[str]

    @classmethod
    def take(cls) -> Footprint:
        """The root namespace's routes as they are now."""
        routes: list[str] = []
        for family in ("-4", "-6"):
            for route in namespaces.ip_json(None, family, "route", "show", "table", "all"):
                # A lease's remaining time, and what is cached, change by themselves.
                stable = {k: v for k, v in route.items() if k not in ("expires", "cache")}
                routes.append(json.dumps(stable, sort_keys=True))
        return cls(frozenset(routes))


def run(shape: Shape, *, progress: Progress) -> Verdict:
    """Runs the whole demo and leaves nothing behind, whatever happens.

    Raises:
        LabFailure: the lab could not be built, or not be removed.
    """
    build.check_machine(shape)
    teardown.sweep_demos(NAME_PREFIX, progress=progress)
    before = Footprint.take()
    lab = build.claim(f"{NAME_PREFIX}{os.getpid()}", shape, progress=progress)
    verdict = Verdict()
    try:
        build.up(lab)
        examine(lab, verdict)
        show(lab)
    except BaseException:
        # The state file goes with the lab: what went wrong is what counts, not the second failure.
        teardown.down(lab)
        raise
    verdict.problems += teardown.down(lab)
    verdict.problems += _changes(before, lab)
    if not verdict.problems:
        progress.say("nothing left: no namespace, process, route or file")
    return verdict


def examine(lab: Lab, verdict: Verdict) -> None:
    """Every probe under a capture, then CHECK of every pod."""
    plan, paths = lab.plan, lab.paths
    pods = {pod.name: lab.addresses_of(pod) for pod in plan.pods}
    planned = probes.plan_probes(plan, pods)
    lab.progress.say("starting a capture on every router and a server in every pod")
    names = [*pods, *(node.name for node in plan.nodes), plan.client.name]
    with probes.running(plan, names, log=paths.log("probers")) as probers:
        session = recording.start(plan, paths, build.environment(paths))
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            lab.progress.say(f"probes: {done} of {len(planned)}")

        lab.progress.say(f"probing: {len(planned)} pings and TCP streams of 1 MiB")
        outcomes = probes.run(planned, probers, on_done=tell)
        captures = recording.finish(session)
    verdict.pairs_reachable, verdict.pairs = probes.reachable_pairs(outcomes)
    verdict.problems += [f"{o.probe}: {o.problem}" for o in outcomes if o.problem]
    _say_peers(lab, outcomes)
    world = capture.world_of(plan, pods)
    judge_capture(capture.judge(captures, world), world, verdict=verdict, progress=lab.progress)
    _check_pods(lab, verdict)
    for name in plan.namespaces:
        verdict.problems += [f"{name}: {rule}" for rule in namespaces.translation_rules(name)]


def _say_peers(lab: Lab, outcomes: Iterable[Outcome]) -> None:
    """One example of what a server saw, and how many saw the right thing."""
    streams = [o for o in outcomes if o.probe.kind is probes.Kind.STREAM]
    right = [o for o in streams if o.problem is None]
    lab.progress.say(f"{len(right)} of {len(streams)} servers saw the client's true address")
    between_pods = [o for o in right if o.probe.traffic is capture.Traffic.POD_TO_POD]
    for outcome in between_pods[-1:]:
        probe = outcome.probe
        lab.progress.say(f"for instance {probe.target} saw {outcome.peer}, which is {probe.source}")


def expected_crossings(world: World) -> set[Crossing]:
    """Every pod pair on two nodes, by ping and by TCP."""
    icmp = {4: capture.PROTOCOL_ICMP, 6: capture.PROTOCOL_ICMPV6}
    return {
        (source, destination, protocol)
        for source, home in world.pods.items()
        for destination, goal in world.pods.items()
        if home != goal and source.version == destination.version
        for protocol in (icmp[source.version], capture.PROTOCOL_TCP)
    }


def judge_capture(
    findings: Findings, world: World, *, verdict: Verdict, progress: Progress
) -> None:
    """What the capture proves, and that it could have proved the opposite."""
    verdict.encapsulated = findings.encapsulated
    verdict.translated = findings.translated
    if findings.unexplained:
        verdict.problems.append(f"{findings.unexplained} packets that nothing explains")
    for kind, samples in findings.samples.items():
        verdict.problems += [f"{kind}: {sample}" for sample in samples]
    wanted = expected_crossings(world)
    unseen = wanted - findings.crossed
    for source, destination, protocol in sorted(unseen, key=str)[:3]:
        verdict.problems.append(
            f"not seen on the routers' links: {source} > {destination} protocol {protocol}"
        )
    if unseen:
        verdict.problems.append(f"{len(unseen)} of {len(wanted)} crossings not seen")
    progress.say(
        f"captured {findings.packets} packets, none dropped; {len(wanted) - len(unseen)} of "
        f"{len(wanted)} crossings seen with pod addresses, {findings.encapsulated} encapsulated, "
        f"{findings.translated} translated, {findings.unexplained} unexplained"
    )


def _check_pods(lab: Lab, verdict: Verdict) -> None:
    passed = 0
    for pod in lab.plan.pods:
        try:
            lab.runtime_of(pod.node).check(runtime.sandbox_of(pod))
            passed += 1
        except LabFailure as error:
            verdict.problems.append(f"{pod.name}: {error}")
    lab.progress.say(f"CHECK passes for {passed} of {len(lab.plan.pods)} pods")


def show_picture(lab: Lab) -> None:
    """The topology with its addresses, to stdout."""
    views = [
        report.NodeView(
            machine=node,
            blocks=lab.blocks_of(node),
            pods={pod.name: lab.addresses_of(pod) for pod in lab.plan.pods_on(node.name)},
        )
        for node in lab.plan.nodes
    ]
    print("\n" + report.picture(lab.plan, views), flush=True)


def show(lab: Lab) -> None:
    """Picture, sessions and routes, to stdout."""
    plan = lab.plan
    show_picture(lab)
    for tor in plan.tors:
        text = routers.show_protocols(lab.paths, tor)
        print(report.section(f"{tor.name}: birdc show protocols", text))
    for view in ("peers", "routes"):
        for node in plan.nodes:
            print(report.section(f"{node.name}: slash32 {view}", inspect(lab, node.name, view)))
    print(flush=True)


def inspect(lab: Lab, node: str, view: str) -> str:
    """What ``slash32 <view>`` prints for a node; exit status 1 (findings) is an answer too."""
    environment = {**build.environment(lab.paths), "SLASH32_RUN_DIR": str(lab.paths.run_dir(node))}
    return namespaces.run(build.slash32_command(view), env=environment, ok=(0, 1))


def _changes(before: Footprint, lab: Lab) -> list[str]:
    """What the demo left behind or changed on the machine."""
    problems = [f"left behind: {text}" for text in teardown.remains(lab.paths, lab.record)]
    after = Footprint.take()
    problems += [f"route gone: {r}" for r in sorted(before.routes - after.routes)]
    problems += [f"route left behind: {r}" for r in sorted(after.routes - before.routes)]
    return problems


def print_verdict(verdict: Verdict) -> None:
    """The problems, then the one line that says it all, last."""
    for problem in verdict.problems[:PROBLEMS_SHOWN_MAX]:
        print(f"problem: {problem}")
    hidden = len(verdict.problems) - PROBLEMS_SHOWN_MAX
    if hidden > 0:
        print(f"problem: and {hidden} more")
    print(verdict.last_line, flush=True)
