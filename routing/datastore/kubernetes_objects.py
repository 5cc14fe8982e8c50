"""Objects: one object at a time on an API server, and the server's refusals in our words."""

from __future__ import annotations

from routing.datastore.kubernetes_client import JSON, MERGE_PATCH, ApiServer, Object, Refused
from routing.datastore.kubernetes_documents import collection, read_object
from routing.datastore.preconditions import Key, already_exists, named, not_found
from routing.datastore.snapshot import Conflict, InvalidResource, Meta, Resource, StoreError


class Objects:
    """Requests by kind and name.

    Args:
        server: the client edge.
        namespace: slash32's own, for Secrets.
    """

    def __init__(self, server: ApiServer, *, namespace: str) -> None:
        self._server = server
        self._namespace = namespace

    def path(self, kind: str) -> str:
        """The collection of a kind. Raises StoreError for a kind that is not kept here."""
        path = collection(kind, self._namespace)
        if path is None:
            raise StoreError(f"{self._server.name}: keeps no {kind}")
        return path

    async def fetch(self, key: Key) -> Object:
        """One object as it is there. Raises NotFound, StoreError."""
        return await self.ask("GET", key)

    async def create(self, key: Key, document: Object, *, is_dry: bool = False) -> Object:
        """POST. Raises AlreadyExists, InvalidResource, StoreError."""
        return await self.ask("POST", key, body=document, is_dry=is_dry)

    async def replace(self, key: Key, document: Object, *, is_dry: bool = False) -> Object:
        """PUT. Raises NotFound, Conflict, InvalidResource, StoreError."""
        return await self.ask("PUT", key, body=document, is_dry=is_dry)

    async def ask(
        self, method: str, key: Key, *, body: Object | None = None, is_dry: bool = False
    ) -> Object:
        """One request about one object. ``is_dry``: the server judges it and keeps nothing.

        Raises:
            NotFound, AlreadyExists, Conflict, InvalidResource: the server's word.
            StoreError: anything else; a write may have happened.
        """
        path = self.path(key[0])
        try:
            return await self._server.request(
                method,
                path if method == "POST" else f"{path}/{key[1]}",
                body=body,
                query={"dryRun": "All"} if is_dry else None,
                content_type=MERGE_PATCH if method == "PATCH" else JSON,
            )
        except Refused as refused:
            raise _translated(refused, key) from None


def readable(key: Key, document: Object) -> Resource | None:
    """The resource, or None for a malformed one, which a write may mend."""
    try:
        return read_object(key[0], document)
    except InvalidResource:
        return None


def stored_meta(document: Object) -> Meta:
    """Of an object's metadata, what compare-and-swap compares."""
    given = document.get("metadata") or {}
    return Meta(
        str(given.get("name") or ""),
        resource_version=str(given.get("resourceVersion") or ""),
        uid=str(given.get("uid") or ""),
    )


def _translated(refused: Refused, key: Key) -> StoreError:
    """The store's error for the server's."""
    if refused.status == 404 and refused.reason == "NotFound":
        return not_found(key)
    if refused.status == 404:
        return StoreError(f"{refused}: is the CustomResourceDefinition of {key[0]} installed?")
    if refused.reason == "AlreadyExists":
        return already_exists(key)
    if refused.status == 409:
        return Conflict(f"{named(key)} changed meanwhile: {refused}")
    if refused.status in (400, 422):
        field, rule = refused.causes[0] if refused.causes else ("", str(refused))
        return InvalidResource(*key, field or "document", "", rule)
    return refused
