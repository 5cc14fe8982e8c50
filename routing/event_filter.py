"""Which kernel events are worth waking up for, as a classic BPF program. No I/O.

One ADD makes the kernel announce ten things and its own route makes an eleventh; none of them says
anything that the ADD does not know, and reading them cost the agent a third of the ADD's CPU. The
kernel runs this program before it queues an event on our socket. It only throws away what
``KernelFib`` would ignore; what it lets through is judged there as before.

The kernel's numbers are in host order and BPF loads in network order, so constants are turned.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence

from cni import netlink as nl
from cni.attachment import HOST_IFNAME_PREFIX
from routing.next_hop_objects import RTM_DELNEXTHOP
from routing.routes import TABLE_MAIN

RTPROT_KERNEL = 2
JUST_MADE = 0xFFFFFFFF
"""ifi_change of a link's first announcement (rtnl_configure_link)."""

_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30
_JEQ, _JSET = 0x15, 0x45
_AND, _RET = 0x54, 0x06
_KEEP, _DROP = "keep", "drop"

_TYPE, _PORT_ID = 4, 12
_IFI_FLAGS, _IFI_CHANGE, _FIRST_ATTRIBUTE_TYPE, _IFNAME = 24, 28, 34, 36
_IFA_SCOPE = 19
_RTM_TABLE, _RTM_PROTOCOL, _RTM_FLAGS = 20, 21, 24

Step = tuple[int, int, str, str]
"""Code, operand, label to go to when it holds, and when not; "" is the next step."""


def event_filter(own_ports: Collection[int]) -> bytes:
    """The program, as an array of ``struct sock_filter``.

    Args:
        own_ports: sockets whose route changes are our own doing.
    """
    names = HOST_IFNAME_PREFIX.encode()
    ours = int.from_bytes(names.ljust(4, b"\0"), "big")
    steps: list[tuple[str, Sequence[Step]]] = [
        (
            "start",
            [
                (_LD_H, _TYPE, "", ""),
                (_JEQ, _u16(nl.RTM_DELLINK), _KEEP, ""),
                (_JEQ, _u16(nl.RTM_NEWLINK), "link", ""),
                (_JEQ, _u16(nl.RTM_NEWROUTE), "route", ""),
                (_JEQ, _u16(nl.RTM_DELROUTE), "route", ""),
                (_JEQ, _u16(RTM_DELNEXTHOP), "ports", ""),
                (_JEQ, _u16(nl.RTM_NEWADDR), "address", ""),
                (_JEQ, _u16(nl.RTM_DELADDR), "address", _DROP),
            ],
        ),
        (
            "link",  # a pod's is news only when it goes down and stays
            [
                (_LD_H, _FIRST_ATTRIBUTE_TYPE, "", ""),
                (_JEQ, _u16(nl.IFLA_IFNAME), "", _KEEP),
                (_LD_W, _IFNAME, "", ""),
                (_AND, 0xFFFFFFFF << 8 * (4 - len(names)) & 0xFFFFFFFF, "", ""),
                (_JEQ, ours, "", _KEEP),
                (_LD_W, _IFI_CHANGE, "", ""),
                (_JEQ, JUST_MADE, _DROP, ""),
                (_JSET, _u32(nl.IFF_UP), "", _DROP),
                # dev_close: it is about to leave this namespace, and that is told by itself.
                (_JSET, _u32(nl.IFF_RUNNING), _DROP, ""),
                (_LD_W, _IFI_FLAGS, "", ""),
                (_JSET, _u32(nl.IFF_UP), _DROP, _KEEP),
            ],
        ),
        (
            "address",
            [(_LD_B, _IFA_SCOPE, "", ""), (_JEQ, nl.RT_SCOPE_LINK, _DROP, _KEEP)],
        ),
        (
            "route",
            [
                (_LD_B, _RTM_TABLE, "", ""),
                (_JEQ, TABLE_MAIN, "", _DROP),
                (_LD_B, _RTM_PROTOCOL, "", ""),
                (_JEQ, RTPROT_KERNEL, _DROP, ""),
                (_LD_W, _RTM_FLAGS, "", ""),
                (_JSET, _u32(nl.RTM_F_CLONED), _DROP, ""),
            ],
        ),
        (
            "ports",
            [
                (_LD_W, _PORT_ID, "", ""),
                *((_JEQ, _u32(port), _DROP, "") for port in own_ports),
                (_RET, 0xFFFFFFFF, "", ""),
            ],
        ),
        (_KEEP, [(_RET, 0xFFFFFFFF, "", "")]),
        (_DROP, [(_RET, 0, "", "")]),
    ]
    return _assemble(steps)


def _assemble(blocks: Sequence[tuple[str, Sequence[Step]]]) -> bytes:
    places: dict[str, int] = {}
    length = 0
    for label, steps in blocks:
        places[label] = length
        length += len(steps)
    program = b""
    number = 0
    for _label, steps in blocks:
        for code, operand, if_so, if_not in steps:
            number += 1
            jumps = [places[label] - number if label else 0 for label in (if_so, if_not)]
            program += struct.pack("=HBBI", code, *jumps, operand)
    return program


def _u16(value: int) -> int:
    return int.from_bytes(struct.pack("=H", value), "big")


def _u32(value: int) -> int:
    return int.from_bytes(struct.pack("=I", value), "big")
