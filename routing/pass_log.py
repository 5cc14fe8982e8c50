"""What a whole pass found that an operator should read: once, and again when it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import structlog

from routing.delta import Failure
from routing.desired import Desired
from routing.import_policy import RejectedPath
from routing.remote import counts_of, news_of
from routing.route_log import LOGGED_ONE_BY_ONE
from routing.routes import RouteKey
from routing.telemetry import RepeatFilter

log = structlog.get_logger("routing.pass_log")


class PassLog:
    """Holds repeated lines back."""

    def __init__(self) -> None:
        self._repeats = RepeatFilter()

    def tell(
        self,
        wanted: Desired,
        before: Sequence[RejectedPath],
        failures: Sequence[Failure[str]],
        contested: Mapping[RouteKey, str],
    ) -> None:
        """Failures, paths rejected that were not ``before``, conflicts, and who holds the place of
        a route of ours."""
        keys = set()
        for failure in failures:
            key = f"{failure.operation} {failure.key}"
            keys.add(key)
            held_back = self._repeats.admit(key, failure.error)
            if held_back is not None:
                log.warning(
                    "pass_failure",
                    what=failure.key,
                    operation=failure.operation,
                    error=failure.error,
                    repeated=held_back,
                )
        fresh, more = news_of(before, wanted.rejected, LOGGED_ONE_BY_ONE)
        for rejection in fresh:
            log.info(
                "path_rejected",
                peer=str(rejection.path.peer),
                prefix=str(rejection.path.prefix),
                reason=rejection.reason,
            )
        if more:
            counts = {f"{peer} {r}": n for (peer, r), n in counts_of(wanted.rejected).items()}
            log.info("paths_rejected", beyond_those_named=more, in_all=counts)
        for conflict in wanted.conflicts:
            key = f"conflict {conflict.peer} {conflict.prefix}"
            keys.add(key)
            if self._repeats.admit(key, str(conflict)) is not None:
                log.warning("block_announced_by_another", conflict=str(conflict))
        for place, holder in islice(contested.items(), LOGGED_ONE_BY_ONE):
            key = f"contested {place.prefix}"
            keys.add(key)
            if self._repeats.admit(key, holder) is not None:
                log.warning("route_contested", prefix=str(place.prefix), holder=holder)
        self._repeats.retain(keys)
