"""Status: what agents report, of their nodes and of IPPools and BGPPeers. Pure.

A status is no wish: it has no rules between fields, only types and bounds.
"""

from __future__ import annotations

import re
from typing import Any

from routing.datastore.fields import ASN_MAX, Fields, Malformed, parse_address
from routing.datastore.snapshot import (
    Condition,
    ConditionStatus,
    Meta,
    NodeStatusResource,
    PeerReport,
    ResourceStatus,
)

PEERS_MAX = 1000
CONDITIONS_MAX = 64
ESTABLISHED = "Established"
"""A session's state (RFC 4271 section 8.2.2) that counts as up."""
MESSAGE_MAX_CHARACTERS = 32768
"""As metav1.Condition has it."""
TEXT_MAX_CHARACTERS = 1024
COUNT_MAX = 2**63 - 1
ROUTE_KINDS = ("pod", "block", "remote")
ADDRESS_USES = ("used", "resting", "free")
TYPE_PATTERN = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
REASON_PATTERN = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"
"""As metav1.Condition has it; ours are CamelCase tokens."""
REASON_MAX_CHARACTERS = 1024
TIME_PATTERN = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"

_TYPE = re.compile(TYPE_PATTERN)
_REASON = re.compile(REASON_PATTERN)
_TIME = re.compile(TIME_PATTERN)


def parse_time(value: object) -> str:
    """A moment in RFC 3339, UTC, whole seconds. Raises Malformed."""
    if isinstance(value, str) and _TIME.fullmatch(value):
        return value
    raise Malformed("must be a time such as 2026-01-31T12:00:00Z")


def read_node_status(meta: Meta, status: Fields) -> NodeStatusResource:
    """A NodeStatus from its document's status. Raises InvalidResource."""
    status.known("established")
    return NodeStatusResource(
        meta=meta,
        version=_text(status, "version"),
        observed_at=status.optional("observedAt", parse_time) or "",
        peers=tuple(_peer(peer) for peer in status.sections("peers", at_most=PEERS_MAX)),
        routes=_counts(status.section("routes"), ROUTE_KINDS),
        addresses=_counts(status.section("addresses"), ADDRESS_USES),
        conditions=read_conditions(status),
    )


def _peer(peer: Fields) -> PeerReport:
    found = PeerReport(
        name=_text(peer, "name", is_required=True),
        address=peer.parsed("address", peer.take("address"), parse_address),
        asn=peer.integer("asNumber", low=1, high=ASN_MAX),
        state=_text(peer, "state", is_required=True),
        since=peer.optional("since", parse_time) or "",
        reason=_text(peer, "reason"),
        received=peer.integer("received", default=0, low=0, high=COUNT_MAX),
        accepted=peer.integer("accepted", default=0, low=0, high=COUNT_MAX),
        rejected=peer.integer("rejected", default=0, low=0, high=COUNT_MAX),
        advertised=peer.integer("advertised", default=0, low=0, high=COUNT_MAX),
    )
    peer.done()
    return found


def _text(fields: Fields, key: str, *, is_required: bool = False) -> str:
    value = (fields.text(key) if is_required else fields.text(key, "")) or ""
    if len(value) > TEXT_MAX_CHARACTERS:
        raise fields.error(key, value, f"must have at most {TEXT_MAX_CHARACTERS} characters")
    return value


def _counts(fields: Fields, keys: tuple[str, ...]) -> dict[str, int]:
    counts = {key: fields.integer(key, low=0, high=COUNT_MAX) for key in keys if fields.has(key)}
    for key in keys:
        fields.known(key)
    fields.done()
    return counts


def read_conditions(status: Fields) -> tuple[Condition, ...]:
    """``conditions`` of a status, metav1.Conditions, one of each type. Raises InvalidResource."""
    found: list[Condition] = []
    for fields in status.sections("conditions", at_most=CONDITIONS_MAX):
        kind = fields.parsed("type", fields.take("type"), _parse_type)
        if any(kind == each.type for each in found):
            raise fields.error("type", kind, "is given twice")
        states = [each.value for each in ConditionStatus]
        message = fields.text("message", "") or ""
        if len(message) > MESSAGE_MAX_CHARACTERS:
            raise fields.error(
                "message", message, f"must have at most {MESSAGE_MAX_CHARACTERS} characters"
            )
        found.append(
            Condition(
                type=kind,
                status=ConditionStatus(fields.choice("status", states)),
                reason=fields.parsed("reason", fields.take("reason"), _parse_reason),
                message=message,
                observed_generation=fields.integer(
                    "observedGeneration", default=0, low=0, high=COUNT_MAX
                ),
                changed_at=fields.optional("lastTransitionTime", parse_time) or "",
            )
        )
        fields.done()
    return tuple(found)


def _parse_type(value: object) -> str:
    if isinstance(value, str) and _TYPE.fullmatch(value):
        return value
    raise Malformed("must be a condition's type, such as Ready")


def _parse_reason(value: object) -> str:
    if isinstance(value, str) and len(value) <= REASON_MAX_CHARACTERS and _REASON.fullmatch(value):
        return value
    raise Malformed("must be one word in CamelCase, such as NoMatchingNode")


def node_status_document(status: NodeStatusResource) -> dict[str, Any]:
    """The status of the document that ``read_node_status`` reads back."""
    document: dict[str, Any] = {
        "version": status.version,
        "observedAt": status.observed_at,
        "established": _established(status.peers),
        "peers": [_peer_document(peer) for peer in status.peers],
        "routes": dict(status.routes),
        "addresses": dict(status.addresses),
        "conditions": conditions_document(status.conditions),
    }
    return {key: value for key, value in document.items() if value not in ("", [], {})}


def _established(peers: tuple[PeerReport, ...]) -> str:
    """For ``kubectl get``, whose columns cannot count: 2/3. Written only, since peers say it."""
    up = sum(peer.state == ESTABLISHED for peer in peers)
    return f"{up}/{len(peers)}" if peers else ""


def _peer_document(peer: PeerReport) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": peer.name,
        "address": str(peer.address),
        "asNumber": peer.asn,
        "state": peer.state,
        "since": peer.since,
        "reason": peer.reason,
        "received": peer.received,
        "accepted": peer.accepted,
        "rejected": peer.rejected,
        "advertised": peer.advertised,
    }
    is_required = {"name", "state"}
    return {key: value for key, value in document.items() if value != "" or key in is_required}


def conditions_document(conditions: tuple[Condition, ...]) -> list[dict[str, Any]]:
    """metav1.Conditions, as ``read_conditions`` reads them back."""
    return [
        {
            "type": each.type,
            "status": each.status.value,
            "reason": each.reason,
            "message": each.message,
        }
        | ({"observedGeneration": each.observed_generation} if each.observed_generation else {})
        | ({"lastTransitionTime": each.changed_at} if each.changed_at else {})
        for each in conditions
    ]


def resource_status_document(status: ResourceStatus) -> dict[str, Any]:
    """The ``status`` of an IPPool or BGPPeer: its columns, and conditions beside them."""
    return {**status.columns, "conditions": conditions_document(status.conditions)}


def read_resource_status(status: Fields) -> ResourceStatus:
    """What ``resource_status_document`` wrote. Raises InvalidResource."""
    columns: dict[str, str | int] = {}
    for key, value in status.values.items():
        if key == "conditions":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise status.error(key, value, "must be text or a whole number")
        columns[key] = value
    return ResourceStatus(columns, read_conditions(status))
