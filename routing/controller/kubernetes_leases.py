"""Leases in the Kubernetes API (coordination.k8s.io/v1), in slash32's own namespace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from routing.controller.election import DURATION_S, Lease, LeaseConflict, LeaseError
from routing.datastore.kubernetes_client import ApiServer, Object, Refused
from routing.datastore.snapshot import StoreError


class KubernetesLeases:
    """Every lease is one object; its resourceVersion is what compare-and-swap compares."""

    def __init__(self, server: ApiServer, *, namespace: str) -> None:
        self._server = server
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    async def get(self, name: str) -> Lease | None:
        """The lease as stored, or None. Raises LeaseError."""
        try:
            return _lease(await self._server.request("GET", f"{self._path}/{name}"))
        except Refused as refused:
            if refused.status == 404 and refused.reason == "NotFound":
                return None
            raise LeaseError(str(refused)) from None
        except StoreError as error:
            raise LeaseError(str(error)) from None

    async def create(self, lease: Lease) -> Lease:
        """Stores a new lease. Raises LeaseConflict, LeaseError."""
        return await self._write("POST", self._path, _object(replace(lease, version="")))

    async def update(self, lease: Lease) -> Lease:
        """Replaces a lease of that very version. Raises LeaseConflict, LeaseError."""
        return await self._write("PUT", f"{self._path}/{lease.name}", _object(lease))

    async def _write(self, method: str, path: str, body: Object) -> Lease:
        try:
            return _lease(await self._server.request(method, path, body=body))
        except Refused as refused:
            if refused.status in (404, 409):
                raise LeaseConflict(str(refused)) from None
            raise LeaseError(str(refused)) from None
        except StoreError as error:
            raise LeaseError(str(error)) from None


def _object(lease: Lease) -> Object:
    metadata = {"name": lease.name}
    if lease.version:
        metadata["resourceVersion"] = lease.version
    spec: Object = {
        "leaseDurationSeconds": lease.duration_s,
        "leaseTransitions": lease.transitions,
    }
    if lease.holder:
        spec["holderIdentity"] = lease.holder
    if lease.renewed_at:
        spec["renewTime"] = lease.renewed_at
    api_version = "coordination.k8s.io/v1"
    return {"apiVersion": api_version, "kind": "Lease", "metadata": metadata, "spec": spec}


def _lease(document: Object) -> Lease:
    metadata: Any = document.get("metadata") or {}
    spec: Any = document.get("spec") or {}
    return Lease(
        name=str(metadata.get("name")),
        holder=str(spec.get("holderIdentity") or ""),
        duration_s=int(spec.get("leaseDurationSeconds") or DURATION_S),
        transitions=int(spec.get("leaseTransitions") or 0),
        renewed_at=str(spec.get("renewTime") or ""),
        version=str(metadata.get("resourceVersion") or ""),
    )
