"""The state of the API double: objects under real compare-and-swap, and the log of their changes.

No HTTP in here. One counter gives every write its resourceVersion; a write that changes nothing
gets none. Errors are metav1.Status: code, reason, message.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from lab.apiserver.schema import Invalid, Schema

Object = dict[str, Any]
Objects = list[Object]
Listener = Callable[[], None]

METADATA_OF_THE_SERVER = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "namespace",
    "name",
    "selfLink",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One collection. ``has_generation``: counts changes of the spec; a v1 Node does not."""

    kind: str
    plural: str
    api_version: str
    namespaced: bool = False
    has_status: bool = False
    has_generation: bool = False
    unconditional: bool = True
    """Whether a PUT without a resourceVersion is taken; a custom resource's is not."""

    @property
    def prefix(self) -> str:
        """The path of its API."""
        return f"/{'apis' if '/' in self.api_version else 'api'}/{self.api_version}"


def _custom(kind: str, plural: str) -> Kind:
    return Kind(kind, plural, "slash32.io/v1", False, True, True, False)


KINDS = (
    _custom("IPPool", "ippools"),
    _custom("Block", "blocks"),
    _custom("BGPPeer", "bgppeers"),
    _custom("BGPFilter", "bgpfilters"),
    _custom("BGPConfiguration", "bgpconfigurations"),
    _custom("NodeStatus", "nodestatuses"),
    Kind("Node", "nodes", "v1", has_status=True),
    Kind("Namespace", "namespaces", "v1", has_status=True),
    Kind("Secret", "secrets", "v1", namespaced=True),
    Kind("Pod", "pods", "v1", namespaced=True, has_status=True),
    Kind("Event", "events", "v1", namespaced=True),
    Kind("Event", "events", "events.k8s.io/v1", namespaced=True),
    Kind("Lease", "leases", "coordination.k8s.io/v1", namespaced=True),
)


class ApiError(Exception):
    """A refusal, as a metav1.Status says it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    def document(self) -> Object:
        """The metav1.Status."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Key:
    """Which object; ``namespace`` is "" for a cluster-scoped one."""

    kind: Kind
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the log."""

    version: int
    type: str
    key: Key
    document: Object


class State:
    """Every object, and every change since the last compaction."""

    def __init__(self, schemas: Mapping[str, Schema] | None = None) -> None:
        self._schemas = schemas or {}
        self.is_newer = False
        """The definitions are of a later version that knows more fields: none is pruned."""
        self.compares = True
        """False: whoever writes last wins, as on a server that must not be: for controls."""
        self._objects: dict[Key, Object] = {}
        self._versions = count(1000)
        self.version = next(self._versions)
        self._log: list[Change] = []
        self._compacted = self.version
        self._listeners: list[Listener] = []

    # -- reading ---------------------------------------------------------------------------

    def get(self, key: Key) -> Object:
        if key not in self._objects:
            raise ApiError(404, "NotFound", f'{key.kind.plural} "{key.name}" not found')
        return self._objects[key]

    def list(self, kind: Kind, namespace: str) -> list[Object]:
        found = [key for key in self._objects if key.kind == kind]
        if namespace:
            found = [key for key in found if key.namespace == namespace]
        return [
            self._objects[key] for key in sorted(found, key=lambda key: (key.namespace, key.name))
        ]

    def list_at(self, kind: Kind, namespace: str, version: int) -> Objects:
        """The collection as it was at an earlier version, as far as the log reaches back."""
        if version >= self.version:
            return self.list(kind, namespace)
        found = {self._key(kind, each): each for each in self.list(kind, namespace)}
        for key in {change.key for change in self._log if change.version > version}:
            if key.kind != kind or namespace not in ("", key.namespace):
                continue
            then = [c for c in self._log if c.key == key and c.version <= version]
            if then and then[-1].type != "DELETED":
                found[key] = then[-1].document
            else:
                found.pop(key, None)
        return [found[key] for key in sorted(found, key=lambda key: (key.namespace, key.name))]

    @staticmethod
    def _key(kind: Kind, document: Object) -> Key:
        metadata = document["metadata"]
        return Key(kind, metadata.get("namespace", ""), metadata["name"])

    def changes(self, kind: Kind, namespace: str, after: int) -> Iterator[Change]:
        """What happened since a version. Raises ApiError 410 when that is compacted."""
        if after < self._compacted:
            raise ApiError(410, "Expired", f"too old resource version: {after} ({self._compacted})")
        for change in self._log:
            is_asked = change.key.kind == kind and namespace in ("", change.key.namespace)
            if change.version > after and is_asked:
                yield change

    def compact(self) -> None:
        """Forgets the log: who was watching from before must list again."""
        self._compacted = self.version
        self._log.clear()

    @contextmanager
    def dry(self) -> Iterator[None]:
        """Whatever is written inside is judged, and then it never was."""
        kept = self._objects, self.version, len(self._log), self._listeners
        self._objects, self._listeners = dict(self._objects), []
        try:
            yield
        finally:
            self._objects, self.version, length, self._listeners = kept
            del self._log[length:]

    def listen(self, listener: Listener) -> None:
        """Calls ``listener`` after every change."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """No more."""
        self._listeners.remove(listener)

    # -- writing ---------------------------------------------------------------------------

    def create(self, kind: Kind, namespace: str, given: Object) -> Object:
        document = copy.deepcopy(given)
        metadata = document.setdefault("metadata", {})
        name = metadata.get("name")
        if not name and metadata.get("generateName"):
            name = f"{metadata['generateName']}{uuid.uuid4().hex[:5]}"
        if not isinstance(name, str) or not name:
            raise ApiError(422, "Invalid", "metadata.name: Required value")
        if metadata.get("resourceVersion"):
            raise ApiError(
                400, "BadRequest", "resourceVersion should not be set on objects to be created"
            )
        key = Key(kind, namespace, name)
        if key in self._objects and self.compares:
            raise ApiError(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
        if kind.has_status:
            document.pop("status", None)
        document = self._admitted(kind, document)
        document["metadata"] = {
            **{k: v for k, v in metadata.items() if k not in METADATA_OF_THE_SERVER},
            "name": name,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if kind.namespaced:
            document["metadata"]["namespace"] = namespace
        if kind.has_generation:
            document["metadata"]["generation"] = 1
        return self._commit("ADDED", key, document)

    def replace(self, key: Key, given: Object, *, is_status: bool = False) -> Object:
        """PUT. The version is compared when given, and must be for a custom resource."""
        old = self.get(key)
        metadata = given.get("metadata") or {}
        if metadata.get("name", key.name) != key.name:
            raise ApiError(400, "BadRequest", "the name of the object does not match the URL")
        if not metadata.get("resourceVersion") and not key.kind.unconditional:
            raise ApiError(
                422,
                "Invalid",
                f"metadata.resourceVersion: Invalid value: 0x0: must be specified for an update "
                f"of {key.name}",
            )
        self._check(key, old, metadata.get("uid"), metadata.get("resourceVersion"))
        return self._write(key, old, copy.deepcopy(given), is_status)

    def patch(self, key: Key, patch: Object, *, is_status: bool = False) -> Object:
        """A JSON merge patch (RFC 7386)."""
        old = self.get(key)
        metadata = patch.get("metadata") or {}
        self._check(key, old, metadata.get("uid"), metadata.get("resourceVersion"))
        return self._write(key, old, merged(copy.deepcopy(old), patch), is_status)

    def delete(self, key: Key, preconditions: Mapping[str, str]) -> Object:
        old = self.get(key)
        self._check(key, old, preconditions.get("uid"), preconditions.get("resourceVersion"))
        if old["metadata"].get("finalizers"):
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            marked = {**old, "metadata": {**old["metadata"], "deletionTimestamp": now}}
            return self._commit("MODIFIED", key, marked)
        del self._objects[key]
        self._commit("DELETED", key, old)
        return old

    def _check(self, key: Key, old: Object, uid: str | None, version: str | None) -> None:
        has = old["metadata"]
        if not self.compares:
            return
        if uid and uid != has["uid"]:
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {key.kind.plural} "{key.name}": Precondition '
                f"failed: UID in precondition: {uid}, UID in object meta: {has['uid']}",
            )
        if version and version != has["resourceVersion"]:
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {key.kind.plural} "{key.name}": the object has '
                "been modified; please apply your changes to the latest version and try again",
            )

    def _write(self, key: Key, old: Object, new: Object, is_status: bool) -> Object:
        kind, has = key.kind, old["metadata"]
        kept = {k: v for k, v in has.items() if k in METADATA_OF_THE_SERVER}
        given = {
            k: v
            for k, v in (new.get("metadata") or {}).items()
            if k not in METADATA_OF_THE_SERVER and v not in ({}, [])
        }
        if kind.has_status and is_status:
            new = {**old, "status": new.get("status")}
            given = {k: v for k, v in has.items() if k not in METADATA_OF_THE_SERVER}
        elif kind.has_status:
            new = {**new, "status": old.get("status")}
        if new.get("status") is None:
            new.pop("status", None)
        new = self._admitted(kind, new)
        new["metadata"] = {**given, **kept}
        same = {k: v for k, v in old.items() if k != "metadata"}
        if kind.has_generation and {
            k: v for k, v in new.items() if k not in ("metadata", "status")
        } != {k: v for k, v in same.items() if k != "status"}:
            new["metadata"]["generation"] = has["generation"] + 1
        if new == old:
            return old
        if has.get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            del self._objects[key]
            return self._commit("DELETED", key, new)
        return self._commit("MODIFIED", key, new)

    def _admitted(self, kind: Kind, document: Object) -> Object:
        schema = None if self.is_newer else self._schemas.get(kind.kind)
        if schema is None or not kind.has_generation:
            return document
        try:
            return schema.admit(document)
        except Invalid as error:
            name = (document.get("metadata") or {}).get("name")
            raise ApiError(
                422, "Invalid", f'{kind.kind}.slash32.io "{name}" is invalid: {error}'
            ) from None

    def _commit(self, type_: str, key: Key, document: Object) -> Object:
        self.version = next(self._versions)
        document = copy.deepcopy(document)
        document.setdefault("apiVersion", key.kind.api_version)
        document.setdefault("kind", key.kind.kind)
        document["metadata"]["resourceVersion"] = str(self.version)
        # Every real object has these; who reads one must not stumble over them.
        document["metadata"]["managedFields"] = [
            {"manager": "double", "operation": "Update", "fieldsV1": {"f:spec": {}}}
        ]
        if type_ != "DELETED":
            self._objects[key] = document
        self._log.append(Change(self.version, type_, key, document))
        for listener in list(self._listeners):
            listener()
        return document


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def with_conditions(target: Object, patch: Object) -> Object:
    """A strategic merge patch as a plain one, as far as we use it: conditions merge by type."""
    wanted = (patch.get("status") or {}).get("conditions")
    if wanted is None:
        return patch
    by_type = {c["type"]: c for c in (target.get("status") or {}).get("conditions") or []}
    by_type |= {c["type"]: {**by_type.get(c["type"], {}), **c} for c in wanted}
    return {**patch, "status": {**patch["status"], "conditions": list(by_type.values())}}
