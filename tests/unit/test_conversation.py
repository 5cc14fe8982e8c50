"""Pairing commands with answers on one connection, against a scripted ExaBGP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

import bgp.conversation
from bgp.conversation import PROBE_BITS, WINDOW, Conversation, ConversationLost
from bgp.paths import Event, SessionUp

UP = (
    '{ "exabgp": "5.0.0", "type": "state", "neighbor": '
    '{ "address": { "peer": "192.0.2.2" }, "state": "up" } }'
)
GREETING = '{"slash32": "bridge", "pid": 7, "exabgp_pid": 5, "exabgp_start": 1234}'


@dataclass
class Far:
    """ExaBGP's end: what it has been told, and its mouth."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        self.writer.write("".join(f"{line}\n" for line in lines).encode())

    async def hear(self) -> str:
        line = (await self.reader.readline()).decode().rstrip("\n")
        self.heard.append(line)
        return line

    async def answer_probe(self) -> list[str]:
        """Answers `reset` and the number as ExaBGP does."""
        heard = [await self.hear()]
        for _ in range(1 + PROBE_BITS):
            heard.append(await self.hear())
            self.say(*(["exabgp 5.0.15"] if heard[-1] == "version" else []), "done")
        return heard


@dataclass
class Near:
    conversation: Conversation
    running: asyncio.Task[None] | None
    events: list[Event] = field(default_factory=list)
    garbage: list[str] = field(default_factory=list)


@asynccontextmanager
async def talking(*, is_reading: bool = True) -> AsyncIterator[tuple[Near, Far]]:
    ours, theirs = socket.socketpair()
    far = Far(*await asyncio.open_unix_connection(sock=theirs))
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    events: list[Event] = []
    garbage: list[str] = []
    conversation = Conversation(reader, writer, on_event=events.append, on_garbage=garbage.append)
    running = asyncio.create_task(conversation.run()) if is_reading else None
    try:
        yield Near(conversation, running, events, garbage), far
    finally:
        await conversation.close()
        if running is not None:
            await running
        far.writer.close()
        with contextlib.suppress(OSError):
            await far.writer.wait_closed()


async def both(
    asking: Awaitable[object], script: Callable[[], Awaitable[object]]
) -> tuple[object, object]:
    """Our side and ExaBGP's, at the same time, within five seconds."""
    async with asyncio.timeout(5):
        asked, scripted = await asyncio.gather(asking, script())
        return asked, scripted


async def test_an_answer_is_its_lines_and_its_end() -> None:
    """Text before `done` belongs to it; events in between go their own way."""
    async with talking() as (near, far):

        async def script() -> None:
            assert await far.hear() == "reload"
            far.say("reload in progress", UP, "done")

        answer, _ = await both(near.conversation.ask("reload"), script)
        assert answer == bgp.conversation.Answer(ok=True, lines=["reload in progress"])
        assert near.events == [SessionUp(ip_address("192.0.2.2"))]


async def test_route_commands_are_answered_in_their_order() -> None:
    """More than a window of them; each gets its own answer."""
    async with talking() as (near, far):
        commands = [f"announce {number}" for number in range(WINDOW * 2 + 3)]

        async def script() -> None:
            for number in range(len(commands)):
                assert await far.hear() == f"announce {number}"
                far.say("error" if number % 7 == 0 else "done")

        answers, _ = await both(near.conversation.ask_routes(commands), script)
        assert isinstance(answers, list)
        assert [answer.ok for answer in answers] == [n % 7 != 0 for n in range(len(commands))]


async def test_a_single_command_waits_for_the_batch_before_it() -> None:
    """ExaBGP answers `version` ahead of queued routes: it must not be sent among them."""
    async with talking() as (near, far):

        async def script() -> None:
            assert [await far.hear(), await far.hear()] == ["announce a", "announce b"]
            far.say("done")
            # Nothing else may be under way before the second answer.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await far.reader.readexactly(1)
            far.say("done")
            assert await far.hear() == "version"
            far.say("exabgp 5.0.15", "done")

        async def ask() -> None:
            routes = asyncio.create_task(near.conversation.ask_routes(["announce a", "announce b"]))
            await asyncio.sleep(0)
            assert (await near.conversation.ask("version")).lines == ["exabgp 5.0.15"]
            assert all(answer.ok for answer in await routes)

        await both(ask(), script)


@pytest.mark.parametrize(
    "inherited",
    [
        [],
        ["done"] * 40,
        ["error", "done", "error"],
        ["exabgp 5.0.15", "done"] * PROBE_BITS,
        ['{"peer": {"address": "192.0.2.2"}, "route": {}}'] * 3,
        ["exabgp 5.0.15"],
    ],
    ids=["none", "dones", "mixed", "another-probe", "half-a-dump", "half-a-version"],
)
async def test_answers_to_an_agent_before_us_are_not_ours(inherited: list[str]) -> None:
    """Whatever was under way, the first answer after synchronise is to our first command."""
    async with talking() as (near, far):

        async def script() -> None:
            far.say(*inherited, UP)
            heard = await far.answer_probe()
            assert heard[0] == "reset"
            assert set(heard[1:]) <= {"version", "#"}
            assert await far.hear() == "show adj-rib out json"
            far.say("the answer", "done")

        async def ask() -> object:
            await near.conversation.synchronise()
            return (await near.conversation.ask("show adj-rib out json")).lines

        lines, _ = await both(ask(), script)
        assert lines == ["the answer"]
        assert near.events == [SessionUp(ip_address("192.0.2.2"))]


async def test_each_probe_is_another_number() -> None:
    """Two agents in a row cannot take each other's for their own."""
    async with talking() as (near, far):
        heard = []
        for _ in range(2):
            _, probe = await both(near.conversation.synchronise(), far.answer_probe)
            heard.append(probe)
        assert heard[0] != heard[1]


async def test_an_answer_that_nobody_asked_for_ends_the_conversation() -> None:
    """The pairing is off by one somewhere; only a fresh start is safe."""
    async with talking() as (near, far):
        far.say("done")
        assert near.running is not None
        async with asyncio.timeout(5):
            await near.running
        with pytest.raises(ConversationLost, match="no command"):
            await near.conversation.ask("version")


async def test_a_silent_exabgp_ends_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands have a deadline; events do not count as an answer."""
    monkeypatch.setattr(bgp.conversation, "SILENCE_LIMIT_S", 0.1)
    async with talking() as (near, far):

        async def script() -> None:
            await far.hear()
            far.say(UP)

        with pytest.raises(ConversationLost, match="silent"):
            await both(near.conversation.ask("show neighbor json"), script)
        with pytest.raises(ConversationLost):
            await near.conversation.ask("version")


async def test_a_long_answer_that_keeps_coming_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The deadline is on silence, not on length."""
    monkeypatch.setattr(bgp.conversation, "SILENCE_LIMIT_S", 0.2)
    async with talking() as (near, far):

        async def script() -> None:
            await far.hear()
            for _ in range(8):
                await asyncio.sleep(0.05)
                far.say("line")
            far.say("done")

        answer, _ = await both(near.conversation.ask("show"), script)
        assert isinstance(answer, bgp.conversation.Answer)
        assert len(answer.lines) == 8


async def test_a_bridge_that_goes_fails_what_is_waiting() -> None:
    """At once, and everything after it."""
    async with talking() as (near, far):

        async def script() -> None:
            await far.hear()
            far.writer.close()

        with pytest.raises(ConversationLost, match="bridge is gone"):
            await both(near.conversation.ask("version"), script)


async def test_a_command_that_is_given_up_ends_the_conversation() -> None:
    """Its answer, still to come, could be overtaken by that of the next."""
    async with talking() as (near, far):
        asking = asyncio.create_task(near.conversation.ask("version"))
        async with asyncio.timeout(5):
            await far.hear()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(ConversationLost, match="abandoned"):
            await near.conversation.ask("version")


async def test_a_line_that_cannot_be_read_is_counted_and_passed_over() -> None:
    """One bad UPDATE does not hold up every other peer."""
    async with talking() as (near, far):

        async def script() -> None:
            await far.hear()
            far.say('{ "exabgp": "5.0.0", "type": "state" }', UP, "done")

        answer, _ = await both(near.conversation.ask("version"), script)
        assert isinstance(answer, bgp.conversation.Answer)
        assert answer.ok
        assert len(near.garbage) == 1
        assert len(near.events) == 1


async def test_the_greeting_must_be_the_bridges() -> None:
    """Whoever else can connect to the socket is not taken for ExaBGP."""
    async with talking(is_reading=False) as (near, far):
        far.say(GREETING)
        assert (await near.conversation.hello()).exabgp == (5, 1234)
    async with talking(is_reading=False) as (near, far):
        far.say("GET / HTTP/1.1")
        with pytest.raises(ConversationLost, match="greeting"):
            await near.conversation.hello()
