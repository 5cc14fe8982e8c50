"""Vendor name -> how its part is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from routing.torconfig import bird, eos, frr, gobgp, junos, nxos, openbgpd, sonic
from routing.torconfig.side import RouterSide

VENDORS: Mapping[str, Callable[[RouterSide], str]] = {
    "frr": frr.render,
    "bird": bird.render,
    "gobgp": gobgp.render,
    "openbgpd": openbgpd.render,
    "eos": eos.render,
    "nxos": nxos.render,
    "junos": junos.render,
    "sonic": sonic.render,
}
