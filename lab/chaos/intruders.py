"""K2: another program that takes routes of ours away with `ip route replace`, and stays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from lab import build, namespaces
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.watch import Flow, Watch
from lab.chaos.world import World

NODE = "node1"
PROTOCOL = "99"
REPLACES = 5
"""Once a second, after the first."""
LINES_MAX = 12
"""Of the agent's log for all of it: what was taken, by whom, and what came of it."""
BACK_DEADLINE_S = 60.0


class Intruder:
    """A black hole in the place of a route that node1 has learned.

    It is asked of the kernel and of node1's commands what became of it: which route a packet takes,
    what the intruder's looks like, what people are told.
    """

    def __init__(self, world: World, version: int, *, metric: str = "1032") -> None:
        self._world = world
        self._family = f"-{version}"
        far = world.pod_on("node2")
        self.address = world.address_of(far, version)
        self.target = next(
            block
            for block in world.blocks_of("node2")
            if ip_address(self.address) in ip_network(block)
        )
        self.flow = Flow("pod to pod", world.pod_on(NODE).namespace, self.address)
        self._metric = metric
        self._route = ["blackhole", self.target, "metric", metric, "proto", PROTOCOL]

    def replace(self) -> None:
        """Takes the place, whoever has it."""
        self._ip("route", "replace", *self._route)

    def add(self) -> None:
        """Puts its route where nobody has one."""
        self._ip("route", "add", *self._route)

    def leave(self) -> None:
        """Takes its own route away."""
        self._ip("route", "del", *self._route)

    def own_line(self) -> str:
        """Its route as the kernel shows it, "" when it is gone."""
        text = self._ip("route", "show", "exact", self.target, "proto", PROTOCOL)
        return text.strip()

    def used(self) -> str:
        """Protocol and metric of the route that a packet takes, such as "132 1031"."""
        text = self._ip("-j", "route", "get", "fibmatch", self.address, ok=(0, 2))
        found = json.loads(text or "[]")
        return f"{found[0].get('protocol')} {found[0].get('metric')}" if found else "none"

    def is_ours_in_front(self) -> bool:
        """Whether a packet takes ours while the other has the place."""
        return self.used() == "132 1031"

    def told_by(self) -> dict[str, str]:
        """What each command says of it; "" when it does not name the protocol."""
        status = self._world.ask(NODE, "status") or {}
        said = {
            "status": "; ".join(status.get("findings", [])),
            "routes": json.dumps(self._world.ask(NODE, "routes", self.target)),
            "explain": self._explained(),
            "doctor": json.dumps(self._world.ask(NODE, "doctor")),
        }
        named = re.compile(rf"protocol {PROTOCOL}\b.*metric {self._metric}\b")
        return {what: text if named.search(text) else "" for what, text in said.items()}

    def _explained(self) -> str:
        """Of this node alone; 4: not everything could be seen from here."""
        paths = self._world.lab.paths
        run_dir = str(paths.run_dir(NODE))
        return namespaces.run(
            build.slash32_command("explain", self.address, "--local", "--run-dir", run_dir),
            namespace=self._world.lab.plan.namespace_of(NODE),
            env=build.environment(paths),
            ok=(0, 1, 4),
        )

    def _ip(self, *argv: str, ok: tuple[int, ...] = (0,)) -> str:
        return self._world.run(NODE, "ip", "-N", self._family, *argv, ok=ok)


def stays(version: int) -> Callable[[World, Verdict], None]:
    """K2 in one family: it takes our route, writes its own again each second, outlives an agent,
    and goes. Under traffic, from a pod here to one behind that route."""

    def run(world: World, verdict: Verdict) -> None:
        intruder = Intruder(world, version)
        routes, lines = world.own_routes(NODE), _log_lines(world)
        verdict.must(intruder.used() == "132 1032", f"before: {intruder.used()} is used")
        with world.watching(intruder.flow) as taken:
            intruder.replace()
            taken_s = world.wait(intruder.is_ours_in_front, "ours in front")
            world.for_seconds(1.0)
        theirs = intruder.own_line()
        with world.watching(intruder.flow) as kept:
            for _ in range(REPLACES):
                intruder.replace()
                world.for_seconds(1.0)
        named = intruder.told_by()
        lines = _log_lines(world) - lines
        ours = world.own_routes(NODE)
        with world.watching(intruder.flow) as restarted:
            world.kill(f"agent-{NODE}")
            world.start_agent(NODE)
            world.wait(lambda: bool(intruder.told_by()["status"]), "a new agent that names it")
        after_restart = world.own_routes(NODE)
        left_alone = intruder.own_line()
        with world.watching(intruder.flow) as gone:
            intruder.leave()
            back_s = world.wait(
                lambda: world.own_routes(NODE) == routes, "metric 1032", BACK_DEADLINE_S
            )
            world.for_seconds(1.0)
        world.settled()
        writes = [line for line in _ours(kept) if intruder.target in line]
        churn = [line for line in _ours(restarted) if intruder.target in line]
        verdict.note(
            f"{intruder.target}: ours used again {taken_s:.2f} s after the replace (longest gap of "
            f"8 ms probes {taken.longest_gap_s:.2f} s); {REPLACES} more replaces, {kept}; agent "
            f"killed and started: {restarted}; at metric 1032 again {back_s:.0f} s after it went: "
            f"{gone}; {lines} lines of log"
        )
        verdict.must(taken_s <= 2.0, f"ours is used again only after {taken_s:.1f} s")
        verdict.must(taken.longest_gap_s <= 2.0, f"a gap of {taken.longest_gap_s:.2f} s")
        verdict.must(taken.lost > 0, "control: nothing was lost when our route was taken away")
        for what, watch in (("replaces", kept), ("restart", restarted), ("its going", gone)):
            verdict.must(watch.lost == 0, f"{what}: {watch}")
        verdict.must(bool(theirs) and left_alone == theirs, f"theirs: {theirs!r}, {left_alone!r}")
        verdict.must(not writes and not churn, f"written without need: {(writes + churn)[:3]}")
        verdict.must(ours == after_restart, f"other after a restart: {ours ^ after_restart}")
        silent = [what for what, text in named.items() if not text]
        verdict.must(not silent, f"{', '.join(silent)}: protocol {PROTOCOL} is not named")
        verdict.must(lines <= LINES_MAX, f"{lines} lines in the log, {LINES_MAX} are the most")

    return run


def goes(world: World, verdict: Verdict) -> None:
    """K2a: it comes and goes at once; nothing of that is left but the metric, for a while."""
    intruder = Intruder(world, 4)
    routes = world.own_routes(NODE)
    intruder.replace()
    taken_s = world.wait(intruder.is_ours_in_front, "ours in front")
    told_s = world.wait(lambda: bool(intruder.told_by()["status"]), "the intruder's name")
    held = intruder.own_line()
    with world.watching(intruder.flow) as watch:
        intruder.leave()
        back_s = world.wait(
            lambda: world.own_routes(NODE) == routes, "metric 1032", BACK_DEADLINE_S
        )
    world.settled()
    verdict.note(
        f"in front after {taken_s:.2f} s, named after {told_s:.2f} s; it goes: {watch}, ours at "
        f"metric 1032 again after {back_s:.0f} s"
    )
    verdict.must(bool(held), "a foreign route was removed: what is not ours is not touched")
    verdict.must(taken_s <= 2.0, f"in front only after {taken_s:.2f} s")
    verdict.must(watch.lost == 0, str(watch))


def told(world: World, verdict: Verdict) -> None:
    """K2b: where the store is Kubernetes, an Event and the NodeStatus name its protocol."""
    intruder = Intruder(world, 4)

    def events() -> list[str]:
        return [each for each in world.events("RouteConflict") if intruder.target in each]

    intruder.replace()
    told_s = world.wait(lambda: bool(events()), "the Event")
    text = events()[0]
    used = intruder.used()
    intruder.leave()
    world.settled()
    verdict.note(f"Event after {told_s:.1f} s: {text!r}")
    verdict.must(f"protocol {PROTOCOL}" in text, f"it does not name the protocol: {text!r}")
    verdict.must("ours is in front" in text, f"it does not say that ours is used: {text!r}")
    verdict.must(used == "132 1031", f"{used} is used")


def overruled(world: World, verdict: Verdict) -> None:
    """K2d: a route of a lower metric is what an operator may mean; ours stays and is not used, and
    whoever asks is told whose is."""
    for version in (4, 6):
        intruder = Intruder(world, version, metric="100")
        routes, before = world.own_routes(NODE), intruder.told_by()
        intruder.add()
        used, named = intruder.used(), intruder.told_by()
        ours = world.own_routes(NODE)
        intruder.leave()
        world.settled()
        said = sorted(what for what, text in named.items() if text)
        verdict.note(f"{intruder.target}: named by {', '.join(said)}")
        # The kernel names no route that refuses.
        verdict.must(used == "none", f"control: {used} is used, not the intruder's black hole")
        verdict.must(ours == routes, f"our routes changed: {ours ^ routes}")
        verdict.must({"explain", "doctor"} <= set(said), f"only {said} name it")
        verdict.must("never used" in named["explain"], "explain does not say that ours is not used")
        verdict.must(not any(before.values()), f"control: named before it came: {before}")


def _log_lines(world: World) -> int:
    log = world.lab.paths.log(f"agent-{NODE}").read_text(errors="replace")
    return log.count("\n")


def _ours(watch: Watch) -> list[str]:
    """Changes of routes of ours on the node, by our protocol."""
    return [line for line in watch.events_on(NODE) if re.search(r"proto 132\b", line)]


_OUTCOME = (
    "ours used again within 2 s and theirs left alone; then 0 lost: over its next replaces, an "
    "agent's restart and its going, nothing written without need; named by all commands"
)

ROWS = [
    Row("K2", "`ip route replace` over one of ours by another program, which stays",
        _OUTCOME + "; an Event (K2b)", Stage.ONE_TOR, stays(4)),
    Row("K2c", "the same in IPv6", _OUTCOME, Stage.ONE_TOR, stays(6)),
    Row("K2a", "the same; it goes at once", "within 2 s, theirs left alone; 0 lost when it goes",
        Stage.ONE_TOR, goes, is_quick=True),
    Row("K2b", "the same, with the Kubernetes API as store", "an Event names its protocol and says "
        "that ours is in front", Stage.KUBERNETES, told),
    Row("K2d", "another program's route to the same prefix at a lower metric", "ours stays, "
        "unused; explain and doctor say whose is used", Stage.ONE_TOR, overruled),
]  # fmt: skip
