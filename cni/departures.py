"""Who waits for a link to be gone, and the news that it is.

Removing a veth keeps the remover asleep for some 17 ms after the kernel has announced the link
gone: it waits for the last reader of the old tables (an RCU barrier), which frees memory and
changes nothing that a new pod could meet. Name, addresses and routes are free at the announcement
(cni-performance: 200 times the same name again at once, no error). A DEL therefore answers then.

One event loop's thread uses it. The announcement comes from whoever reads the kernel's link events;
when that is nobody, or events were lost, the remover's own end is the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

log = logging.getLogger(__name__)

Remove = Callable[[str, Callable[[], bool]], bool]
"""Of a name, and whether it has been announced gone; see cni/attach.py."""


class Departures:
    """The waiting room.

    ``on_expect`` is called when somebody comes in, so that the reader of events stops dawdling.
    """

    def __init__(self, on_expect: Callable[[], None] = lambda: None) -> None:
        self.on_expect = on_expect
        self._waiting: dict[str, set[asyncio.Future[bool]]] = {}

    def expect(self, ifname: str) -> _Expecting:
        """``with`` it: a future that ends with the next announcement that ``ifname`` is gone, with
        True then."""
        return _Expecting(self, ifname)

    def is_awaited(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def tell(self, ifname: str) -> None:
        """``ifname`` is gone."""
        for gone in self._waiting.get(ifname, ()):
            if not gone.done():
                gone.set_result(True)

    @staticmethod
    def settle(gone: asyncio.Future[bool], remove: Remove, ifname: str) -> None:
        """Removes ``ifname`` and ends ``gone`` with what came of it, unless the announcement was
        first: then nobody is woken. For a thread of its own.
        """
        removed, error = False, None
        try:
            removed = remove(ifname, gone.done)
        except Exception as caught:
            error = caught
        if not gone.done():
            # A loop that was closed meanwhile has nobody who waits.
            with suppress(RuntimeError):
                gone.get_loop().call_soon_threadsafe(_end, gone, removed, error)
        elif error is not None:
            log.warning("remover_failed_late link=%s error=%s", ifname, error)


class _Expecting:
    """One who waits, from coming in to leaving."""

    __slots__ = ("_departures", "_gone", "_ifname")

    def __init__(self, departures: Departures, ifname: str) -> None:
        self._departures = departures
        self._ifname = ifname
        self._gone: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> asyncio.Future[bool]:
        self._departures._waiting.setdefault(self._ifname, set()).add(self._gone)
        self._departures.on_expect()
        return self._gone

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        everybody = self._departures._waiting
        waiting = everybody[self._ifname]
        waiting.discard(self._gone)
        if not waiting:
            del everybody[self._ifname]
        self._gone.cancel()


def _end(gone: asyncio.Future[bool], removed: bool, error: Exception | None) -> None:
    if gone.done():
        if error is not None:
            log.warning("remover_failed_late error=%s", error)
    elif error is not None:
        gone.set_exception(error)
    else:
        gone.set_result(removed)
