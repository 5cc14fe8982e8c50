"""The packet's way: kernel routes, next hops, links, the pod, and the way back. Pure."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from routing.explain.case import Case, block_of, lookup_of, pod_at, routes_to
from routing.explain.evidence import (
    ARRIVAL,
    BACK,
    FORWARD,
    KernelEvidence,
    KernelRoute,
    Lookup,
    NodeEvidence,
    PodFacts,
)
from routing.explain.steps import Chain

_DEAD = ("FAILED", "INCOMPLETE")


def add_forwarding(chain: Chain, case: Case) -> None:
    """From the source to the destination."""
    source = case.source_pod
    if source is not None:
        _add_pod(chain, case.origin, source, "source")
    if _is_blind(chain, case.origin):
        return
    if not case.is_local:
        _add_kernel_route(chain, case, case.origin, case.destination)
        _add_lookup(chain, case, case.origin, FORWARD, case.destination)
        _add_neighbour(chain, case.origin, FORWARD, case.destination)
        _add_mtu(chain, case.origin, FORWARD, case.destination, source)
    if case.owner is None or not case.has_pod:
        return
    if not case.is_local:
        if _is_blind(chain, case.owner):
            return
        _add_arrivals(chain, case.owner, case.destination)
    target = case.target_pod
    if target is None:
        return
    _add_pod(chain, case.owner, target, "target")
    if case.is_local:
        _add_local_lookup(chain, case)


def add_way_back(chain: Chain, case: Case) -> None:
    """The answer's way, where it is another machine's to send."""
    if case.owner is None or case.is_local or case.source is None or case.target_pod is None:
        return
    if case.owner.kernel is None:
        return
    if block_of(case.cluster, case.source) is not None:
        _add_kernel_route(chain, case, case.owner, case.source, way="back")
    _add_lookup(chain, case, case.owner, BACK, case.source, way="back")
    _add_neighbour(chain, case.owner, BACK, case.source, way="back")
    _add_mtu(chain, case.owner, BACK, case.source, case.target_pod, way="back")
    if case.source_pod is not None:
        _add_arrivals(chain, case.origin, case.source, way="back")


def add_probes(chain: Chain, case: Case) -> None:
    """What real packets met."""
    probes = case.origin.kernel.probes if case.origin.kernel else ()
    for probe in probes:
        title = f"a packet of {probe.size_bytes} bytes is answered"
        words = f"{probe.received} of {probe.sent} answered" + (
            f": {probe.words}" if probe.words else ""
        )
        if probe.received:
            chain.ok("probe", case.origin.node, title, words)
        else:
            chain.wrong(
                "probe", case.origin.node, title, words,
                fault="probe-lost",
                remedy="if every step above holds, something between the nodes drops it (a "
                "router's filter, its MTU), or the destination does not answer ICMP echo",
            )  # fmt: skip
    if not probes:
        chain.unknown("probe", case.origin.node, "real packets are answered", "none could be sent")


def _is_blind(chain: Chain, node: NodeEvidence) -> bool:
    if node.kernel is not None:
        return False
    chain.unknown(
        "kernel", node.node, "the node's kernel agrees",
        f"its kernel could not be seen: {node.kernel_error}",
        remedy=f"run slash32 explain on {node.node}, or give a way to it (--via)",
    )  # fmt: skip
    return True


# -- routes ------------------------------------------------------------------------------------


def _id(name: str, way: str) -> str:
    return f"back-{name}" if way == "back" else name


def _add_kernel_route(
    chain: Chain, case: Case, node: NodeEvidence, destination: str, *, way: str = "there"
) -> None:
    """The route for the destination's prefix, as the agent wants it, is in the table."""
    block = block_of(case.cluster, destination)
    wanted = None
    if node.agent is not None:
        found = [
            w for w in node.agent.wanted if _covers(w.prefix, destination) and w.kind == "remote"
        ]
        wanted = max(found, key=lambda w: ip_network(w.prefix).prefixlen, default=None)
    prefix = wanted.prefix if wanted else block.cidr if block else None
    if prefix is None:
        return
    if block is not None and prefix.endswith("/0"):
        # Only the default route is wanted: nothing was learned, which an earlier step has said.
        prefix = block.cidr
        wanted = None
    title = f"the kernel has the route to {prefix}"
    there = routes_to(node, prefix)
    ours = next((route for route in there if route.is_ours), None)
    if ours is None:
        named = ", ".join(str(route) for route in there)
        held = f"; in its place: {named}" if named else ""
        chain.wrong(
            _id("fib", way), node.node, title,
            f"no route of ours to {prefix} is in the kernel of {node.node}{held}",
            fault="foreign-route" if there else "route-missing",
            remedy=f"the agent puts it back within seconds when it runs and has a best path; see "
            f"`slash32 routes {prefix} --node {node.node}`, and who removes it "
            f"(ip monitor route)",
        )  # fmt: skip
        return
    others = [route for route in there if not route.is_ours and route.table == ours.table]
    if others and others[0].metric < ours.metric:
        chain.wrong(
            _id("fib", way), node.node, title,
            f"it is there and never used: {others[0]} has a lower metric than ours, {ours.metric}",
            fault="foreign-route",
            remedy=_remove(others[0]),
        )  # fmt: skip
        return
    if wanted is not None and set(wanted.hops) != set(ours.hops):
        chain.wrong(
            _id("fib", way), node.node, title,
            f"the kernel has {ours}, the agent wants {', '.join(map(str, wanted.hops))}",
            fault="route-wrong",
            remedy=f"the agent mends it within seconds when it runs; see `slash32 routes {prefix}`",
        )  # fmt: skip
        return
    behind = f"; behind it, unused: {', '.join(map(str, others))}" if others else ""
    chain.ok(_id("fib", way), node.node, title, f"{ours}{behind}")


def _remove(foreign: KernelRoute) -> str:
    return (
        f"remove it if nobody needs it (ip route del {foreign.prefix} table {foreign.table} "
        f"metric {foreign.metric}), or find who adds it (protocol {foreign.protocol})"
    )


def _covers(prefix: str, address: str) -> bool:
    network, wanted = ip_network(prefix), ip_address(address)
    return network.version == wanted.version and wanted in network


def _add_lookup(
    chain: Chain, case: Case, node: NodeEvidence, role: str, destination: str, *, way: str = "there"
) -> None:
    """The kernel's own decision for this packet, by the route that is meant for it."""
    title = f"the kernel sends a packet to {destination} that way"
    lookup = lookup_of(node, role, destination)
    if lookup is None or node.kernel is None:
        chain.unknown(_id("lookup", way), node.node, title, "the kernel was not asked")
        return
    question = _words(lookup)
    if lookup.error:
        _add_refusal(chain, node, node.kernel, lookup, _id("lookup", way), title)
        return
    entry = lookup.entry
    is_pods = block_of(case.cluster, destination) is not None
    if entry is not None and is_pods and not entry.is_ours:
        chain.wrong(
            _id("lookup", way), node.node, title,
            f"{question}: a foreign route decides: {entry}",
            fault="foreign-route",
            remedy=_remove(entry),
        )  # fmt: skip
        return
    chain.ok(
        _id("lookup", way), node.node, title,
        f"{question}: {lookup.hop}" + (f", by {entry}" if entry else ""),
    )  # fmt: skip


def _words(lookup: Lookup) -> str:
    source = f" from {lookup.source}" if lookup.source else ""
    iif = f" that comes in by {lookup.arrives_on}" if lookup.arrives_on else ""
    return f"to {lookup.destination}{source}{iif}"


def _add_refusal(
    chain: Chain, node: NodeEvidence, kernel: KernelEvidence, lookup: Lookup, id_: str, title: str
) -> None:
    """A lookup that ended in an error: which of the kernel's reasons it is."""
    question = _words(lookup)
    if _is_rp_filter(kernel, lookup):
        towards = f" but {lookup.towards_source}" if lookup.towards_source else ""
        chain.wrong(
            id_, node.node, title,
            f"{question}: rp_filter drops it, for the way back to {lookup.source} is not "
            f"{lookup.arrives_on}{towards} ({_rp_filter(kernel, lookup.arrives_on)})",
            fault="rp-filter",
            remedy=f"set net.ipv4.conf.{lookup.arrives_on}.rp_filter and conf.all to 2 (loose) or "
            f"0, or find out why {lookup.source} is routed elsewhere (ip route get "
            f"{lookup.source})",
        )  # fmt: skip
        return
    if _is_forwarding_off(kernel, lookup):
        chain.wrong(
            id_, node.node, title,
            f"{question}: forwarding is off ({_forwarding(kernel, lookup.arrives_on)})",
            fault="forwarding-off", remedy="set net.ipv4.ip_forward=1; something turned it off",
        )  # fmt: skip
        return
    deciding = lookup.entry or _narrowest(kernel, lookup.destination)
    words = f" ({deciding})" if deciding else ""
    chain.wrong(
        id_, node.node, title,
        f"{question}: the kernel refuses it: {lookup.error}{words}",
        fault="foreign-route" if _is_foreign_refusal(deciding) else "no-route",
        remedy=f"ip route get {lookup.destination} on {node.node} shows the same; see `slash32 "
        f"routes {lookup.destination}`",
    )  # fmt: skip


def _narrowest(kernel: KernelEvidence, destination: str) -> KernelRoute | None:
    """The entry that decides where the kernel does not name it: it names none that refuses."""
    found = [route for route in kernel.covering if _covers(route.prefix, destination)]
    return min(
        found, key=lambda r: (-ip_network(r.prefix).prefixlen, r.metric), default=None
    )  # fmt: skip


def _is_foreign_refusal(entry: KernelRoute | None) -> bool:
    return entry is not None and not entry.is_ours


def _is_rp_filter(kernel: KernelEvidence, lookup: Lookup) -> bool:
    """Strict reverse path filtering (RFC 3704), and the source leaves elsewhere."""
    if lookup.error == "EXDEV":
        return True
    if lookup.error != "EINVAL" or lookup.arrives_on is None or lookup.source is None:
        return False
    names = ("net.ipv4.conf.all.rp_filter", f"net.ipv4.conf.{lookup.arrives_on}.rp_filter")
    strictness = max(int(kernel.sysctls.get(name, "0")) for name in names)
    towards = lookup.towards_source
    return strictness == 1 and (towards is None or towards.ifname != lookup.arrives_on)


def _is_forwarding_off(kernel: KernelEvidence, lookup: Lookup) -> bool:
    name = f"net.ipv4.conf.{lookup.arrives_on}.forwarding"
    return lookup.arrives_on is not None and kernel.sysctls.get(name, "1") == "0"


def _forwarding(kernel: KernelEvidence, ifname: str | None) -> str:
    names = ("net.ipv4.conf.all.forwarding", f"net.ipv4.conf.{ifname}.forwarding")
    return ", ".join(f"{name}={kernel.sysctls.get(name, '?')}" for name in names)


def _rp_filter(kernel: KernelEvidence, ifname: str | None) -> str:
    names = ("net.ipv4.conf.all.rp_filter", f"net.ipv4.conf.{ifname}.rp_filter")
    return ", ".join(f"{name}={kernel.sysctls.get(name, '?')}" for name in names)


def _add_neighbour(
    chain: Chain, node: NodeEvidence, role: str, destination: str, *, way: str = "there"
) -> None:
    lookup = lookup_of(node, role, destination)
    if lookup is None or lookup.hop is None or lookup.hop.gateway is None or node.kernel is None:
        return
    hop = lookup.hop
    title = f"the next hop {hop.gateway} answers on {hop.ifname}"
    found = next(
        (n for n in node.kernel.neighbours if (n.address, n.ifname) == (hop.gateway, hop.ifname)),
        None,
    )
    if found is None:
        chain.unknown(_id("neighbour", way), node.node, title, "the neighbour was not looked up")
    elif found.state in _DEAD:
        chain.wrong(
            _id("neighbour", way), node.node, title,
            f"neighbour {hop.gateway} dev {hop.ifname} is {found.state}",
            fault="neighbour-failed",
            remedy="the next hop does not answer ARP or ND: look at the cable, the VLAN and the "
            "router's interface",
        )  # fmt: skip
    else:
        mac = f" {found.mac}" if found.mac else ""
        chain.ok(_id("neighbour", way), node.node, title, f"{found.state}{mac}")


def _add_mtu(
    chain: Chain,
    node: NodeEvidence,
    role: str,
    destination: str,
    pod: PodFacts | None,
    *,
    way: str = "there",
) -> None:
    """A packet as big as the pod may send fits the link it leaves by."""
    lookup = lookup_of(node, role, destination)
    if pod is None or lookup is None or lookup.hop is None or node.kernel is None:
        return
    hop = lookup.hop
    link = next((each for each in node.kernel.links if each.ifname == hop.ifname), None)
    if link is None:
        return
    title = f"a full packet of the pod fits {hop.ifname}"
    pod_mtu = pod.inside_mtu_bytes or pod.host.mtu_bytes
    limit, what = link.mtu_bytes, f"{hop.ifname} takes {link.mtu_bytes}"
    if lookup.mtu_bytes is not None and lookup.mtu_bytes < limit:
        limit, what = lookup.mtu_bytes, f"the path takes {lookup.mtu_bytes} (learned)"
    if limit < pod_mtu:
        chain.wrong(
            _id("mtu", way), node.node, title,
            f"pod {pod.name} sends up to {pod_mtu} bytes, {what}",
            fault="mtu-too-small",
            remedy=f"raise the MTU of {hop.ifname} (and of the way behind it) to {pod_mtu}, or "
            "start the agent with a smaller --mtu and make the pods anew",
        )  # fmt: skip
    else:
        chain.ok(_id("mtu", way), node.node, title, f"{pod_mtu} bytes, {what}")


def _add_arrivals(
    chain: Chain, node: NodeEvidence, destination: str, *, way: str = "there"
) -> None:
    """A packet that comes in from outside is let in; where it then goes is the next step's."""
    if node.kernel is None:
        return
    lookups = [
        each
        for each in node.kernel.lookups
        if each.role == ARRIVAL and each.destination == destination
    ]
    for lookup in lookups:
        title = f"{node.node} takes it in from {lookup.arrives_on}"
        refused = _is_rp_filter(node.kernel, lookup) or _is_forwarding_off(node.kernel, lookup)
        if lookup.error and refused:
            _add_refusal(chain, node, node.kernel, lookup, _id("arrival", way), title)
        else:
            chain.ok(_id("arrival", way), node.node, title, _words(lookup))


# -- pods --------------------------------------------------------------------------------------


def _add_pod(chain: Chain, node: NodeEvidence, pod: PodFacts, role: str) -> None:
    """Link, sysctls, host route and the inside of one pod. The link first: one that is down has
    lost its route."""
    prefix = f"{role}-"
    where = f"{node.node} {pod.host_ifname}"
    title = f"the link of pod {pod.name} is up"
    if not pod.host.is_up or not pod.host.has_carrier:
        state = "down" if not pod.host.is_up else "up, without carrier: the pod's end is down"
        chain.wrong(
            prefix + "link", where, title, f"{pod.host_ifname} is {state}",
            fault="veth-down",
            remedy=f"the agent brings the host end up again when it runs; ip link set "
            f"{pod.host_ifname} up; if the pod's end is down, make the pod anew",
        )  # fmt: skip
    else:
        chain.ok(prefix + "link", where, title, f"up, MTU {pod.host.mtu_bytes}")
    if pod.host_differences:
        chain.wrong(
            prefix + "link-settings", where, "the link is as it was made",
            "; ".join(pod.host_differences),
            fault="link-changed",
            remedy="the agent mends it within 30 s when it runs; find who changes it",
        )  # fmt: skip
    _add_sysctls(chain, pod, where, prefix)
    _add_host_route(chain, node, pod, prefix)
    _add_inside(chain, pod, prefix)


_SYSCTL_FAULTS = {"proxy_arp": "proxy-arp-off", "rp_filter": "rp-filter",
                  "forwarding": "forwarding-off"}  # fmt: skip


def _add_sysctls(chain: Chain, pod: PodFacts, where: str, prefix: str) -> None:
    title = "the link's sysctls are ours"
    if not pod.sysctls:
        chain.ok(prefix + "sysctls", where, title, "proxy_arp, rp_filter, forwarding and others")
        return
    told = "; ".join(f"{s.name} is {s.found}, not {s.wanted}" for s in pod.sysctls)
    first = pod.sysctls[0]
    by_fault = {s.name.rpartition(".")[2]: s for s in pod.sysctls}
    named = next((key for key in _SYSCTL_FAULTS if key in by_fault), None)
    chosen = by_fault[named] if named else first
    chain.wrong(
        prefix + "sysctls", where, title, told,
        fault=_SYSCTL_FAULTS[named] if named else "sysctl",
        remedy=f"sysctl -w {chosen.name}={chosen.wanted}; the agent does it within 30 s when it "
        "runs; find who changes it (sysctl.d, a hardening script)",
    )  # fmt: skip


def _add_host_route(chain: Chain, node: NodeEvidence, pod: PodFacts, prefix: str) -> None:
    length = 32 if "." in pod.address else 128
    host = f"{pod.address}/{length}"
    title = f"{host} leads to the pod's link"
    there = routes_to(node, host)
    right = [r for r in there if [hop.ifname for hop in r.hops] == [pod.host_ifname]]
    wrong = [r for r in there if r not in right]
    if wrong and (not right or wrong[0].metric < right[0].metric):
        chain.wrong(
            prefix + "host-route", node.node, title, f"it leads elsewhere: {wrong[0]}",
            fault="wrong-host-route",
            remedy=f"the agent mends its own route when it runs; remove a foreign one (ip route "
            f"show {host})",
        )  # fmt: skip
    elif not right:
        chain.wrong(
            prefix + "host-route", node.node, title, f"there is no route to {host}",
            fault="host-route-missing",
            remedy="the agent puts it back within seconds when it runs; find who removes it (ip "
            "monitor route)",
        )  # fmt: skip
    else:
        chain.ok(prefix + "host-route", node.node, title, str(right[0]))


def _add_inside(chain: Chain, pod: PodFacts, prefix: str) -> None:
    title = f"inside the pod {pod.ifname} has its address and routes"
    where = f"pod {pod.name}"
    if pod.inside is None:
        chain.unknown(
            prefix + "pod", where, title, "its network namespace could not be opened from here",
            remedy="run it on the node itself, as root",
        )  # fmt: skip
        return
    if pod.inside:
        chain.wrong(
            prefix + "pod", where, title, "; ".join(pod.inside),
            fault="pod-changed",
            remedy="something in the pod changed it; make the pod anew",
        )  # fmt: skip
        return
    gateway = pod.gateway
    words = f"{pod.address}, default route"
    if gateway is not None:
        # "none": the pod has not asked for it yet, and knows nothing against it.
        words += f", gateway {'not asked yet' if gateway.state == 'none' else gateway.state}"
    if gateway is not None and gateway.state in _DEAD:
        chain.wrong(
            prefix + "pod", where, title,
            f"the gateway {gateway.address} does not answer the pod ({gateway.state})",
            fault="gateway-silent",
            remedy="the host end must answer for it: proxy_arp on the link, and a route to "
            "169.254.1.1 on the host",
        )  # fmt: skip
        return
    chain.ok(prefix + "pod", where, title, words)


def _add_local_lookup(chain: Chain, case: Case) -> None:
    """Source and destination on one node: the packet never leaves it."""
    lookup = lookup_of(case.origin, FORWARD, case.destination)
    title = f"the kernel sends a packet to {case.destination} to the pod"
    target = pod_at(case.owner, case.destination)
    if lookup is None or target is None or case.origin.kernel is None:
        chain.unknown("lookup", case.origin.node, title, "the kernel was not asked")
        return
    if lookup.error:
        _add_refusal(chain, case.origin, case.origin.kernel, lookup, "lookup", title)
    elif lookup.hop is None or lookup.hop.ifname != target.host_ifname:
        chain.wrong(
            "lookup", case.origin.node, title, f"it leads to {lookup.hop}, by {lookup.entry}",
            fault="foreign-route", remedy=f"ip route get {case.destination} shows the same",
        )  # fmt: skip
    else:
        chain.ok("lookup", case.origin.node, title, f"{_words(lookup)}: {lookup.hop}")
