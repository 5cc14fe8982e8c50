"""Metadata of a document: names, labels, annotations, and what a store or API server adds. Pure."""

from __future__ import annotations

import re
from typing import Any

from routing.datastore.fields import Fields, Malformed, parse_name
from routing.datastore.snapshot import Meta

LABELS_MAX = 256
ANNOTATIONS_MAX_BYTES = 256 * 1024
"""As Kubernetes limits them."""
SERVER_OWNED = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "managedFields",
    "ownerReferences",
    "selfLink",
)
"""What API servers add and ``kubectl get -o yaml`` and ``calicoctl get -o yaml`` show. Not read and
not kept: nothing that an operator wishes of the network is said there."""

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_OPAQUE = re.compile(r"[!-~]{0,64}")


def read_meta(fields: Fields, *, is_namespaced: bool = False) -> Meta:
    """The Meta of a document's metadata.

    Args:
        is_namespaced: a namespace may be given; which one is not kept, for a store has but one.

    Raises:
        InvalidResource: names the field, the value and the rule.
    """
    name = fields.parsed("name", fields.take("name"), parse_name)
    meta = Meta(
        name=name,
        labels=_labels(fields.section("labels")),
        annotations=_annotations(fields.section("annotations")),
        resource_version=_opaque(fields, "resourceVersion"),
        uid=_opaque(fields, "uid"),
        generation=fields.integer("generation", default=0, low=0, high=2**63 - 1),
    )
    if is_namespaced:
        fields.optional("namespace", parse_name)
    for key in SERVER_OWNED:
        fields.known(key)
    fields.done()
    return meta


def metadata_document(meta: Meta) -> dict[str, Any]:
    """What ``read_meta`` reads back."""
    document: dict[str, Any] = {
        "name": meta.name,
        "labels": dict(meta.labels),
        "annotations": dict(meta.annotations),
        "resourceVersion": meta.resource_version,
        "uid": meta.uid,
        "generation": meta.generation,
    }
    return {key: value for key, value in document.items() if value}


def _opaque(fields: Fields, key: str) -> str:
    value = fields.text(key, "") or ""
    if not _OPAQUE.fullmatch(value):
        raise fields.error(key, value, "must be at most 64 printable characters without blanks")
    return value


def _check_qualified(fields: Fields, key: str, value: object) -> None:
    prefix, slash, name = key.rpartition("/")
    try:
        if slash:
            parse_name(prefix)
    except Malformed:
        name = ""
    if not _LABEL_NAME.fullmatch(name):
        raise fields.error(key, value, "is not a label name: [DNS name/]up to 63 characters")


def _labels(fields: Fields) -> dict[str, str]:
    labels: dict[str, str] = {}
    if len(fields.values) > LABELS_MAX:
        raise fields.error("", len(fields.values), f"must have at most {LABELS_MAX} entries")
    for key, value in fields.values.items():
        _check_qualified(fields, key, value)
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            raise fields.error(
                key, value, "must be text: up to 63 letters, digits, inner hyphens, dots or _"
            )
        labels[key] = value
    return labels


def _annotations(fields: Fields) -> dict[str, str]:
    size_bytes = 0
    for key, value in fields.values.items():
        _check_qualified(fields, key, value)
        if not isinstance(value, str):
            raise fields.error(key, value, "must be text")
        size_bytes += len(key) + len(value.encode("utf-8", "replace"))
    if size_bytes > ANNOTATIONS_MAX_BYTES:
        raise fields.error("", size_bytes, f"must be at most {ANNOTATIONS_MAX_BYTES} bytes in all")
    return dict(fields.values)
