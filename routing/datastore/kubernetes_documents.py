"""Kubernetes objects <-> resources: the edge where API dictionaries become our values. Pure.

Custom resources are read by the same strict reader as people's YAML, after what the API server
adds (managedFields, ownerReferences, finalizers, timestamps, status) was taken off. A Node is
Kubernetes' own and says what we need in its status, and in annotations where that does not do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from routing.datastore.fields import Malformed, parse_address, parse_asn
from routing.datastore.kinds.secret import LAST_APPLIED, parse_password
from routing.datastore.resources import API_VERSION, from_document, kind_of, spec_of, to_document
from routing.datastore.snapshot import (
    Address,
    Condition,
    ConditionStatus,
    EventNote,
    InvalidResource,
    Meta,
    NodeResource,
    Password,
    Resource,
    ResourceStatus,
    SecretResource,
)

Object = dict[str, Any]

NODES = "/api/v1/nodes"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
"""Events about cluster-scoped objects live in the namespace ``default``."""

CUSTOM = {
    "IPPool": f"/apis/{API_VERSION}/ippools",
    "Block": f"/apis/{API_VERSION}/blocks",
    "BGPPeer": f"/apis/{API_VERSION}/bgppeers",
    "BGPFilter": f"/apis/{API_VERSION}/bgpfilters",
    "BGPConfiguration": f"/apis/{API_VERSION}/bgpconfigurations",
    "NodeStatus": f"/apis/{API_VERSION}/nodestatuses",
}
"""Collections of our own kinds, all cluster-scoped."""

ADDRESS_ANNOTATIONS = {
    4: ("slash32.io/ipv4-address", "projectcalico.org/IPv4Address"),
    6: ("slash32.io/ipv6-address", "projectcalico.org/IPv6Address"),
}
"""Ours first; Calico's, with a prefix length, as its alias."""
ASN_ANNOTATIONS = ("slash32.io/as-number", "projectcalico.org/ASNumber")
DRAIN_ANNOTATION = "slash32.io/drain"

MESSAGE_MAX_BYTES = 1024
"""What an Event's note may hold."""


def collection(kind: str, namespace: str) -> str | None:
    """The path of a kind's collection, or None for a kind that is not kept here.

    Args:
        namespace: slash32's own, where its Secrets are.
    """
    if kind == "Node":
        return NODES
    if kind == "Secret":
        return f"/api/v1/namespaces/{namespace}/secrets"
    return CUSTOM.get(kind)


def read_object(kind: str, document: Object) -> Resource:
    """The resource that an object of the API server is.

    Raises:
        InvalidResource: it breaks a rule that its schema does not know.
    """
    if kind == "Node":
        return read_node(document)
    plain = {"kind": kind, "metadata": _metadata(document)}
    if kind == "Secret":
        kept = {key: document[key] for key in ("data", "type") if document.get(key) is not None}
        return from_document({"apiVersion": "v1", **plain, **kept}, is_stored=True)
    plain["apiVersion"] = API_VERSION
    for key in ("spec", "status") if kind == "NodeStatus" else ("spec",):
        if document.get(key) is not None:
            plain[key] = document[key]
    return from_document(plain, is_stored=True)


def _metadata(document: Object) -> Object:
    given = document.get("metadata") or {}
    kept = ("name", "labels", "annotations", "resourceVersion", "uid", "generation")
    metadata = {key: given[key] for key in kept if given.get(key) is not None}
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict) and LAST_APPLIED in annotations:
        # A second copy of the whole object, for kubectl alone.
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != LAST_APPLIED}
    return metadata


def new_object(resource: Resource) -> Object:
    """The object to create for a resource: without what the server itself decides."""
    if isinstance(resource, NodeResource):
        return new_node(resource)
    meta = resource.meta
    metadata: Object = {"name": meta.name}
    if meta.labels:
        metadata["labels"] = dict(meta.labels)
    if meta.annotations:
        metadata["annotations"] = dict(meta.annotations)
    return {**_body(resource), "metadata": metadata}


def changed_object(current: Object, resource: Resource) -> Object:
    """The object to replace ``current`` with: the resource, and all that is others' business.

    Owner references, finalizers and kubectl's annotation stay: PUT would take away what it omits.
    """
    given: Object = dict(current.get("metadata") or {})
    given.pop("managedFields", None)
    annotations = dict(resource.meta.annotations)
    mine = (given.get("annotations") or {}).get(LAST_APPLIED)
    if mine is not None:
        annotations[LAST_APPLIED] = mine
    given["labels"], given["annotations"] = dict(resource.meta.labels), annotations
    # A Secret's other keys and its type are not ours either.
    kept: Object = {key: current[key] for key in ("type", "status") if key in current}
    return {**kept, **_body(resource), "metadata": given}


def _body(resource: Resource) -> Object:
    if isinstance(resource, SecretResource):
        data = {
            key: base64.b64encode(value.reveal().encode()).decode()
            for key, value in resource.passwords.items()
        }
        return {"apiVersion": "v1", "kind": "Secret", "data": data}
    return {"apiVersion": API_VERSION, "kind": kind_of(resource), "spec": spec_of(resource)}


# -- nodes ---------------------------------------------------------------------------------


def read_node(document: Object) -> NodeResource:
    """What a v1 Node says of itself.

    Addresses are its InternalIPs, the first of each family, unless an annotation has another. The
    annotations read here are not in ``meta`` (they are fields), nor are others' (they change all
    the time and mean nothing to us).

    Raises:
        InvalidResource: an annotation of ours (or Calico's) holds no such value.
    """
    metadata = _metadata(document)
    annotations = metadata.get("annotations") or {}
    name = str(metadata.get("name"))
    addresses = tuple(
        address
        for address in (_address(name, document, annotations, version) for version in (4, 6))
        if address is not None
    )
    asn = None
    for key in ASN_ANNOTATIONS:
        if key in annotations:
            try:
                asn = parse_asn(annotations[key])
            except Malformed as error:
                raise _annotation_error(name, key, annotations[key], str(error)) from None
            break
    drain = annotations.get(DRAIN_ANNOTATION, "false")
    if drain not in ("true", "false"):
        raise _annotation_error(name, DRAIN_ANNOTATION, drain, "must be true or false")
    meta = Meta(
        name=name,
        labels=dict(metadata.get("labels") or {}),
        annotations={k: v for k, v in annotations.items() if _is_kept(k)},
        resource_version=str(metadata.get("resourceVersion") or ""),
        uid=str(metadata.get("uid") or ""),
        generation=int(metadata.get("generation") or 0),
    )
    return NodeResource(meta, addresses, asn, drain == "true")


def _is_kept(annotation: str) -> bool:
    read = {DRAIN_ANNOTATION, *ASN_ANNOTATIONS, *ADDRESS_ANNOTATIONS[4], *ADDRESS_ANNOTATIONS[6]}
    return annotation.startswith("slash32.io/") and annotation not in read


def _address(
    name: str, document: Object, annotations: Mapping[str, str], version: int
) -> Address | None:
    ours, calicos = ADDRESS_ANNOTATIONS[version]
    for key in (ours, calicos):
        if key not in annotations:
            continue
        text = annotations[key]
        try:
            address = parse_address(text.partition("/")[0] if key == calicos else text)
        except Malformed as error:
            raise _annotation_error(name, key, text, str(error)) from None
        if address.version != version:
            raise _annotation_error(name, key, text, f"must be an IPv{version} address")
        return address
    return _internal_ip(document, version)


def _internal_ip(document: Object, version: int) -> Address | None:
    for each in (document.get("status") or {}).get("addresses") or []:
        if each.get("type") != "InternalIP":
            continue
        try:
            address = ip_address(str(each.get("address")))
        except ValueError:
            continue
        if address.version == version and not address.is_loopback:
            return address
    return None


def _annotation_error(name: str, key: str, value: object, rule: str) -> InvalidResource:
    return InvalidResource("Node", name, f"metadata.annotations.{key}", str(value)[:120], rule)


def new_node(node: NodeResource) -> Object:
    """A v1 Node that says what ``node`` says. (On a real cluster kubelets create Nodes.)"""
    annotations = {
        **node.meta.annotations,
        **{k: v for k, v in _wanted_annotations(node).items() if v is not None},
    }
    metadata: Object = {"name": node.meta.name}
    if node.meta.labels:
        metadata["labels"] = dict(node.meta.labels)
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}


def _wanted_annotations(node: NodeResource) -> dict[str, str | None]:
    wanted: dict[str, str | None] = {
        ADDRESS_ANNOTATIONS[version][0]: next(
            (str(a) for a in node.addresses if a.version == version), None
        )
        for version in (4, 6)
    }
    wanted[ASN_ANNOTATIONS[0]] = None if node.asn is None else str(node.asn)
    wanted[DRAIN_ANNOTATION] = "true" if node.is_drained else None
    return wanted


def node_patch(current: Object, node: NodeResource) -> Object | None:
    """The merge patch that makes the Node ``current`` say what ``node`` says; None if it does.

    Only annotations of ours are written, and only those whose fields differ.

    Raises:
        InvalidResource: a change that is not ours to make: labels, and values that come from the
            Node's status or from Calico's annotations and are to be none.
    """
    name, has = node.meta.name, read_node(current)
    if dict(has.meta.labels) != dict(node.meta.labels):
        raise InvalidResource(
            "Node",
            name,
            "metadata.labels",
            dict(node.meta.labels),
            "are Kubernetes' own; change them there (kubectl label node)",
        )
    before, wanted = _wanted_annotations(has), _wanted_annotations(node)
    changes = {key: wanted[key] for key in wanted if before[key] != wanted[key]}
    if dict(has.meta.annotations) != dict(node.meta.annotations):
        mine = dict.fromkeys(has.meta.annotations) | dict(node.meta.annotations)
        changes |= {k: v for k, v in mine.items() if has.meta.annotations.get(k) != v}
    if not changes:
        return None
    metadata = current.get("metadata") or {}
    after = {**(metadata.get("annotations") or {}), **changes}
    outcome = read_node(
        {
            **current,
            "metadata": {**metadata, "annotations": {k: v for k, v in after.items() if v}},
        }
    )
    for path, got, asked in (
        ("spec.addresses", outcome.addresses, node.addresses),
        ("spec.bgp.asNumber", outcome.asn, node.asn),
    ):
        if got != asked:
            raise InvalidResource(
                "Node",
                name,
                path,
                str(asked),
                f"cannot be taken away here: {got} comes from the Node's status or annotations",
            )
    return {
        "metadata": {
            "uid": metadata.get("uid"),
            "resourceVersion": metadata.get("resourceVersion"),
            "annotations": changes,
        }
    }


# -- secrets -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SecretKeys:
    """The passwords of one Secret, and why its other keys hold none. Never the texts."""

    passwords: Mapping[str, Password] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def read_secret_keys(document: Object) -> SecretKeys:
    """Every key of a Secret by itself: one that is no password is no matter to the others."""
    passwords: dict[str, Password] = {}
    problems: dict[str, str] = {}
    for key, value in (document.get("data") or {}).items():
        try:
            passwords[key] = parse_password(base64.b64decode(str(value), validate=True))
        except (binascii.Error, ValueError) as error:
            problems[key] = str(error)
    return SecretKeys(passwords, problems)


# -- status and events ---------------------------------------------------------------------


def read_status(document: Object) -> ResourceStatus:
    """The status of an IPPool or BGPPeer; what others wrote in a form that is not ours is left."""
    status = document.get("status") or {}
    columns = {
        key: value
        for key, value in status.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
    }
    conditions = status.get("conditions") or []
    return ResourceStatus(columns, tuple(_condition(each) for each in conditions if each))


def _condition(document: Object) -> Condition:
    status = document.get("status")
    known = {each.value: each for each in ConditionStatus}
    return Condition(
        type=str(document.get("type")),
        status=known.get(str(status), ConditionStatus.UNKNOWN),
        reason=str(document.get("reason") or ""),
        message=str(document.get("message") or ""),
        observed_generation=int(document.get("observedGeneration") or 0),
        changed_at=str(document.get("lastTransitionTime") or ""),
    )


def condition_document(condition: Condition, *, before: Object, now: str) -> Object:
    """A metav1.Condition.

    Args:
        before: the status there was; a condition that is as true as it was keeps its time.
        now: when it changed otherwise, unless the condition says.
    """
    old = next((c for c in read_status(before).conditions if c.type == condition.type), None)
    is_same = old is not None and old.status is condition.status
    kept = old.changed_at if old is not None and is_same else ""
    document: Object = {
        "type": condition.type,
        "status": condition.status.value,
        "reason": condition.reason or "Unknown",
        "message": condition.message,
        "lastTransitionTime": condition.changed_at or kept or now,
    }
    if condition.observed_generation:
        document["observedGeneration"] = condition.observed_generation
    return document


def status_patch(current: Object, status: ResourceStatus, *, now: str) -> Object | None:
    """The merge patch that replaces the status with ours; None when it says so already."""
    before = current.get("status") or {}
    after: Object = dict(status.columns)
    if status.conditions or before.get("conditions"):
        after["conditions"] = [
            condition_document(each, before=current, now=now) for each in status.conditions
        ]
    if read_status(current) == read_status({"status": after}):
        return None
    gone = {key: None for key in read_status(current).columns if key not in after}
    return {"status": gone | after}


def node_status_object(resource: Resource, *, now: str) -> Object:
    """The NodeStatus to create, or to replace the status of."""
    document = to_document(resource)
    for condition in (document.get("status") or {}).get("conditions") or []:
        condition.setdefault("lastTransitionTime", now)
    return {
        **document,
        "metadata": new_object(resource)["metadata"],
    }


@dataclass(frozen=True, slots=True)
class Regarding:
    """Whom an Event is about. ``uid`` may be empty."""

    api_version: str
    kind: str
    name: str
    uid: str = ""


def event_name(note: EventNote, reporter: str) -> str:
    """The name of the Event that all repeats of a note share, restarts of its author included."""
    parts = (reporter, note.kind, note.name, note.reason, note.message)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"{note.name[:200].rstrip('.-')}.{digest}"


def event_object(
    note: EventNote, regarding: Regarding, *, reporter: str, now: str, count: int
) -> Object:
    """An events.k8s.io/v1 Event. ``now`` in RFC 3339 with microseconds."""
    about: Object = {
        "apiVersion": regarding.api_version,
        "kind": regarding.kind,
        "name": regarding.name,
    }
    if regarding.uid:
        about["uid"] = regarding.uid
    document: Object = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": event_name(note, reporter), "namespace": "default"},
        "eventTime": now,
        "reportingController": "slash32.io/agent",
        "reportingInstance": reporter[:128],
        "action": note.reason[:128],
        "reason": note.reason[:128],
        "type": "Warning" if note.is_warning else "Normal",
        "regarding": about,
        "note": note.message.encode()[:MESSAGE_MAX_BYTES].decode("utf-8", "ignore"),
    }
    if count > 1:
        document["series"] = {"count": count, "lastObservedTime": now}
    return document


def without_version(resource: Resource) -> Resource:
    """The resource as a change notice judges it: a Node's version moves with every heartbeat."""
    return replace(resource, meta=replace(resource.meta, resource_version=""))
