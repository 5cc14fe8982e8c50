"""B: well-formed routes that must not be used: whose prefix, path or next hop is not to be had.

Each refusal is looked for where an operator would: in the kernel, in ``slash32 routes --rejected``
with its reason, and in the metric that counts refusals of that reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import yaml

from lab.chaos.hostile import (
    OPTIONAL,
    ORIGIN,
    OURS,
    PATH,
    WELL_KNOWN,
    Raw,
    as_path,
    attribute,
    ends,
    next_hop,
    nlri,
    prefixes_via,
    raw_speaker,
    update,
)
from lab.chaos.rows import Row, Stage, Verdict
from lab.chaos.world import World
from lab.plan import TOR_ASN

AT_ONCE_S = 1.0
SERVER = "10.96.0.1/32"
"""Where clusters have their API server, as a pod sees it."""
HTTP_PORT = 9178
LOCAL_PREF = attribute(WELL_KNOWN, 5, b"\x00\x00\x00\x64")


@dataclass(frozen=True, slots=True)
class Denied:
    """A route that must not be used, and the token of the reason that is owed."""

    what: str
    prefix: str
    reason: str
    attributes: bytes = b""


# -- B3 ----------------------------------------------------------------------------------------


def denied_prefixes(own: str, other: str) -> Iterator[Denied]:
    """The matrix's list; ``own`` and ``other`` are this node's and another node's block, /26."""
    yield Denied("the default route", "0.0.0.0/0", "default-route")
    for martian in ("127.0.0.0/8", "127.0.0.1/32", "169.254.0.0/16", "169.254.1.1/32",
                    "224.0.0.0/4", "224.0.0.5/32", "240.0.0.0/4", "255.255.255.255/32",
                    "0.0.0.0/8"):  # fmt: skip
        yield Denied(f"{martian}", martian, "martian")
    for node_net, reason in (
        ("172.30.0.0/31", "connected-network"),
        ("172.30.0.1/32", "connected-network"),
        ("172.30.0.0/16", "not-in-pool"),
    ):
        yield Denied(f"the nodes' own net {node_net}", node_net, reason)
    yield Denied("the API server", SERVER, "not-in-pool")
    yield Denied("our own block", own, "own-block")
    yield Denied("a half of our own block", f"{own.rpartition('/')[0]}/27", "own-block")
    inside = ip_address(own.rpartition("/")[0]) + 5
    yield Denied("somebody's address in our block", f"{inside}/32", "own-block")
    yield Denied("another node's block", other, "not-owner")
    foreign = ip_address(other.rpartition("/")[0]) + 5
    yield Denied("an address in another's block", f"{foreign}/32", "too-long")
    for length in (27, 30, 32):
        yield Denied(f"/{length} of the pool", f"10.244.200.0/{length}", "too-long")
    for prefix in ("10.244.0.0/15", "10.0.0.0/8", "8.0.0.0/5"):
        yield Denied(f"more than the pool: {prefix}", prefix, "too-short")
    yield Denied("somebody else's net", "8.8.8.0/24", "not-in-pool")


def unwelcome_prefixes(world: World, verdict: Verdict) -> None:
    """Every prefix of the list in a sound UPDATE, with nothing allowed beyond the pools; then the
    default route once more where importAllow has it."""
    _, far = ends(world, "tor2", "node1")
    hop = str(far)
    own, other = (next(b for b in world.blocks_of(n) if "." in b) for n in world.nodes[:2])
    table = list(denied_prefixes(own, other))
    with raw_speaker(world, "tor2") as raw, _allowing(world) as allow:
        raw.wait_up()
        for each in table:
            # As short a path as the other router's: else that one's default is the better one.
            path = as_path(TOR_ASN) if each.prefix == "0.0.0.0/0" else PATH
            raw.send(update(ORIGIN + path + next_hop(hop), nlri(each.prefix)))
        _sound_route_comes(world, raw, hop, "10.244.64.0/26")
        _all_refused(world, verdict, table, hop)
        verdict.must(world.is_up_at("tor1", "node1"), "the session with the other router was lost")
        allow("0.0.0.0/0")
        took_s = world.wait(
            lambda: "default" in _via(world, hop), "the default route, once it is allowed"
        )
        verdict.note(f"control: the default route is there {took_s:.1f} s after it is allowed")


@contextmanager
def _allowing(world: World) -> Iterator[Callable[..., None]]:
    """Nothing in importAllow; sets what is. As the lab has it at the end."""

    def allow(*prefixes: str) -> None:
        spec = {"importAllow": list(prefixes), "nodeToNodeMeshEnabled": False}
        document = {
            "apiVersion": "slash32.io/v1", "kind": "BGPConfiguration",
            "metadata": {"name": "default"}, "spec": spec,
        }  # fmt: skip
        world.apply(yaml.safe_dump(document))

    allow()
    try:
        yield allow
    finally:
        allow("0.0.0.0/0", "::/0")


def _sound_route_comes(world: World, raw: Raw, hop: str, prefix: str, more: bytes = b"") -> None:
    """What came before it has been dealt with when it is there."""
    attributes = ORIGIN + (more or PATH + next_hop(hop))
    raw.send(update(attributes, nlri(prefix)))
    world.wait(lambda: prefix in _via(world, hop), f"the sound route {prefix}")


def _via(world: World, hop: str) -> set[str]:
    return prefixes_via(world, hop)


def _all_refused(
    world: World, verdict: Verdict, table: Sequence[Denied], hop: str, *, peer: str = ""
) -> None:
    """None in the kernel, each told with its reason, and counted. ``peer``: ``hop`` is not its."""
    peer = peer or hop
    names = {each: each.prefix.removesuffix("/32") for each in table}

    def installed() -> list[str]:
        there = {"0.0.0.0/0" if name == "default" else name for name in _via(world, hop)}
        return [each.what for each in table if names[each] in there]

    world.wait(lambda: not installed(), "nothing of it in the kernel", deadline_s=5.0)
    rows = world.ask("node1", "routes", "--rejected") or []
    told = {row["prefix"]: row["reason"] for row in rows if peer in json.dumps(row)}
    wrong = [
        f"{each.what}: {told.get(each.prefix, 'nothing')} (owed: {each.reason})"
        for each in table
        if told.get(each.prefix) != each.reason
    ]
    owed = Counter(each.reason for each in table)
    counted = rejected_counters(world, peer)
    missing = {r: (n, counted.get(r, 0)) for r, n in owed.items() if counted.get(r, 0) < n}
    verdict.note(
        f"{len(table)} routes, {len(installed())} installed; told and counted: "
        + ", ".join(f"{reason} {number}" for reason, number in sorted(owed.items()))
    )
    verdict.must(not wrong, f"{len(wrong)} not told as owed: {'; '.join(wrong[:3])}")
    verdict.must(not missing, f"not counted (owed, counted): {missing}")


def rejected_counters(world: World, peer: str) -> dict[str, int]:
    """``slash32_bgp_rejected_prefixes`` of a peer at node1, by reason."""
    text = world.run("node1", "curl", "-s", f"http://127.0.0.1:{HTTP_PORT}/metrics")
    found = {}
    for line in text.splitlines():
        if line.startswith("slash32_bgp_rejected_prefixes{") and f'peer="{peer}"' in line:
            reason = re.search(r'reason="([^"]+)"', line)
            if reason:
                found[reason[1]] = int(float(line.rsplit(" ", 1)[1]))
    return found


# -- B4 ----------------------------------------------------------------------------------------


def loops(world: World, verdict: Verdict) -> None:
    """Our ASN in the path over eBGP; over iBGP our own ORIGINATOR_ID, our id in CLUSTER_LIST."""
    _, far = ends(world, "tor2", "node1")
    hop = str(far)
    conf = (world.lab.paths.run_dir("node1") / "exabgp.conf").read_text()
    found = re.search(r"router-id ([\d.]+)", conf)
    assert found is not None  # noqa: S101 - ExaBGP needs one
    own_id, other_id = ip_address(found[1]).packed, ip_address("192.0.2.250").packed
    external = [
        Denied("our ASN last", "10.244.200.0/26", "as-loop", as_path(TOR_ASN, OURS)),
        Denied(
            "our ASN in the middle", "10.244.200.64/26", "as-loop", as_path(TOR_ASN, OURS, 65010)
        ),
        Denied("our ASN alone", "10.244.200.128/26", "as-loop", as_path(OURS)),
    ]
    reflected = LOCAL_PREF + attribute(OPTIONAL, 9, other_id)
    internal = [
        Denied("our own ORIGINATOR_ID", "10.244.201.0/26", "own-originator",
               as_path() + LOCAL_PREF + attribute(OPTIONAL, 9, own_id)),
        Denied("our id in CLUSTER_LIST", "10.244.201.64/26", "own-cluster",
               as_path() + reflected + attribute(OPTIONAL, 10, other_id + own_id)),
    ]  # fmt: skip
    with raw_speaker(world, "tor2") as raw:
        raw.wait_up()
        for each in external:
            raw.send(update(ORIGIN + each.attributes + next_hop(hop), nlri(each.prefix)))
        _sound_route_comes(world, raw, hop, "10.244.64.0/26")
        _all_refused(world, verdict, external, hop)
    with (
        raw_speaker(world, "tor2", asn=OURS) as raw,
        world.peer_edited("node1", "tor2", {"asNumber": OURS}),
    ):
        raw.wait_up()
        for each in internal:
            raw.send(update(ORIGIN + each.attributes + next_hop(hop), nlri(each.prefix)))
        sound = as_path() + next_hop(hop) + reflected + attribute(OPTIONAL, 10, other_id)
        _sound_route_comes(world, raw, hop, "10.244.64.0/26", sound)
        _all_refused(world, verdict, internal, hop)


# -- B7 ----------------------------------------------------------------------------------------


def unreachable_next_hop(world: World, verdict: Verdict) -> None:
    """A next hop on no link of the node's; then the link gets an address beside it. Over iBGP,
    where a next hop may be far, another program's route to it comes."""
    _, far = ends(world, "tor2", "node1")
    hop = str(far)
    uplink = next(n.ifname for n, f in world.lab.plan.links_of(world.machine("node1"))
                  if f.machine.name == "tor2")  # fmt: skip
    gateway, prefix = "198.51.100.2", "10.244.200.0/26"
    with raw_speaker(world, "tor2") as raw:
        raw.wait_up()
        raw.send(update(ORIGIN + PATH + next_hop(gateway), nlri(prefix)))
        _sound_route_comes(world, raw, hop, "10.244.64.0/26")
        off_link = [Denied("off the link", prefix, "next-hop-off-link")]
        _all_refused(world, verdict, off_link, gateway, peer=hop)
        with _made(world, f"address add 198.51.100.1/30 dev {uplink}"):
            connected_s = world.wait(lambda: prefix in _via(world, gateway), "the route")
        gone_s = world.wait(lambda: prefix not in _via(world, gateway), "the route to go")
    with (
        raw_speaker(world, "tor2", asn=OURS) as raw,
        world.peer_edited("node1", "tor2", {"asNumber": OURS}),
    ):
        raw.wait_up()
        internal = ORIGIN + as_path() + LOCAL_PREF
        raw.send(update(internal + next_hop(gateway), nlri(prefix)))
        raw.send(update(internal + next_hop(hop), nlri("10.244.64.0/26")))
        world.wait(lambda: "10.244.64.0/26" in _via(world, hop), "the sound route")
        verdict.must(prefix not in _via(world, hop), "a route by a next hop that nothing leads to")
        with _made(world, f"route add {gateway}/32 via {hop} dev {uplink} proto static"):
            recursive_s = world.wait(lambda: prefix in _via(world, hop), "the recursive route")
        lost_s = world.wait(lambda: prefix not in _via(world, hop), "the recursive route to go")
    verdict.note(
        f"installed {connected_s:.2f} s after the link had an address there, gone after "
        f"{gone_s:.2f} s without; iBGP: installed {recursive_s:.2f} s after another program's "
        f"route came, gone after {lost_s:.2f} s"
    )
    for what, took_s in (("connected", connected_s), ("recursive", recursive_s)):
        verdict.must(took_s <= AT_ONCE_S, f"{what}: installed only after {took_s:.2f} s")


@contextmanager
def _made(world: World, command: str) -> Iterator[None]:
    """An ``ip`` command with ``add`` in it, undone at the end."""
    world.run("node1", "ip", *command.split())
    try:
        yield
    finally:
        world.run("node1", "ip", *command.replace(" add ", " del ").split())


_TWO = Stage.TWO_TORS

ROWS = [
    Row("B3", "a sound UPDATE for each prefix that nobody may announce: default, martians, the "
        "nodes' net, the API server, our block and parts of it, too long, too short",
        "0 in the kernel, each told with its reason and counted; installed when allowed", _TWO,
        unwelcome_prefixes, is_quick=True),
    Row("B4", "our own ASN in the path; our own ORIGINATOR_ID, our id in CLUSTER_LIST (iBGP)",
        "0 in the kernel, each told with its reason and counted", _TWO, loops, is_quick=True),
    Row("B7", "a next hop that is on no link, and one that nothing leads to (iBGP)",
        f"not installed; within {AT_ONCE_S:.0f} s once it can be reached", _TWO,
        unreachable_next_hop),
]  # fmt: skip
