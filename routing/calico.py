"""From Calico's resources to ours: what can be taken over, what cannot, and why. Pure.

Both forms are read: ``projectcalico.org/v3`` (calicoctl, and Calico's own API) and
``crd.projectcalico.org/v1`` (the same objects as they lie in Kubernetes). Field names and meanings
are the same as ours, so that the reader itself is the judge: what it refuses is left out under its
own sentence where the rest still means what it meant, and otherwise the whole resource is. A filter
without one of its conditions, or a pool of Services' addresses given to pods, would be worse than
none.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from routing.datastore.kinds import configuration, peer
from routing.datastore.resources import API_VERSION, from_document
from routing.datastore.snapshot import InvalidResource
from routing.printable import printable

API_VERSIONS = ("projectcalico.org/v3", "crd.projectcalico.org/v1")
KINDS = ("IPPool", "BGPPeer", "BGPFilter", "BGPConfiguration")
LOST_MAX = 200
"""Fields of one resource that are left out; more is no resource of Calico's."""

ELSEWHERE: Mapping[str, str] = {
    "IPAMBlock": "slash32 claims its own blocks; addresses of running pods are not taken over",
    "BlockAffinity": "slash32 claims its own blocks; addresses of running pods are not taken over",
    "IPAMHandle": "slash32 knows each address by its pod's link, and keeps no handles",
    "IPAMConfig": "slash32 has no such setting: blocks are strict, and claimed as pods need them",
    "IPAMConfiguration": (
        "slash32 has no such setting: blocks are strict, and claimed as pods need them"
    ),
    "IPReservation": "slash32 reserves no addresses inside a pool; make the pools without them",
    "FelixConfiguration": "what an agent does is said on its command line (slash32 agent --help)",
    "KubeControllersConfiguration": "slash32's controller has no settings",
    "ClusterInformation": "it says what Calico runs, and nothing of the network",
    "CalicoNodeStatus": "agents report in NodeStatus unasked",
    "NetworkPolicy": "slash32 enforces no policy; run a policy engine beside it",
    "GlobalNetworkPolicy": "slash32 enforces no policy; run a policy engine beside it",
    "StagedNetworkPolicy": "slash32 enforces no policy; run a policy engine beside it",
    "StagedGlobalNetworkPolicy": "slash32 enforces no policy; run a policy engine beside it",
    "StagedKubernetesNetworkPolicy": "slash32 enforces no policy; run a policy engine beside it",
    "NetworkSet": "slash32 enforces no policy; run a policy engine beside it",
    "GlobalNetworkSet": "slash32 enforces no policy; run a policy engine beside it",
    "Tier": "slash32 enforces no policy; run a policy engine beside it",
    "Profile": "slash32 enforces no policy; run a policy engine beside it",
    "HostEndpoint": "slash32 enforces no policy; run a policy engine beside it",
    "WorkloadEndpoint": "pods get new addresses and links when they are started under slash32",
    "Node": "Kubernetes' own Node says it, and annotations that slash32 reads",
}
"""Kinds of Calico's that become nothing here, and why."""

CAN_BE_LEFT_OUT: Mapping[str, frozenset[str]] = {
    "IPPool": frozenset({"ipipMode", "vxlanMode", "natOutgoing"}),
    "BGPPeer": frozenset({"reachableBy", *peer.ONLY}),
    "BGPFilter": frozenset(),
    "BGPConfiguration": frozenset(
        {*configuration.REFUSED, *configuration.ONLY, *configuration.SERVICES}
    ),
}
"""Fields of spec without which a resource still means what it meant, for what we do."""

_MINE = re.compile(r"(kubectl\.kubernetes\.io|projectcalico\.org)/")
_INDEX = re.compile(r"([^\[\]]+)|\[(\d+)\]")
_UNKNOWN = "unknown field"


@dataclass(frozen=True, slots=True)
class Lost:
    """One thing that was not taken over.

    Attributes:
        field: a path such as spec.ipipMode; "" when it is the whole resource.
        is_whole: the resource is not taken over because of it.
    """

    kind: str
    name: str
    field: str
    value: object
    why: str
    is_whole: bool = False

    def __str__(self) -> str:
        head = f"{self.kind} {self.name!r}"
        what = f"{self.field} = {self.value!r}: {self.why}" if self.field else self.why
        how = "not taken over:" if self.is_whole else "left out"
        # It becomes a comment above YAML that is applied: a line break would end the comment.
        return printable(f"{head}: {how} {what}")


@dataclass(frozen=True, slots=True)
class Migration:
    """Documents of ours that ``from_document`` reads, and what was lost."""

    documents: tuple[Mapping[str, Any], ...]
    lost: tuple[Lost, ...]


def from_calico(documents: Iterable[Mapping[str, Any]]) -> Migration:
    """Translates what is Calico's; documents of others (a Deployment beside it) are named too."""
    found: list[Mapping[str, Any]] = []
    lost: list[Lost] = []
    for document in _opened(documents):
        kind, name = str(document.get("kind")), _name(document)
        if document.get("apiVersion") not in API_VERSIONS:
            why = f"apiVersion is {document.get('apiVersion')!r}: not one of Calico's"
            lost.append(Lost(kind, name, "", None, why, is_whole=True))
        elif kind == "Node":
            lost += _node(name, document)
        elif kind not in KINDS:
            why = ELSEWHERE.get(kind, "slash32 has no such kind")
            lost.append(Lost(kind, name, "", None, why, is_whole=True))
        else:
            translated, losses = _translated(kind, name, document)
            lost += losses
            found += [translated] if translated is not None else []
    return Migration(tuple(found), tuple(lost))


def _opened(documents: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for document in documents:
        items = document.get("items")
        if str(document.get("kind")).endswith("List") and isinstance(items, list):
            yield from (each for each in items if isinstance(each, dict))
        else:
            yield document


def _name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name")) if isinstance(metadata, dict) else ""


def _translated(
    kind: str, name: str, given: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, list[Lost]]:
    metadata = given.get("metadata")
    document: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": _metadata(metadata if isinstance(metadata, dict) else {}),
        "spec": copy.deepcopy(given.get("spec", {})),
    }
    lost: list[Lost] = []
    while len(lost) < LOST_MAX:
        try:
            from_document(document)
        except InvalidResource as error:
            why = error.rule
            if why.startswith(_UNKNOWN):
                why = "slash32 has no such field"
            one = Lost(kind, name, error.field_path, error.value, why)
            if not _leave_out(document, kind, one):
                return None, [*lost, Lost(kind, name, one.field, one.value, why, is_whole=True)]
            lost.append(one)
        else:
            return document, lost
    return None, [*lost, Lost(kind, name, "", None, "too much of it is unknown", is_whole=True)]


def _metadata(given: Mapping[str, Any]) -> dict[str, Any]:
    """Name, labels and annotations; not what kubectl and Calico keep there for themselves."""
    found: dict[str, Any] = {"name": given.get("name")}
    if isinstance(given.get("labels"), dict):
        found["labels"] = dict(given["labels"])
    annotations = given.get("annotations")
    if isinstance(annotations, dict):
        found["annotations"] = {k: v for k, v in annotations.items() if not _MINE.match(str(k))}
    return {key: value for key, value in found.items() if value}


def _leave_out(document: dict[str, Any], kind: str, lost: Lost) -> bool:
    """Takes the field out of the document; False where the rest would mean something else."""
    head, _, rest = lost.field.partition(".")
    top = re.split(r"[.\[]", rest, maxsplit=1)[0]
    if head != "spec" or not rest:
        return False
    if kind == "BGPFilter":
        # An export rule for peers' routes never matches here: without it nothing changes. Any
        # other rule without one of its conditions would match more than it should.
        rule = re.fullmatch(r"spec\.export(?:V4|V6)\[\d+\]\.source", lost.field)
        if rule is None or lost.value != "RemotePeers":
            return False
        return _remove(document, lost.field.removesuffix(".source"))
    if top == "allowedUses":
        uses = document["spec"]["allowedUses"]
        return "Workload" in uses and lost.value != uses and _remove(document, lost.field)
    is_unknown = lost.why == "slash32 has no such field" and "." not in rest and "[" not in rest
    if is_unknown or top in CAN_BE_LEFT_OUT[kind]:
        return _remove(document, f"spec.{top}")
    return False


def _remove(document: dict[str, Any], path: str) -> bool:
    steps: list[str | int] = [
        key or int(index) for part in path.split(".") for key, index in _INDEX.findall(part)
    ]
    inner: Any = document
    try:
        for step in steps[:-1]:
            inner = inner[step]
        del inner[steps[-1]]
    except (KeyError, IndexError, TypeError):
        # A name with a dot or a bracket in it is not found again by its path.
        return False
    return True


def _node(name: str, document: Mapping[str, Any]) -> list[Lost]:
    """A Calico Node: what of it is to be said on the Kubernetes Node."""
    spec = document.get("spec")
    bgp = spec.get("bgp") if isinstance(spec, dict) else None
    if not isinstance(bgp, dict):
        return [Lost("Node", name, "", None, ELSEWHERE["Node"], is_whole=True)]
    found = []
    for field, annotation in (
        ("asNumber", "slash32.io/as-number"),
        ("ipv4Address", "slash32.io/ipv4-address"),
        ("ipv6Address", "slash32.io/ipv6-address"),
    ):
        value = bgp.get(field)
        if value is not None:
            text = str(value).partition("/")[0]
            why = f"say it on the Kubernetes Node: kubectl annotate node {name} {annotation}={text}"
            found.append(Lost("Node", name, f"spec.bgp.{field}", value, why, is_whole=True))
    cluster_id = bgp.get("routeReflectorClusterID")
    if cluster_id:
        why = "nodes of slash32 reflect no routes; name the reflectors in a BGPPeer"
        found.append(
            Lost("Node", name, "spec.bgp.routeReflectorClusterID", cluster_id, why, is_whole=True)
        )
    return found or [Lost("Node", name, "", None, ELSEWHERE["Node"], is_whole=True)]
