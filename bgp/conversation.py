"""One connection to ExaBGP through the bridge: commands out, events in, answers paired.

Answers carry no name. They come first-in first-out, but only within a kind: ExaBGP puts route
commands and ``show`` in a queue and works on it between other things, while ``version``, ``reload``
and what it cannot parse are answered on the spot, ahead of the queue. So one *turn* is taken at a
time: a batch of route commands, or a single command of any kind.

A new connection may inherit answers to commands that an agent before us sent. ``synchronise`` makes
the stream ours: ``reset`` empties ExaBGP's queue, then a random number is spelled in commands that
are answered on the spot, ``version`` for 1 and ``#`` for 0. Whatever was under way was written
before that number comes back, and everything up to its last digit is thrown away. Events are never
thrown away.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bgp.adj_rib import AttributeSets
from bgp.exabgp_api import MAX_LINE_BYTES, Answered, Hello, RawUpdates, Text, decode
from bgp.exabgp_commands import PROBE_ONE, PROBE_ZERO, RESET, ProtocolError
from bgp.paths import Event
from bgp.update_decoder import UpdateDecoder

SILENCE_LIMIT_S = 10.0
"""How long ExaBGP may say nothing that belongs to an answer we wait for."""
BIG_LINE_BYTES = 4096
PROBE_BITS = 32
WINDOW = 64
"""Route commands under way at once; ExaBGP works through 25 a round."""
MAX_ANSWER_LINES = 2_000_000
"""A dump of the largest tables we accept, with room to spare."""


_T = TypeVar("_T")


class ConversationLost(ConnectionError):
    """The connection ended, fell silent or stopped making sense. Commands under way are unknown."""


@dataclass(slots=True)
class Answer:
    """What ExaBGP said to one command."""

    ok: bool = False
    lines: list[str] = field(default_factory=list)


class Conversation:
    """Owns the reader and the writer. ``run`` must be running for anything else to work."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        on_event: Callable[[Event], None],
        on_garbage: Callable[[str], None],
        attributes: AttributeSets | None = None,
    ) -> None:
        """``on_event`` gets every event in order; ``on_garbage`` a sentence per unreadable line.

        Args:
            attributes: those of the Adj-RIB-In that the events are for.
        """
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._on_garbage = on_garbage
        self._turn = asyncio.Lock()
        self._waiting: collections.deque[asyncio.Future[Answer]] = collections.deque()
        self._partial = Answer()
        self._answer_lines = 0
        self._lost: str | None = None
        self._probe: tuple[tuple[int, ...], asyncio.Future[None]] | None = None
        self._updates = UpdateDecoder(attributes)
        self._seen_bits: collections.deque[int] = collections.deque(maxlen=PROBE_BITS)

    async def hello(self) -> Hello:
        """The bridge's first line.

        Raises:
            ConversationLost: something else connected, or nothing came in time.
        """
        try:
            async with asyncio.timeout(SILENCE_LIMIT_S):
                line = decode(await self._read_line())
        except (TimeoutError, ProtocolError, ConversationLost) as error:
            raise self._lose(f"no greeting from the bridge: {error}") from None
        if not isinstance(line, Hello):
            raise self._lose("no greeting from the bridge")
        return line

    async def run(self) -> None:
        """Reads until the connection ends; every waiting command then fails."""
        try:
            while True:
                line = await self._read_line()
                self._take(line)
                if len(line) >= BIG_LINE_BYTES:
                    # A full table takes a while, and a pod's ADD must not wait for it.
                    await asyncio.sleep(0)
        except ConversationLost as error:
            self._lose(str(error))
        finally:
            self._lose("the reader was stopped")

    async def synchronise(self) -> None:
        """Returns when the next answer to come is the answer to our next command.

        Raises:
            ConversationLost: the number did not come back.
        """
        async with self._turn:
            number = secrets.randbits(PROBE_BITS)
            bits = tuple((number >> place) & 1 for place in range(PROBE_BITS))
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._probe = bits, done
            # One command more at the front: its answer takes with it any text that is left over.
            digits = [PROBE_ONE if bit else PROBE_ZERO for bit in bits]
            self._send([RESET, PROBE_ZERO, *digits])
            await self._patiently(done)
            self._partial = Answer()

    async def ask(self, command: str) -> Answer:
        """Sends one command of any kind and waits for its answer.

        Raises:
            ConversationLost: it was sent, and what became of it is unknown.
        """
        async with self._turn:
            return await self._patiently(self._expect([command])[0])

    async def ask_routes(self, commands: Sequence[str]) -> list[Answer]:
        """Sends announce, withdraw commands, WINDOW of them at a time; answers in their order.

        Raises:
            ConversationLost: what became of them is unknown.
        """
        answers: list[Answer] = []
        async with self._turn:
            for start in range(0, len(commands), WINDOW):
                futures = self._expect(commands[start : start + WINDOW])
                answers.extend([await self._patiently(future) for future in futures])
        return answers

    async def close(self) -> None:
        """Closes the connection; ``run`` ends."""
        self._lose("closed")
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    # -- reading -------------------------------------------------------------------------------

    async def _read_line(self) -> bytes:
        try:
            return (await self._reader.readuntil(b"\n"))[:-1]
        except asyncio.IncompleteReadError:
            raise ConversationLost("the bridge is gone") from None
        except asyncio.LimitOverrunError:
            raise ConversationLost(f"a line of more than {MAX_LINE_BYTES} bytes") from None
        except OSError as error:
            raise ConversationLost(f"the bridge is gone: {error}") from None

    def _take(self, raw: bytes) -> None:
        try:
            line = decode(raw)
            if isinstance(line, RawUpdates):
                for event in self._updates.decode(line.peer, line.raw, is_ebgp=line.is_ebgp):
                    self._on_event(event)
                return
        except ProtocolError as error:
            # Skipped, not fatal: an UPDATE that we cannot read once, we cannot read after a
            # reconnect either, and reconnecting for ever would hold up every other peer.
            self._on_garbage(str(error))
            return
        if isinstance(line, tuple):
            for event in line:
                self._on_event(event)
            return
        self._answer_lines += 1
        if isinstance(line, Text):
            if len(self._partial.lines) >= MAX_ANSWER_LINES:
                raise ConversationLost(f"an answer of more than {MAX_ANSWER_LINES} lines")
            self._partial.lines.append(line.text)
        elif isinstance(line, Answered):
            answer, self._partial = self._partial, Answer()
            answer.ok = line.ok
            self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        if self._probe is not None:
            bits, done = self._probe
            is_one = bool(answer.lines) and answer.lines[-1].startswith("exabgp ")
            self._seen_bits.append(1 if is_one else 0)
            if tuple(self._seen_bits) == bits:
                self._probe = None
                self._seen_bits.clear()
                if not done.done():
                    done.set_result(None)
            return
        if not self._waiting:
            raise ConversationLost("an answer that no command asked for")
        future = self._waiting.popleft()
        if not future.done():
            future.set_result(answer)

    # -- writing -------------------------------------------------------------------------------

    def _send(self, commands: Sequence[str]) -> None:
        if self._lost is not None:
            raise ConversationLost(self._lost)
        self._writer.write("".join(f"{command}\n" for command in commands).encode("ascii"))

    def _expect(self, commands: Sequence[str]) -> list[asyncio.Future[Answer]]:
        self._send(commands)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in commands]
        self._waiting.extend(futures)
        return futures

    async def _patiently(self, future: asyncio.Future[_T]) -> _T:
        """Waits as long as something that belongs to an answer keeps coming."""
        while True:
            heard = self._answer_lines
            try:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with
                # the answer. shield: a timeout of ours must not cancel the command.
                async with asyncio.timeout(SILENCE_LIMIT_S):
                    return await asyncio.shield(future)
            except asyncio.CancelledError:
                # The next turn's answer could overtake the one nobody waits for any more.
                self._lose("a command was abandoned")
                raise
            except TimeoutError:
                if heard == self._answer_lines:
                    raise self._lose(
                        f"ExaBGP has been silent for {SILENCE_LIMIT_S:g} s on a command"
                    ) from None

    def _lose(self, why: str) -> ConversationLost:
        """Ends the conversation once; returns the error to raise."""
        if self._lost is None:
            self._lost = why
            self._writer.close()
            waiting: list[asyncio.Future[Any]] = list(self._waiting)
            if self._probe is not None:
                waiting.append(self._probe[1])
            self._waiting.clear()
            self._probe = None
            for future in waiting:
                if not future.done():
                    future.set_exception(ConversationLost(why))
                    # Whoever waited may have been cancelled; then nobody will look at it.
                    future.exception()
        return ConversationLost(self._lost)
