"""Threads that sleep in the kernel while it takes links away.

Not a ThreadPoolExecutor: its futures and locks cost a DEL half as much again as what they carry,
and nobody asks for them. What is done here tells its outcome by itself (cni/departures.py).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)


class Removers:
    """Up to ``limit`` threads, made on demand; what finds none waits for one.

    ``submit`` belongs to one thread. Work must not raise: it would be logged, and no more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle: deque[None] = deque()
        """One entry for each thread that has nothing to do, or is about to find out."""

    def submit(self, work: Callable[[], None]) -> None:
        """Has a thread do ``work``, soon."""
        try:
            self._idle.pop()
        except IndexError:
            if len(self._threads) < self._limit:
                name = f"cni-remove_{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._work.put(work)

    def close(self) -> None:
        """Waits for what was submitted, then ends the threads. Closing twice is harmless."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                log.exception("removal_raised")
            del work
            self._idle.append(None)
