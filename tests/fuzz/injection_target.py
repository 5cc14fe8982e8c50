"""Hostile texts in every field of every resource, followed to wherever a text comes out again."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from prometheus_client.parser import text_string_to_metric_families

from bgp.exabgp_conf import ConfError, render
from routing.datastore.resources import from_document
from routing.datastore.snapshot import (
    NodeStatusResource,
    Resource,
    Snapshot,
)
from routing.metrics.observing import Scrape
from routing.picture.compose import compose
from routing.picture.dot import to_dot
from routing.picture.layout import to_svg
from routing.picture.model import Observed, Report
from routing.picture.page import to_html
from routing.report import PassReport
from routing.telemetry import LeafFormatter, renderers
from routing.topology import sessions_for
from routing.torconfig.side import router_sides
from routing.torconfig.vendors import VENDORS
from tests.fakes.observation import observation
from tests.fuzz.documents import DOCUMENTS
from tests.fuzz.draw import Draw
from tests.fuzz.resource_targets import read, snapshot_of_all
from tests.fuzz.target import Broken, Target

MARK = "zq9"
"""In every hostile text, so that it can be found wherever it comes out."""


def injection(data: bytes) -> bool:
    """A hostile text in one field after another; what is accepted must stay a text everywhere."""
    draw = Draw(data)
    resources: list[Resource] = []
    is_accepted = False
    for document in DOCUMENTS:
        hurt = json.loads(json.dumps(document))
        tried = _with_text(hurt, draw, MARK + draw.text()) if draw.below(3) else False
        found = read(hurt)
        is_accepted |= tried and found is not None
        resources.append(found if found is not None else from_document(document))
    _check_everywhere(resources, Draw(data).text(), len(data) % 3)
    return is_accepted


def _with_text(document: dict[str, Any], draw: Draw, text: str) -> bool:
    """Puts ``text`` in the place of one text of the document, or of one key."""
    places = [place for place in _texts_in(document) if place[1] not in ("apiVersion", "kind")]
    holder, key = draw.choice(places)
    if draw.below(8) == 7 and isinstance(holder, dict):
        holder[text] = holder.pop(key)
    else:
        old = holder[key]
        holder[key] = text if draw.below(2) else f"{old}{text}"
    return True


def _texts_in(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, str):
            found.append((value, key))
        elif isinstance(inner, dict | list):
            found += _texts_in(inner)
    return found


def _check_everywhere(resources: list[Resource], foreign: str, which: int) -> None:
    snapshot = snapshot_of_all(resources)
    statuses = [each for each in resources if isinstance(each, NodeStatusResource)]
    for node in snapshot.nodes:
        topology = sessions_for(snapshot, node.meta.name)
        _check_conf(topology)
        _check_file_names(node.meta.name)
        _check_logs([*topology.problems, node.meta.name, foreign])
    # Each takes milliseconds, so one a case.
    if which == 0:
        _check_metrics(snapshot)
    elif which == 1:
        _check_routers(snapshot)
    else:
        _check_pictures(snapshot, statuses, foreign)


CONF_LINES = re.compile(
    r"""\#\ Rendered\ by\ slash32;\ edits\ are\ overwritten\.
    |process\ agent\ \{|\ \ run\ /usr/bin/python3\ -IS\ /a/bridge\.py\ /run/slash32/bgp\.sock;
    |\ \ encoder\ json;|\}|neighbor\ [0-9a-f.:]+\ \{|\ \ description\ "slash32-[0-9a-f]{16}";
    |\ \ (router-id|local-address)\ [0-9a-f.:]+;
    |\ \ (local-as|peer-as|hold-time|connect|listen|incoming-ttl|outgoing-ttl)\ [0-9]+;
    |\ \ (passive|group-updates|manual-eor|adj-rib-in|adj-rib-out|md5-base64)\ (true|false);
    |\ \ md5-password\ "[A-Za-z0-9+/=]+";
    |\ \ family\ \{\ (ipv[46]\ unicast;\ )+\}|\ \ nexthop\ \{\ ipv4\ unicast\ ipv6;\ \}
    |\ \ capability\ \{\ graceful-restart\ ([0-9]+|disable);\ route-refresh\ enable;\ \}
    |\ \ api\ \{\ processes\ \[\ agent\ \];\ neighbor-changes;\ receive\ \{[a-z;\ ]+\}\ \}""",
    re.VERBOSE,
)


def _check_conf(topology: Any) -> None:
    """Every line of exabgp.conf is one of ours, in full."""
    peers = {}
    for intent in topology.sessions:
        local = ip_address("192.0.2.11" if intent.address.version == 4 else "2001:db8::11")
        peers[intent.address] = intent.peer(local)
    try:
        conf = render(
            peers,
            python="/usr/bin/python3",
            bridge="/a/bridge.py",
            socket_path="/run/slash32/bgp.sock",
        )
    except ConfError as error:
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from None
        return
    for line in conf.text.split("\n"):
        if line and not CONF_LINES.fullmatch(line):
            raise Broken(f"a line in exabgp.conf that is not ours: {line!r}")
    if MARK in conf.text:
        raise Broken("a user's text in exabgp.conf")


def _check_file_names(node: str) -> None:
    """A node's name is one component of a path, whatever is made of it."""
    if Path("/run/x").joinpath(f"{node}.json").parent != Path("/run/x") or "\0" in node:
        raise Broken(f"a node's name leads out of its directory: {node!r}")


def _check_logs(texts: list[str]) -> None:
    """One event is one line without control characters, in both forms."""
    for style in ("json", "console"):
        leaf = LeafFormatter(style=style)
        for text in texts:
            record = logging.LogRecord("cni.x", 20, "", 0, "event key=%s", (text,), None)
            line: Any = {"event": "happened", "key": text}
            for step in renderers(style):
                line = step(None, "info", line)
            for written in (leaf.format(record), str(line)):
                if not written.isprintable():
                    raise Broken(f"a text broke out of its line: {written!r}")


def _check_metrics(snapshot: Snapshot) -> None:
    """The scrape parses, and every sample of it is of a family of ours."""
    names = [*(peer.meta.name for peer in snapshot.peers), *(p.meta.name for p in snapshot.pools)]
    seen = observation()
    peers = {
        address: replace(peer, name=name)
        for (address, peer), name in zip(
            seen.report.desired.peers.items(), [*names, "a", "b"], strict=False
        )
    }
    desired = replace(seen.report.desired, peers=peers)
    report: PassReport = replace(seen.report, desired=desired)
    text = Scrape(lambda: replace(seen, snapshot=snapshot, report=report)).text().decode()
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(("slash32_", "python_", "process_")):
            raise Broken(f"a family that is not ours: {family.name!r}")


def _check_routers(snapshot: Snapshot) -> None:
    """What an operator pastes into a router holds no text of a user's but names."""
    for side in router_sides(snapshot):
        names = [side.peer, *((side.password.name, side.password.key) if side.password else ())]
        if not all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names):
            raise Broken(f"a name that no router takes: {names}")
        for vendor, render_side in VENDORS.items():
            text = render_side(side)
            for name in sorted(names, key=len, reverse=True):
                text = text.replace(name, "")
            if MARK in text:
                raise Broken(f"{vendor}: a user's text that is no name: {text}")


def _check_pictures(snapshot: Snapshot, statuses: list[NodeStatusResource], foreign: str) -> None:
    """SVG and HTML are well-formed, and no text of a user's is an element or an attribute."""
    reports = {
        status.meta.name: Report(
            tuple(
                Observed(str(p.address), p.state, p.name, p.asn, reason=p.reason)
                for p in status.peers
            ),
            foreign,
            findings=tuple(condition.message for condition in status.conditions),
        )
        for status in statuses
    }
    picture = compose(snapshot, reports, title=foreign, caption=foreign)
    html, svg, dot = to_html(picture), to_svg(picture), to_dot(picture)
    for text in (svg, html):
        if re.search(r"<(?:script|img|iframe)\b[^>]*alert", text) or "<" + MARK in text:
            raise Broken("a user's text is markup")
    try:
        ElementTree.fromstring(svg)  # noqa: S314 - our own text
    except ElementTree.ParseError as error:
        raise Broken(f"the picture is not XML: {error}: {svg[:200]!r}") from None
    if MARK in re.sub(r'"(?:[^"\\]|\\.)*"', "", dot):
        raise Broken(f"a user's text outside of quotes in the graph: {dot}")


def injection_seeds() -> Iterator[bytes]:
    """Each kind in turn, several texts in several places."""
    for number in range(60):
        yield b"\0" * (number % 11) + bytes([1, 0, number, number % 7, 0, number % 2] * 12)
        yield bytes([number, 1, 3, number, 7, 1, number, 2]) * 10


TARGETS = (
    Target(
        "injection",
        "hostile texts in every field, followed to exabgp.conf, file names, logs, "
        "metrics, pages and routers' configurations",
        injection,
        injection_seeds,
        weight=2,
    ),
)
