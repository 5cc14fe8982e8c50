"""Mirrors: what an agent's snapshots are made of: every kind it works from, followed by watches.

A snapshot is taken at every pass of every agent, so it asks the server nothing. It holds our own
writes at once (``put``, ``forget``), others' a moment later. When a mirror has lost the server for
longer than a grace, it raises, and the agent deletes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from routing.datastore.kubernetes_client import ApiServer, Object
from routing.datastore.kubernetes_documents import (
    SecretKeys,
    read_object,
    read_secret_keys,
    without_version,
)
from routing.datastore.kubernetes_rules import separate, stray_blocks
from routing.datastore.kubernetes_watch import Pace, Reflector
from routing.datastore.snapshot import (
    BGPConfigurationResource,
    BGPPeerResource,
    BlockResource,
    IPPoolResource,
    Problem,
    Resource,
    SecretKeyRef,
    Snapshot,
    StoreError,
    referred_secrets,
    snapshot_of,
)

MIRRORED = ("IPPool", "Node", "BGPPeer", "BGPFilter", "BGPConfiguration", "Block")
"""What a snapshot is made of. NodeStatus is not: with every node watching every node's, the API
server would send n² of them a minute."""
LOOK_S = 0.5
"""How often changed() looks whether a grace is over, while a watch is failing."""


class Mirrors:
    """All of them. Watches begin with the first ``snapshot()``.

    Args:
        server: where from.
        path: the collection of a kind.
        pace: timeouts and waits.
    """

    def __init__(self, server: ApiServer, path: Callable[[str], str], *, pace: Pace) -> None:
        self._server = server
        self._path = path
        self._pace = pace
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stirred = asyncio.Event()
        self._changes = 0
        self._seen: int | None = None
        self._told_stale = False
        self._secrets: dict[str, Reflector[SecretKeys]] = {}
        self._kinds = {kind: self._reflector(kind) for kind in MIRRORED}

    async def close(self) -> None:
        """Ends the watches; may be called twice."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- reading ---------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """The mirrors' content, in sync.

        Raises:
            StoreError: a kind was never listed yet, or its mirror no longer follows the server.
        """
        self._start()
        try:
            await self._settle(self._kinds.values())
            refs = self._referred()
            self._follow_secrets({ref.name for ref in refs})
            await self._settle(self._secrets.values())
        finally:
            # Also when it failed: the caller was told, and changed() is about what comes next.
            self._seen = self._changes
            self._told_stale = self._stale_reason() is not None
        return self._composed(refs)

    def _composed(self, refs: Iterable[SecretKeyRef]) -> Snapshot:
        resources = [
            entry.value
            for kind in MIRRORED
            if kind != "IPPool"
            for entry in self._kinds[kind].entries.values()
        ]
        passwords = {
            ref: found
            for ref in refs
            if (found := self._secret_keys(ref.name).passwords.get(ref.key)) is not None
        }
        created = {name: each.created for name, each in self._kinds["BGPPeer"].entries.items()}
        snapshot = snapshot_of([*resources, *self._pools()[0]], created)
        return replace(snapshot, passwords=passwords)

    def _pools(self) -> tuple[list[IPPoolResource], list[Problem]]:
        return separate(
            (entry.created, entry.value)
            for entry in self._kinds["IPPool"].entries.values()
            if isinstance(entry.value, IPPoolResource)
        )

    async def changed(self) -> None:
        """Returns when the mirrors changed since the last snapshot(), or began or ceased to be
        stale; at once if so already. A Node's heartbeat is no change."""
        while self._seen is not None and self._seen == self._changes:
            if (self._stale_reason() is not None) != self._told_stale:
                return
            is_failing = any(mirror.fault for mirror in self._reflectors())
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if is_failing else None):
                    await self._stirred.wait()

    def problems(self) -> list[Problem]:
        """What is wrong with stored objects, as far as the mirrors know.

        Malformed ones (left at their last good value, or out), pools that overlap, blocks that are
        none of their pool's, passwords that cannot be used.
        """
        found = [
            Problem(kind, name, text)
            for kind, mirror in self._kinds.items()
            for name, text in mirror.problems.items()
        ]
        for ref in self._referred():
            rule = self._secret_keys(ref.name).problems.get(ref.key)
            if rule is not None:
                found.append(Problem("Secret", ref.name, f"Secret {ref.name!r}: {ref.key}: {rule}"))
        pools, overlapping = self._pools()
        blocks = (entry.value for entry in self._kinds["Block"].entries.values())
        strays = stray_blocks((each for each in blocks if isinstance(each, BlockResource)), pools)
        return [*found, *overlapping, *strays]

    def uid_of(self, kind: str, name: str) -> str:
        """The uid of an object, or "" where it is not known."""
        mirror = self._kinds.get(kind)
        entry = mirror.entries.get(name) if mirror is not None else None
        return entry.uid if entry is not None else ""

    # -- our own writes --------------------------------------------------------------------

    def put(self, kind: str, document: Object) -> None:
        """Takes in an object as the server returned it from a write of ours."""
        if kind in self._tasks:
            self._kinds[kind].put(document)

    def forget(self, kind: str, name: str, uid: str) -> None:
        """Takes out an object that we deleted."""
        if kind in self._tasks:
            self._kinds[kind].forget(name, uid)

    # -- the reflectors ------------------------------------------------------------------

    def _reflector(self, kind: str) -> Reflector[Resource]:
        def read(document: Object) -> Resource:
            return read_object(kind, document)

        return Reflector(
            self._server,
            self._path(kind),
            read,
            self._note_change,
            content=without_version,
            pace=self._pace,
        )

    def _reflectors(self) -> Iterable[Reflector[Any]]:
        return [*self._kinds.values(), *self._secrets.values()]

    def _start(self) -> None:
        for kind, mirror in self._kinds.items():
            if kind not in self._tasks:
                self._tasks[kind] = asyncio.create_task(mirror.run(), name=f"mirror {kind}")

    def _referred(self) -> frozenset[SecretKeyRef]:
        peers = (entry.value for entry in self._kinds["BGPPeer"].entries.values())
        configuration = self._kinds["BGPConfiguration"].entries.get("default")
        return referred_secrets(
            (each for each in peers if isinstance(each, BGPPeerResource)),
            configuration.value
            if configuration and isinstance(configuration.value, BGPConfigurationResource)
            else None,
        )

    def _follow_secrets(self, names: set[str]) -> None:
        """Watches the Secrets referred to, each by its name, and no other."""
        for name in names - self._secrets.keys():
            mirror = self._secrets[name] = Reflector(
                self._server,
                self._path("Secret"),
                read_secret_keys,
                self._note_change,
                field_selector=f"metadata.name={name}",
                may_be_absent=True,
                pace=self._pace,
            )
            self._tasks[f"Secret {name}"] = asyncio.create_task(
                mirror.run(), name=f"mirror Secret {name}"
            )
        for name in self._secrets.keys() - names:
            del self._secrets[name]
            self._tasks.pop(f"Secret {name}").cancel()

    def _secret_keys(self, name: str) -> SecretKeys:
        mirror = self._secrets.get(name)
        entry = mirror.entries.get(name) if mirror is not None else None
        return entry.value if entry is not None else SecretKeys()

    async def _settle(self, mirrors: Iterable[Reflector[Any]]) -> None:
        """Returns once all are listed and none is stale.

        Raises:
            StoreError: one is not, and cannot be just now.
        """
        deadline_s = time.monotonic() + self._pace.sync_wait_s
        while True:
            waiting = [each for each in mirrors if not each.is_listed]
            failing = next((each.fault for each in waiting if each.fault), None)
            failing = failing or self._stale_reason()
            if failing is not None:
                raise StoreError(failing)
            if not waiting:
                return
            if time.monotonic() >= deadline_s:
                raise StoreError(f"{self._server.name}: not everything has been listed yet")
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s - time.monotonic()):
                    await self._stirred.wait()

    def _stale_reason(self) -> str | None:
        reasons = (mirror.stale_reason() for mirror in self._reflectors())
        return next((reason for reason in reasons if reason is not None), None)

    def _note_change(self) -> None:
        self._changes += 1
        self._stirred.set()
