"""A store that compares nothing: whoever writes last wins. For controls, which must show harm."""

from __future__ import annotations

from routing.datastore.resources import kind_of, with_meta
from routing.datastore.snapshot import Resource
from tests.fakes.store import FakeDatastore


class CarelessDatastore(FakeDatastore):
    """FakeDatastore without its compare-and-swap: versions and uids are not looked at, what is
    there already is overwritten by a create, and what is gone is made again by an update."""

    def _insert(self, resource: Resource) -> Resource:
        key = (kind_of(resource), resource.meta.name)
        return self._replace(resource) if key in self._state else super()._insert(resource)

    def _replace(self, resource: Resource) -> Resource:
        old = self._state.get((kind_of(resource), resource.meta.name))
        if old is None:
            return super()._insert(resource)
        meta = old.meta
        return super()._replace(
            with_meta(
                resource,
                resource_version=meta.resource_version,
                uid=meta.uid,
                generation=meta.generation,
            )
        )

    def _delete(self, kind: str, name: str, resource_version: str | None, uid: str | None) -> None:
        super()._delete(kind, name, None, None)

    def _judge_and_commit(self, key: object, old: Resource | None, new: Resource) -> None:
        # No rule either: that a block does not change hands is one.
        self._commit(self._state | {(kind_of(new), new.meta.name): new})
