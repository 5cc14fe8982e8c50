"""Compare-and-swap in the words every store uses, and the IPAM's errors for a store's. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cni.ipam.block import Block, BlockConflict, BlockExists, BlockStoreError
from routing.datastore.snapshot import (
    AlreadyExists,
    BlockResource,
    Conflict,
    Meta,
    NotFound,
    Resource,
    StoreError,
)

Key = tuple[str, str]
"""(kind, name)."""


def named(key: Key) -> str:
    """How errors name a resource."""
    return f"{key[0]} {key[1]!r}"


def not_found(key: Key) -> NotFound:
    """There is no such resource."""
    return NotFound(f"{named(key)} was not found")


def already_exists(key: Key) -> AlreadyExists:
    """There is such a resource already."""
    return AlreadyExists(f"{named(key)} exists already")


def check_preconditions(
    stored: Meta, key: Key, resource_version: str | None, uid: str | None
) -> None:
    """Raises Conflict when a version or uid that was given is not the stored one."""
    if uid is not None and uid != stored.uid:
        raise Conflict(f"{named(key)} is another object now (uid {stored.uid}, not {uid})")
    if resource_version is not None and resource_version != stored.resource_version:
        raise Conflict(
            f"{named(key)} changed meanwhile (version {stored.resource_version}, not "
            f"{resource_version or 'none'})"
        )


def block_of(resource: Resource) -> Block:
    """The block of a Block. Raises BlockStoreError for anything else."""
    if not isinstance(resource, BlockResource):
        raise BlockStoreError(f"{resource.meta.name!r} is not a Block")
    return resource.block


@contextmanager
def block_errors() -> Iterator[None]:
    """The IPAM's own errors for the store's."""
    try:
        yield
    except AlreadyExists as error:
        raise BlockExists(str(error)) from None
    except (Conflict, NotFound) as error:
        raise BlockConflict(str(error)) from None
    except StoreError as error:
        raise BlockStoreError(str(error)) from None
