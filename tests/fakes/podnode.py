"""A node with pods and an outside, in namespaces: real links made by KernelWiring, nothing else.

Routes are written with ``ip``, so that what is tested is the wire and its protection alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

from cni.attachment import Address, Attachment
from cni.edge_nft import NftEdge
from cni.podlink import GATEWAY_V4, PodLink
from cni.wiring import KernelWiring
from tests.fakes.netns import Fabric, Namespace, fabric

NODE_V4, OUTSIDE_V4 = "10.9.0.1", "10.9.0.2"
NODE_V6, OUTSIDE_V6 = "fd09::1", "fd09::2"
UPLINK = "up0"


@dataclass(frozen=True)
class Pod:
    """One wired pod."""

    link: PodLink
    namespace: Namespace
    mac: str

    @property
    def v4(self) -> str:
        """Its IPv4 address."""
        return str(self.link.ipv4)

    @property
    def v6(self) -> str:
        """Its IPv6 address."""
        return str(self.link.ipv6)

    @property
    def host_ifname(self) -> str:
        """The host end of its link."""
        return self.link.host_ifname


class PodNode:
    """A node; ``outside`` is its default gateway in both families and knows the pods' prefixes."""

    def __init__(self, made: Fabric, stack: ExitStack, mtu_bytes: int) -> None:
        self._made = made
        self.mtu_bytes = mtu_bytes
        self.pods: list[Pod] = []
        self.node, self.outside = made.namespace("node"), made.namespace("out")
        for each in (self.node, self.outside):
            each.sysctl("ipv4/conf/all/rp_filter", "0")
            # Otherwise the uplink's link-local address is of no use for its first second.
            each.sysctl("ipv6/conf/default/accept_dad", "0")
        made.join((self.node, UPLINK), (self.outside, UPLINK))
        self.wiring = KernelWiring(netns_fd=self.node.fd)
        stack.callback(self.wiring.close)
        self.wiring.prepare_host()
        self.edge = NftEdge(netns_fd=self.node.fd)
        stack.callback(self.edge.close)
        for each, v4, v6 in (
            (self.node, NODE_V4, NODE_V6),
            (self.outside, OUTSIDE_V4, OUTSIDE_V6),
        ):
            each.ip_batch(
                [
                    f"link set {UPLINK} mtu {mtu_bytes}",
                    f"address add {v4}/24 dev {UPLINK}",
                    f"address add {v6}/64 dev {UPLINK} nodad",
                ]
            )
        self.node.ip_batch(
            [
                f"route add {GATEWAY_V4}/32 dev lo",
                f"route add default via {OUTSIDE_V4}",
                f"route add ::/0 via {OUTSIDE_V6}",
            ]
        )
        self.outside.ip_batch(
            [f"route add 10.1.0.0/16 via {NODE_V4}", f"route add fd01::/64 via {NODE_V6}"]
        )

    def pod(self, *, families: tuple[int, ...] = (4, 6)) -> Pod:
        """Another pod: 10.1.0.N and fd01::N, wired and routed."""
        number = len(self.pods) + 1
        namespace = self._made.namespace(f"pod{number}")
        every: dict[int, Address] = {
            4: ip_address(f"10.1.0.{number}"),
            6: ip_address(f"fd01::{number}"),
        }
        attachment = Attachment("net", f"{namespace.name}", "eth0")
        link = PodLink(attachment, tuple(every[each] for each in families), self.mtu_bytes)
        self.wiring.create(link, namespace.fd)
        self.node.ip_batch(
            [
                f"route add {each} dev {link.host_ifname} proto 132 metric 1032"
                for each in link.addresses
            ]
        )
        made = Pod(link, namespace, self.wiring.configure_pod(link, namespace.fd))
        self.pods.append(made)
        return made


@contextmanager
def pod_node(*, mtu_bytes: int = 1500) -> Iterator[PodNode]:
    """A node for the length of a block."""
    with fabric() as made, ExitStack() as stack:
        yield PodNode(made, stack, mtu_bytes)


def delete_rule(namespace: Namespace, name: str) -> None:
    """Takes one rule of ours out of the kernel."""
    listed = json.loads(namespace.run("nft", "-j", "list", "ruleset"))["nftables"]
    (rule,) = [each["rule"] for each in listed if each.get("rule", {}).get("comment") == name]
    place = f"{rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}"
    namespace.run("nft", "delete", "rule", *place.split())
