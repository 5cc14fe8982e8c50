"""The six CustomResourceDefinitions, whole, as documents and as YAML. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from routing.datastore.kinds.configuration import NAME as CONFIGURATION_NAME
from routing.schemas import bgpfilter, block, configuration, nodestatus, peer, pool
from routing.schemas.parts import Schema

GROUP = "slash32.io"
VERSION = "v1"
CATEGORY = "slash32"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of ``kubectl get``; ``is_wide``: with -o wide alone."""

    name: str
    path: str
    description: str
    type: str = "string"
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """One kind. ``spec`` None: it has a status alone; ``status`` None: nothing is reported."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]
    status: Schema | None = None
    spec: Schema | None = None
    is_spec_required: bool = True
    root_rules: Sequence[Schema] = ()

    @property
    def file_name(self) -> str:
        """Its name in manifests/crds."""
        return f"{self.plural}.yaml"


def _condition(kind: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


def _ready() -> tuple[Column, ...]:
    return (
        Column("Ready", _condition("Ready"), "Whether it works."),
        Column("Why", _condition("Ready", "message"), "Why it does or does not.", is_wide=True),
    )


_AGE = Column("Age", ".metadata.creationTimestamp", "Since when it exists.", type="date")

DEFINITIONS = (
    Definition(
        kind="IPPool",
        plural="ippools",
        short_names=("pool",),
        description="Where pods' addresses come from. As in Calico v3.",
        spec=pool.SPEC,
        status=pool.STATUS,
        columns=(
            Column("CIDR", ".spec.cidr", "The range."),
            Column("BlockSize", ".status.blockSize", "Prefix length of blocks.", type="integer"),
            Column("Blocks", ".status.blocks", "Blocks that nodes claimed.", type="integer"),
            *_ready(),
            Column("Nodes", ".spec.nodeSelector", "Nodes that claim here.", is_wide=True),
            _AGE,
        ),
    ),
    Definition(
        kind="Block",
        plural="blocks",
        short_names=("blk",),
        description=(
            "A range of addresses that a node has claimed. Written by the agents; look, and leave "
            "them alone."
        ),
        spec=block.SPEC,
        root_rules=block.ROOT_RULES,
        columns=(
            Column("CIDR", ".spec.cidr", "The range."),
            Column("Node", ".spec.affinity", "Who has it."),
            Column("State", ".spec.state", "pending, confirmed or pendingDeletion."),
            Column("Pool", ".spec.pool", "The IPPool it is from.", is_wide=True),
            _AGE,
        ),
    ),
    Definition(
        kind="BGPPeer",
        plural="bgppeers",
        short_names=("peer",),
        description="A router, and which nodes speak BGP with it. As in Calico v3.",
        spec=peer.SPEC,
        status=peer.STATUS,
        columns=(
            Column("Peer", ".spec.peerIP", "Its address."),
            Column("ASN", ".spec.asNumber", "Its AS number."),
            Column("Established", ".status.established", "Sessions up, of all."),
            *_ready(),
            Column("Selector", ".spec.peerSelector", "Nodes instead of a router.", is_wide=True),
            Column("Node", ".spec.node", "The node that speaks to it.", is_wide=True),
            Column("Nodes", ".spec.nodeSelector", "The nodes that do.", is_wide=True),
            _AGE,
        ),
    ),
    Definition(
        kind="BGPFilter",
        plural="bgpfilters",
        short_names=("bgpf",),
        description="Which routes a peer may give us, and which we give it. As in Calico v3.",
        spec=bgpfilter.SPEC,
        is_spec_required=False,
        columns=(_AGE,),
    ),
    Definition(
        kind="BGPConfiguration",
        plural="bgpconfigurations",
        short_names=("bgpconfig",),
        description=(
            f"What all nodes' BGP has in common. There is one, named {CONFIGURATION_NAME}. As in "
            "Calico v3."
        ),
        spec=configuration.SPEC,
        is_spec_required=False,
        root_rules=configuration.ROOT_RULES,
        columns=(
            Column("ASN", ".spec.asNumber", "The cluster's AS number."),
            Column("Mesh", ".spec.nodeToNodeMeshEnabled", "Node to node.", type="boolean"),
            _AGE,
        ),
    ),
    Definition(
        kind="NodeStatus",
        plural="nodestatuses",
        short_names=("nst",),
        description="What a node's agent sees; named after the node. Written by the agent.",
        status=nodestatus.STATUS,
        columns=(
            *_ready(),
            Column("Peers", ".status.established", "Sessions up, of all."),
            Column("Kernel", _condition("FIBInSync"), "Whether the kernel has all routes."),
            Column("Blocks", ".status.routes.block", "Blocks of the node.", type="integer"),
            Column("Used", ".status.addresses.used", "Addresses of pods.", type="integer"),
            Column("Free", ".status.addresses.free", "Addresses left.", type="integer"),
            Column("Version", ".status.version", "The agent's version."),
            Column("Pods", ".status.routes.pod", "Pods' routes.", type="integer", is_wide=True),
            Column("Seen", ".status.observedAt", "When it last looked.", type="date", is_wide=True),
            _AGE,
        ),
    ),
)


def document(definition: Definition) -> dict[str, Any]:
    """The CustomResourceDefinition."""
    singular = definition.kind.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{definition.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "slash32"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": definition.kind,
                "listKind": f"{definition.kind}List",
                "plural": definition.plural,
                "singular": singular,
                "shortNames": list(definition.short_names),
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    **({} if definition.status is None else {"subresources": {"status": {}}}),
                    "additionalPrinterColumns": [_column(each) for each in definition.columns],
                    "schema": {"openAPIV3Schema": root_schema(definition)},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
        "description": column.description,
    }
    return found | {"priority": 1} if column.is_wide else found


def root_schema(definition: Definition) -> Schema:
    """The openAPIV3Schema of a kind."""
    properties: dict[str, Schema] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    if definition.spec is not None:
        properties["spec"] = definition.spec
    if definition.status is not None:
        properties["status"] = definition.status
    schema: Schema = {
        "description": definition.description,
        "type": "object",
        "properties": properties,
    }
    if definition.spec is not None and definition.is_spec_required:
        schema["required"] = ["spec"]
    if definition.root_rules:
        schema["x-kubernetes-validations"] = list(definition.root_rules)
    return schema


class _Dumper(yaml.SafeDumper):
    """Block style, every value written out: a reader of the file shall need no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Shared parts are written wherever they stand."""
        del data
        return True


def render(definition: Definition) -> str:
    """The definition's file."""
    body = yaml.dump(
        document(definition),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        width=100,
        allow_unicode=True,
    )
    return f"# Written by `make manifests` from routing/schemas; change it there.\n{body}"
