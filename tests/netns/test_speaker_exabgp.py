"""What survives what: the agent, ExaBGP, its bridge and the router are ended in turn."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from bgp import conf_file
from bgp.exabgp_conf import announced_in, render
from bgp.paths import Address, Advertisement, Family, Peer, Prefix
from bgp.speaker import BRIDGE, Speaker
from bgp.supervise import exabgp_command, exabgp_environment
from routing.delta import diff
from tests.fakes.bgp_world import (
    RealSpeakers,
    Routers,
    eventually,
    is_established,
    wait_until,
    why_not,
)

pytestmark = [
    pytest.mark.netns,
    pytest.mark.exabgp,
    pytest.mark.bird,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

ROOT = Path(__file__).parent.parent.parent
BLOCK = ip_network("10.244.1.64/26")
LEARNED = "10.9.0.0/26"


def wanted_by(peer: Peer) -> dict[tuple[Address, Prefix], Advertisement]:
    return {(peer.address, BLOCK): Advertisement(BLOCK)}


async def pass_of_the_hub(speaker: Speaker, peer: Peer) -> None:
    """What the hub does when a session has come up: announce the difference, then End-of-RIB."""
    failures = await speaker.apply(diff(wanted_by(peer), await speaker.adj_rib_out()))
    assert failures == []
    for family in Family:
        await speaker.send_end_of_rib(peer.address, family)


async def settled(routers: Routers, node: RealSpeakers) -> Peer:
    """One session, one block announced, two prefixes learned, complete."""
    peer = routers.peer(1)
    routers.send(1, [LEARNED, "10.9.1.0/26"])
    routers.birds[1].start()
    await node.start()
    await node.speaker.set_peers({peer.address: peer})
    node.start_exabgp()
    await eventually(lambda: is_established(node.speaker, peer.address), what="session")
    await node.connected()
    await pass_of_the_hub(node.speaker, peer)
    await eventually(lambda: node.speaker.is_complete(peer.address), what="complete")
    await eventually(lambda: str(BLOCK) in routers.birds[1].routes("node"), what="announced")
    assert len(node.speaker.paths()) == 2
    return peer


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_stock_exabgp_does_all_that_a_node_needs(
    routers: Routers, node: RealSpeakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With none of our changes: it learns and announces, hears what changes, and the agent can be
    replaced. What an operator gets who sets SLASH32_EXABGP, or has another ExaBGP than ours."""
    monkeypatch.setenv("SLASH32_EXABGP", "stock")
    peer = await settled(routers, node)
    assert node.speaker.exabgp_mode == "stock: by setting"

    routers.send(1, [LEARNED, "10.9.2.0/26"])
    learned = {(peer.address, ip_network(each)) for each in (LEARNED, "10.9.2.0/26")}
    await eventually(lambda: set(node.speaker.paths()) == learned, what="the change")

    speaker = await node.restart_agent()
    await speaker.set_peers({peer.address: peer})
    await eventually(lambda: set(speaker.paths()) == learned, what="read back")
    assert BLOCK in {prefix for _, prefix in await speaker.adj_rib_out()}
    await speaker.apply(diff({}, await speaker.adj_rib_out()))
    await eventually(lambda: str(BLOCK) not in routers.birds[1].routes("node"), what="withdrawn")
    assert routers.birds[1].sessions_so_far("node") == 1


@pytest.mark.parametrize("kill", [True, False], ids=["SIGKILL", "SIGTERM"])
async def test_exabgp_ends_and_another_takes_its_place(
    kill: bool, routers: Routers, node: RealSpeakers
) -> None:
    """The router keeps our block throughout; we keep what we learned until End-of-RIB sorts it."""
    peer = await settled(routers, node)
    bird = routers.birds[1]
    node.end_exabgp(kill=kill)
    await eventually(lambda: not node.speaker.is_connected, what="the speaker is lost")
    assert len(node.speaker.paths()) == 2
    assert not node.speaker.is_complete(peer.address)
    # While nobody listens the router takes one prefix back and offers another.
    routers.send(1, [LEARNED, "10.9.2.0/26"])
    assert str(BLOCK) in bird.routes("node")
    node.start_exabgp()
    await node.connected()
    # From its file, for nobody has told it anything yet.
    assert await node.speaker.adj_rib_out() == wanted_by(peer)
    await eventually(lambda: is_established(node.speaker, peer.address), what="session")
    # Believed all the time, whether it has been heard again yet or not.
    assert (peer.address, ip_network(LEARNED)) in node.speaker.paths()
    await pass_of_the_hub(node.speaker, peer)
    expected = {ip_network(LEARNED), ip_network("10.9.2.0/26")}
    await eventually(
        lambda: {prefix for _, prefix in node.speaker.paths()} == expected, what="swept"
    )
    assert bird.routes("node") == {str(BLOCK): "10.255.1.1"}
    assert bird.route_changes("node")["ipv4"][1] == 0
    assert node.speaker.sessions()[peer.address].flaps == 1


async def test_a_bridge_that_is_killed_is_replaced_and_nothing_moves(
    routers: Routers, node: RealSpeakers
) -> None:
    """ExaBGP starts another; the speaker reads everything back; the router notices nothing."""
    peer = await settled(routers, node)
    bird = routers.birds[1]
    before = bird.sessions_so_far("node"), bird.routes("node")
    paths = node.speaker.paths()
    status = node.speaker.sessions()[peer.address]
    assert node.exabgp is not None
    (bridge,) = children(node.exabgp.pid)
    node.changes.clear()
    os.kill(bridge, signal.SIGKILL)
    await eventually(lambda: "speaker_lost" in node.changes, what="the loss is noticed")
    await node.connected()
    assert node.speaker.paths() == paths
    assert await node.speaker.adj_rib_out() == wanted_by(peer)
    after = node.speaker.sessions()[peer.address]
    assert (after.since_s, after.flaps) == (status.since_s, status.flaps)
    # What the peer had said died with the bridge; it is asked to say it again.
    await eventually(lambda: node.speaker.is_complete(peer.address), what="complete again")
    assert node.speaker.paths() == paths
    # ExaBGP takes the marks of the peer's refresh for a request and says our route once more.
    assert (bird.sessions_so_far("node"), bird.routes("node")) == before
    assert children(node.exabgp.pid) != [bridge]


async def test_a_router_that_loses_its_power_comes_back(
    routers: Routers, node: RealSpeakers
) -> None:
    """It promised to come back, so its paths wait for it; it says its kernel has lost them: gone.

    They come again with its announcements, and it is told our block again.
    """
    peer = await settled(routers, node)
    bird = routers.birds[1]
    bird.kill()
    await eventually(lambda: not is_established(node.speaker, peer.address), what="down")
    assert node.speaker.sessions()[peer.address].routes_stale == 2
    bird.start()
    await eventually(lambda: is_established(node.speaker, peer.address), what="session")
    # None of the old ones is left; BIRD may have announced them anew by now.
    assert node.speaker.sessions()[peer.address].routes_stale == 0
    await pass_of_the_hub(node.speaker, peer)
    await eventually(lambda: node.speaker.is_complete(peer.address), what="complete")
    assert len(node.speaker.paths()) == 2
    await eventually(
        lambda: bird.routes("node") == {str(BLOCK): "10.255.1.1"}, what="announced again"
    )


async def test_a_peer_can_be_added_while_another_is_out_of_reach(
    routers: Routers, node: RealSpeakers
) -> None:
    """ExaBGP drops a reload while anything waits for a session; so nothing may ever wait there."""
    # Attempts hang there; one that is refused would let ExaBGP clean up.
    one = replace(routers.peer(1), address=routers.swallow(1, 77))
    two = routers.peer(2)
    routers.birds[2].start()
    await node.start()
    await node.speaker.set_peers({one.address: one})
    node.start_exabgp()
    await node.connected()
    assert await node.speaker.apply(diff(wanted_by(one), {})) == []
    began_s = time.monotonic()
    await node.speaker.set_peers({one.address: one, two.address: two})
    await eventually(lambda: is_established(node.speaker, two.address), what="session with 2")
    assert time.monotonic() - began_s < 10
    assert await node.speaker.adj_rib_out() == wanted_by(one)
    # Nor may the file have ExaBGP wait, should it start now.
    assert announced_in(node.conf.read_text()) == {}


async def test_the_file_has_what_exabgp_has_and_not_what_is_to_go(
    routers: Routers, node: RealSpeakers
) -> None:
    """Withdrawn means gone from the file too, whether the session is up or not."""
    peer = await settled(routers, node)
    other = ip_network("10.244.7.0/26")
    both = wanted_by(peer) | {(peer.address, other): Advertisement(other, med=3)}
    assert await node.speaker.apply(diff(both, await node.speaker.adj_rib_out())) == []
    assert announced_in(node.conf.read_text()) == both
    assert node.conf.stat().st_mode & 0o777 == 0o600
    assert await node.speaker.apply(diff(wanted_by(peer), both)) == []
    assert announced_in(node.conf.read_text()) == wanted_by(peer)
    routers.birds[1].stop()
    await eventually(lambda: not is_established(node.speaker, peer.address), what="down")
    assert await node.speaker.apply(diff({}, wanted_by(peer))) == []
    assert announced_in(node.conf.read_text()) == {}
    # The mark is the old one, so nothing of this asked for a reload.
    assert not node.speaker._needs_reload()


async def test_a_file_that_cannot_be_written_is_said_and_tried_again(
    routers: Routers, node: RealSpeakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peers are told all the same; the hub learns that a restart would forget it."""
    peer = await settled(routers, node)
    write, full = conf_file.write_conf, [True]

    def write_or_not(path: str, text: str) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text)

    monkeypatch.setattr(conf_file, "write_conf", write_or_not)
    other = ip_network("10.244.7.0/26")
    both = wanted_by(peer) | {(peer.address, other): Advertisement(other)}
    (failure,) = await node.speaker.apply(diff(both, await node.speaker.adj_rib_out()))
    assert failure.key == (peer.address, other)
    assert "exabgp.conf cannot be written" in failure.error
    await eventually(lambda: str(other) in routers.birds[1].routes("node"), what="announced")
    assert announced_in(node.conf.read_text()) == wanted_by(peer)
    full[0] = False
    await eventually(lambda: announced_in(node.conf.read_text()) == both, what="written later")


async def test_two_changes_of_the_peers_in_a_row_both_take_effect(
    routers: Routers, node: RealSpeakers
) -> None:
    """The last one wins, and ExaBGP's file is the one it has loaded."""
    one, two = routers.peer(1), routers.peer(2)
    for bird in routers.birds.values():
        bird.start()
    await node.start()
    await node.speaker.set_peers({})
    node.start_exabgp()
    await node.connected()
    await node.speaker.set_peers({one.address: one})
    await node.speaker.set_peers({two.address: two})
    await eventually(lambda: is_established(node.speaker, two.address), what="session with 2")
    assert set(node.speaker.sessions()) == {two.address}
    await node.speaker.set_peers({})
    await eventually(
        lambda: routers.birds[2].ask("show protocols node").count("Established") == 0,
        what="session 2 is closed",
    )


# -- the agent as a process ---------------------------------------------------------------------


class AgentProcess:
    """tests/fakes/bgp_agent.py on the node's files."""

    def __init__(
        self, directory: Path, peer: Peer, *, announce: list[str], graceful_restart_s: int = 120
    ) -> None:
        self.conf = directory / "exabgp.conf"
        self._report = directory / "report.json"
        self._plan = directory / "plan.json"
        self._plan.write_text(
            json.dumps(
                {
                    "socket": str(directory / "bgp.sock"),
                    "conf": str(self.conf),
                    "report": str(self._report),
                    "announce": announce,
                    "peers": [
                        {
                            "name": peer.name,
                            "address": str(peer.address),
                            "remote_asn": peer.remote_asn,
                            "local_asn": peer.local_asn,
                            "local_address": str(peer.local_address),
                            "router_id": str(peer.router_id),
                            "hold_time_s": peer.hold_time_s,
                            "graceful_restart_s": graceful_restart_s,
                        }
                    ],
                }
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._report.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fakes" / "bgp_agent.py"), str(self._plan)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def report(self) -> dict[str, Any]:
        try:
            report = json.loads(self._report.read_text())
        except FileNotFoundError:
            return {"pid": 0, "connected": False, "paths": 0, "complete": [], "up": []}
        assert isinstance(report, dict)
        return report

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()


@pytest.fixture
def exabgp_of(routers: Routers, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def start_exabgp(routers: Routers, conf: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["ip", "netns", "exec", routers.node, *exabgp_command(str(conf))],
        env=exabgp_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_an_agent_that_is_killed_again_and_again_moves_nothing(
    routers: Routers, tmp_path: Path, exabgp_of: list[subprocess.Popen[bytes]]
) -> None:
    """Six SIGKILLs: one session, one announcement, no withdrawal, nothing sent twice."""
    routers.send(1, [LEARNED])
    bird = routers.birds[1]
    bird.start()
    peer = routers.peer(1)
    agent = AgentProcess(tmp_path, peer, announce=[str(BLOCK)])
    try:
        agent.start()
        wait_until(agent.conf.exists, what="the configuration")
        exabgp_of.append(start_exabgp(routers, agent.conf))
        wait_until(lambda: str(BLOCK) in bird.routes("node"), what="announced")
        wait_until(lambda: agent.report()["paths"] == 1, what="learned")
        before = bird.sessions_so_far("node"), bird.route_changes("node")
        for _ in range(6):
            agent.kill()
            assert str(BLOCK) in bird.routes("node")
            agent.start()
            wait_until(lambda: agent.report()["paths"] == 1, what="read back")
            assert agent.report()["changed"] == 0
            assert agent.report()["up"] == [str(peer.address)]
        assert (bird.sessions_so_far("node"), bird.route_changes("node")) == before
        assert before[0] == 1
        assert exabgp_of[0].poll() is None
        # The control: the death of ExaBGP itself does move something there.
        exabgp_of[0].kill()
        exabgp_of[0].wait(10)
        exabgp_of.append(start_exabgp(routers, agent.conf))
        wait_until(lambda: bird.sessions_so_far("node") > before[0], what="another session")
    finally:
        agent.kill()


def test_a_stopped_agent_does_not_stop_the_keepalives(
    routers: Routers, tmp_path: Path, exabgp_of: list[subprocess.Popen[bytes]]
) -> None:
    """Longer than the hold time, and with more news than pipes hold; then it has it all."""
    count = 40_000
    bird = routers.birds[1]
    routers.send(1, [LEARNED])
    bird.start()
    peer = routers.peer(1)
    agent = AgentProcess(
        tmp_path, Peer(**{**_fields(peer), "hold_time_s": 3}), announce=[str(BLOCK)]
    )
    try:
        agent.start()
        wait_until(agent.conf.exists, what="the configuration")
        exabgp_of.append(start_exabgp(routers, agent.conf))
        wait_until(lambda: agent.report()["paths"] == 1, what="learned")
        agent.signal(signal.SIGSTOP)
        routers.send(1, [str(ip_network((0x64000000 + n * 16, 28))) for n in range(count)])
        # The negotiated hold time is 3 s; without keepalives the session would not see the end.
        frozen_s = time.monotonic()
        wait_until(lambda: time.monotonic() - frozen_s > 5.0, what="a hold time is well over")
        assert bird.sessions_so_far("node") == 1
        assert "Established" in bird.ask("show protocols node")
        agent.signal(signal.SIGCONT)
        wait_until(lambda: agent.report()["paths"] == count, what="everything", deadline_s=30)
        assert bird.sessions_so_far("node") == 1
    finally:
        agent.kill()


def _fields(peer: Peer) -> dict[str, Any]:
    return {name: getattr(peer, name) for name in peer.__dataclass_fields__}


# -- slash32 speaker -----------------------------------------------------------------------------


def test_the_speaker_command_waits_starts_restarts_and_ends(
    routers: Routers, tmp_path: Path
) -> None:
    """It waits for the file, replaces an ExaBGP that is killed, and takes everything along."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", routers.node, sys.executable, "-c",
         "from routing.cli.speaker import speaker; speaker()", "--run-dir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        with process.stderr:
            assert b"waiting for" in process.stderr.readline()
            assert children(process.pid) == []
            conf = tmp_path / "exabgp.conf"
            conf.write_text(
                render(
                    {}, python=sys.executable, bridge=BRIDGE, socket_path=str(tmp_path / "s")
                ).text
            )
            wait_until(lambda: children(process.pid), what="ExaBGP")
            (first,) = children(process.pid)
            wait_until(lambda: children(first), what="the bridge")
            (bridge,) = children(first)
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: not is_alive(bridge), what="the orphaned bridge is gone")
            wait_until(lambda: children(process.pid) not in ([], [first]), what="another ExaBGP")
            (second,) = children(process.pid)
            wait_until(lambda: children(second), what="another bridge")
            process.terminate()
            assert process.wait(10) == 0
            assert not is_alive(second)
            assert b"status -9" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["exabgp.conf"]


def test_a_killed_speaker_command_leaves_no_exabgp_behind(routers: Routers, tmp_path: Path) -> None:
    """Two of them on the same address would fight over every session."""
    peer = routers.peer(1)
    conf = tmp_path / "exabgp.conf"
    conf.write_text(
        render(
            {ip_address(peer.address): peer},
            python=sys.executable,
            bridge=BRIDGE,
            socket_path=str(tmp_path / "s"),
        ).text
    )
    process = subprocess.Popen(
        ["ip", "netns", "exec", routers.node, sys.executable, "-c",
         "from routing.cli.speaker import speaker; speaker()", "--run-dir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: children(process.pid), what="ExaBGP")
        (exabgp,) = children(process.pid)
        wait_until(lambda: children(exabgp), what="the bridge")
        (bridge,) = children(exabgp)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not is_alive(exabgp) and not is_alive(bridge), what="both are gone")
