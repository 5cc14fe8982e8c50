"""Every link of ours in the host's namespace, as the kernel describes it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cni import hostend
from cni import netlink as nl
from cni.netlink_socket import NetlinkSocket
from cni.podlink import AliasError, AliasRecord, decode_alias
from cni.wiring_errors import as_wiring_error

log = logging.getLogger(__name__)

_OBSERVED = frozenset({nl.IFLA_IFNAME, nl.IFLA_MTU, nl.IFLA_IFALIAS})


@dataclass(frozen=True, slots=True)
class ObservedLink:
    """A link of ours in the host's namespace. ``is_up`` is administratively up."""

    record: AliasRecord
    ifindex: int
    ifname: str
    is_up: bool
    mtu_bytes: int


class LinkReader:
    """Reads them again and again, and parses what is new.

    Args:
        socket: of its own: whoever reads a thousand links in a thread must not keep an ADD waiting.
    """

    def __init__(self, socket: NetlinkSocket) -> None:
        self._socket = socket
        self._unreadable: frozenset[int] = frozenset()
        self._observed: dict[bytes, ObservedLink] = {}
        """What ``read`` returned last, by the kernel's message."""

    def read(self) -> list[ObservedLink]:
        """Every link of ours. One that has our tag in an unreadable form is logged and left out.

        A link that the kernel describes as it did last time is the same object again: parsing a
        thousand of them costs 20 ms, during which no ADD is served.

        Raises:
            WiringError: the kernel gave no consistent dump.
        """
        observed: dict[bytes, ObservedLink] = {}
        unreadable: set[int] = set()
        with as_wiring_error("links"):
            bodies = self._socket.dump(nl.RTM_GETLINK, hostend.dump_veths())
        before = self._observed
        for body in bodies:
            link = before.get(body) or self._observe(body, unreadable)
            if link is not None:
                observed[body] = link
        self._unreadable = frozenset(unreadable)
        self._observed = observed
        return list(observed.values())

    def _observe(self, body: bytes, unreadable: set[int]) -> ObservedLink | None:
        parts = nl.attributes(body, nl.IFINFOMSG.size, wanted=_OBSERVED)
        alias = parts.get(nl.IFLA_IFALIAS)
        if alias is None:
            return None
        _family, _type, ifindex, flags, _change = nl.IFINFOMSG.unpack_from(body)
        ifname = nl.text(parts[nl.IFLA_IFNAME])
        try:
            record = decode_alias(nl.text(alias))
        except AliasError as error:
            unreadable.add(ifindex)
            if ifindex not in self._unreadable:
                log.warning("link_unreadable ifname=%s error=%s", ifname, error)
            return None
        if record is None:
            return None
        mtu_bytes = nl.u32(parts[nl.IFLA_MTU])
        return ObservedLink(record, ifindex, ifname, bool(flags & nl.IFF_UP), mtu_bytes)
