"""The agent's BGP speaker: ExaBGP behind the bridge, as tables that can be read, compared, changed.

The Speaker listens; the bridge connects, and connects again whenever the connection is lost. Each
new connection is read back before anything is believed: sessions, Adj-RIB-In, Adj-RIB-Out and which
configuration ExaBGP has loaded. From then on everything is tracked. ``bgp.sessions`` holds what is
believed, ``bgp.conversation`` the pairing of commands and answers; this module does the I/O.

Two habits of ExaBGP shape it:

* A ``reload`` is thrown away without a word while any neighbour has an announcement it could not
  send, so nothing is announced to a session that is down. It is *held* here and handed over the
  moment the session is up, before any End-of-RIB; and a reload is repeated until ExaBGP shows the
  new file's mark.
* It answers ``done`` to an announcement of a family that the neighbour is not configured for, and
  does nothing. Such things are refused here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath

from bgp import exabgp_api as api
from bgp import exabgp_commands as commands
from bgp.adj_rib import Offers
from bgp.advertising import AdvertisementDelta as AdvertisementDelta
from bgp.advertising import AdvertisementKey as AdvertisementKey
from bgp.advertising import BgpFailure as BgpFailure
from bgp.advertising import NotSent as NotSent
from bgp.advertising import Unsayable, as_said_to
from bgp.conf_file import ConfFile
from bgp.conversation import Conversation, ConversationLost
from bgp.exabgp_api import Hello
from bgp.exabgp_commands import ProtocolError
from bgp.path_table import PathTable
from bgp.paths import (
    Address,
    Advertisement,
    Event,
    Family,
    Path,
    Peer,
    PeerStatus,
    SessionDown,
    SessionUp,
)
from bgp.sessions import RejectedRoute, Sessions

BRIDGE = str(FilePath(__file__).with_name("bridge.py").resolve())

TICK_S = 0.25
RETRY_PAUSE_S = 0.5
"""After a read-back that made no sense, before the bridge may try again."""
RELOAD_POLLS = 20
RELOAD_POLL_S = 0.025
RETRY_S = 1.0
"""Between attempts to make ExaBGP take a reload or a held announcement."""
ATTEMPTS_S = 2.0
"""Between two looks at why a session does not come up."""
RELOAD_WAIT_S = 1.0
"""How long ``set_peers`` waits for ExaBGP to take a change; afterwards it goes on by itself."""
BACKLOG = 4
END_OF_RIB_AT_ONCE = 50
"""Sessions in one command: a line of 2 KB."""


class Speaker:
    """One node's BGP. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        socket_path: str,
        conf_path: str,
        clock: Callable[[], float],
        on_change: Callable[[str], None],
        python: str = sys.executable,
    ) -> None:
        """Nothing happens before ``start``.

        Args:
            socket_path: where the bridge connects; its directory must exist.
            conf_path: exabgp.conf, same directory rules.
            clock: seconds, monotonic.
            on_change: called with a reason whenever something a pass should look at has changed.
                Must not block.
            python: interpreter for the bridge.
        """
        self._socket_path = socket_path
        self._clock = clock
        self._on_change = on_change
        self._conf_file = ConfFile(conf_path, python=python, bridge=BRIDGE, socket_path=socket_path)
        self._is_unwritten = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._conversation: Conversation | None = None
        self._is_read_back = False
        self._exabgp: tuple[int, int] | None = None
        self.exabgp_mode = ""
        """``tuned``, or ``stock: `` and why (exabgp_tuned.py); empty before the first contact."""
        self._beliefs = Sessions()
        self._unreadable_lines = 0
        self._peers: dict[Address, Peer] | None = None
        self._loaded_marks: frozenset[str] | None = None
        self._loaded = asyncio.Event()
        self._work = asyncio.Event()
        self._out: dict[AdvertisementKey, Advertisement] = {}
        self._held: dict[AdvertisementKey, Advertisement | None] = {}
        self._out_lock = asyncio.Lock()

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens for the bridge.

        Raises:
            OSError: the socket cannot be made.
        """
        # Bound under another name and renamed when its mode is right: at no moment can anybody
        # else connect, and a socket left by a killed agent is simply replaced.
        fresh = f"{self._socket_path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        self._server = await asyncio.start_unix_server(
            self._accept, fresh, limit=api.MAX_LINE_BYTES, backlog=BACKLOG
        )
        os.chmod(fresh, 0o600)
        os.rename(fresh, self._socket_path)
        self._spawn(self._tick_for_ever())

    async def close(self) -> None:
        """Stops listening and leaves ExaBGP, its sessions and its routes alone."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._socket_path)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if server is not None:
            await server.wait_closed()

    # -- looking -------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """ExaBGP is here and has been read back."""
        return self._conversation is not None and self._is_read_back

    @property
    def unreadable_lines(self) -> int:
        """How many lines of ExaBGP could not be read and were skipped."""
        return self._unreadable_lines

    def sessions(self) -> Mapping[Address, PeerStatus]:
        """Each session by peer address: the configured ones and, before that is known, ExaBGP's."""
        statuses = self._beliefs.statuses()
        for (peer, _), held in self._out_and_held().items():
            if held is not None and peer in statuses:
                statuses[peer].routes_advertised += 1
        return statuses

    def paths(self) -> Mapping[AdvertisementKey, Path]:
        """Adj-RIB-In of all peers, stale paths included."""
        return self._beliefs.rib.paths()

    def path_table(self) -> PathTable:
        """The same as a view, for whoever looks at some of it before he awaits anything."""
        return self._beliefs.rib.view()

    def stale_paths(self) -> frozenset[AdvertisementKey]:
        """Those of ``paths`` that await a new announcement or the sweep."""
        rib = self._beliefs.rib
        return frozenset((peer, prefix) for peer in rib.peers() for prefix in rib.stale(peer))

    def offers(self) -> Offers:
        """The Adj-RIB-In by prefix, stale paths included. A copy."""
        return self._beliefs.rib.offers()

    def received(self) -> Mapping[Address, int]:
        """How many prefixes each peer has sent."""
        return self._beliefs.rib.counts()

    def take_changes(self) -> Offers | None:
        """Each prefix whose paths changed since the last call, with what is said of it now; None:
        any may have."""
        return self._beliefs.rib.take_changes()

    def take_lost_next_hops(self) -> frozenset[Address]:
        """The next hops that went with a session or a sweep since the last call, and that no path
        names any more."""
        return self._beliefs.rib.take_lost_next_hops()

    def take_lost_peers(self) -> frozenset[Address]:
        """The peers of which nothing is believed any more since the last call."""
        return self._beliefs.rib.take_lost_peers()

    def rejections(self) -> tuple[RejectedRoute, ...]:
        """The last routes that could not be used, oldest first."""
        return self._beliefs.rejections()

    def is_complete(self, peer: Address) -> bool:
        """Whether ``peer`` has sent all it has: its silence about a route then means something."""
        return self.is_connected and self._beliefs.is_complete(peer, self._clock())

    async def adj_rib_out(self) -> dict[AdvertisementKey, Advertisement]:
        """What each peer is told, or will be when its session comes up."""
        return {key: value for key, value in self._out_and_held().items() if value is not None}

    def _out_and_held(self) -> dict[AdvertisementKey, Advertisement | None]:
        return {
            key: value for key, value in {**self._out, **self._held}.items() if self._is_ours(key)
        }

    def _is_ours(self, key: AdvertisementKey) -> bool:
        """False for what ExaBGP still says to a peer that is configured no more."""
        return self._peers is None or key[0] in self._peers

    # -- changing ------------------------------------------------------------------------------

    async def set_peers(self, peers: Mapping[Address, Peer]) -> None:
        """Makes the sessions exactly these; a session that does not change is not touched.

        Returns when ExaBGP has taken the change, or after RELOAD_WAIT_S; it is pursued until done.

        Raises:
            ConfError: a value must not be written; nothing changes.
            OSError: the file cannot be written; nothing changes.
        """
        wanted = dict(peers)
        if wanted == self._peers and not self._conf_file.is_missing:
            return
        self._conf_file.set_peers(wanted)
        self._peers = wanted
        self._beliefs.configure(
            {address: peer.local_address for address, peer in wanted.items()},
            helped={address for address, peer in wanted.items() if peer.graceful_restart_s},
        )
        self._held = {key: value for key, value in self._held.items() if self._is_ours(key)}
        self._note_loaded()
        self._work.set()
        if self.is_connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELOAD_WAIT_S):
                    await self._loaded.wait()

    async def apply(self, delta: AdvertisementDelta) -> list[NotSent]:
        """Announces and withdraws, per peer, going on past failures.

        A session that is down gets it when it comes up, before any End-of-RIB.

        Returns:
            What did not happen. Announcements come before withdrawals.
        """
        changes: list[tuple[str, AdvertisementKey, Advertisement | None]] = [
            *(("announce", key, value) for key, value in delta.create.items()),
            *(("announce", key, new) for key, (_, new) in delta.replace.items()),
            *(("withdraw", key, None) for key in delta.delete),
        ]
        failures: list[NotSent] = []
        async with self._out_lock:
            sendable: list[tuple[AdvertisementKey, Advertisement | None]] = []
            for operation, key, value in changes:
                problem = self._problem(key, value)
                if problem is not None:
                    failures.append(NotSent(key, operation, problem))
                    continue
                self._held.pop(key, None)
                if self._beliefs.is_established(key[0]):
                    sendable.append((key, value))
                elif self._out.get(key) != value:
                    self._held[key] = value
            failures.extend(await self._send(sendable))
            problem = self._write_announced()
            if problem is not None:
                self._work.set()
                failures.extend(NotSent(key, operation, problem) for operation, key, _ in changes)
        return failures

    def _write_announced(self) -> str | None:
        """Brings exabgp.conf's routes up to what ExaBGP has. Returns why not, or None.

        What is held for a session that never came up stays out, for ExaBGP throws reloads away
        while it has a route that it cannot send; and what is to be withdrawn goes at once.
        """
        announced = {
            key: value
            for key, value in self._out_and_held().items()
            if value is not None and key in self._out
        }
        try:
            self._conf_file.set_announced(announced)
        except OSError as error:
            self._is_unwritten = True
            return f"exabgp.conf cannot be written: {error}"
        self._is_unwritten = False
        return None

    async def send_end_of_rib(self, peer: Address, family: Family) -> None:
        """Sends End-of-RIB, after everything that ``apply`` has taken for this peer.

        Does nothing for a family that the peer did not negotiate.

        Raises:
            BgpFailure: the session is not up, or not all routes could be sent.
        """
        for problem in (await self.send_ends_of_rib([(peer, family)])).values():
            raise BgpFailure(problem)

    async def send_ends_of_rib(
        self, due: Collection[tuple[Address, Family]]
    ) -> dict[tuple[Address, Family], str]:
        """The same to many, with a command for END_OF_RIB_AT_ONCE sessions: one by one, 250
        sessions of two families keep both processes busy for two seconds.

        Returns:
            What was not sent, and why.
        """
        async with self._out_lock:
            problems = await self._before_end_of_rib({peer for peer, _ in due})
            failed = {each: problems[each[0]] for each in due if each[0] in problems}
            ready: dict[Family, list[Address]] = {}
            for peer, family in due:
                if peer not in problems and family in (self._beliefs.negotiated(peer) or ()):
                    ready.setdefault(family, []).append(peer)
            for family, peers in ready.items():
                for start in range(0, len(peers), END_OF_RIB_AT_ONCE):
                    some = peers[start : start + END_OF_RIB_AT_ONCE]
                    problem = await self._end_of_rib(some, family)
                    if problem is not None:
                        failed |= dict.fromkeys([(peer, family) for peer in some], problem)
        return failed

    async def _before_end_of_rib(self, peers: Collection[Address]) -> dict[Address, str]:
        """Hands over what is held for them. Returns who cannot be sent to, and why."""
        problems: dict[Address, str] = {}
        for peer in peers:
            if self._conversation is None or not self._beliefs.is_established(peer):
                problems[peer] = f"the session with {peer} is not up"
        up = set(peers) - problems.keys()
        for failure in await self._hand_over(up):
            said = f"{failure.key[1]} could not be sent: {failure.error}"
            problems.setdefault(failure.key[0], said)
        conversation = self._conversation
        if conversation is not None and any(self._beliefs.negotiated(p) is None for p in up):
            try:
                await self._learn_states(conversation)
            except (ConversationLost, ProtocolError) as error:
                problems |= dict.fromkeys(up, str(error))
        return problems

    async def _end_of_rib(self, peers: Sequence[Address], family: Family) -> str | None:
        """Why it was not sent, or None. A session that has just ended is passed over: another one
        asks for another End-of-RIB."""
        try:
            if self._conversation is None:
                raise ConversationLost("ExaBGP is not connected")
            answer = await self._conversation.ask(commands.end_of_rib(peers, family))
        except (ConversationLost, ProtocolError) as error:
            return str(error)
        told = ", ".join(map(str, peers))
        return None if answer.ok else f"ExaBGP would not send End-of-RIB to {told}"

    def _problem(self, key: AdvertisementKey, value: Advertisement | None) -> str | None:
        """Why this announcement or withdrawal cannot even be tried, or None."""
        peer = (self._peers or {}).get(key[0])
        if not self.is_connected:
            return "ExaBGP is not connected"
        if peer is None:
            return f"{key[0]} is not a configured peer"
        if value is None:
            return None
        try:
            self._command(key, value)
        except (Unsayable, ProtocolError) as error:
            return str(error)
        return None

    async def _send(
        self, changes: Sequence[tuple[AdvertisementKey, Advertisement | None]]
    ) -> list[NotSent]:
        """To sessions that are up. The caller holds the lock."""
        conversation = self._conversation
        if not changes:
            return []
        lines = [self._command(key, value) for key, value in changes]
        operations = ["withdraw" if value is None else "announce" for _, value in changes]
        try:
            if conversation is None:
                raise ConversationLost("ExaBGP is not connected")
            answers = await conversation.ask_routes(lines)
        except ConversationLost as error:
            # What came of them is unknown; the read-back will say.
            return [
                NotSent(key, operation, str(error))
                for (key, _), operation in zip(changes, operations, strict=True)
            ]
        failures = []
        for (key, value), operation, answer in zip(changes, operations, answers, strict=True):
            if not answer.ok:
                failures.append(NotSent(key, operation, "ExaBGP refused the command"))
            elif value is None:
                self._out.pop(key, None)
            else:
                self._out[key] = value
        return failures

    def _command(self, key: AdvertisementKey, value: Advertisement | None) -> str:
        if value is None:
            return commands.withdraw(*key)
        peer = (self._peers or {}).get(key[0])
        if peer is None:
            raise Unsayable(f"{key[0]} is not a configured peer")
        prepend_asn = peer.local_asn if peer.is_ebgp else None
        return commands.announce(key[0], as_said_to(peer, value), prepend_asn=prepend_asn)

    async def _hand_over(self, peers: Collection[Address]) -> list[NotSent]:
        """Sends what was held for sessions that are up now. The caller holds the lock."""
        ready = [(key, value) for key, value in self._held.items() if key[0] in peers]
        failures = await self._send(ready)
        failed = {failure.key for failure in failures}
        for key, _ in ready:
            if key not in failed:
                self._held.pop(key, None)
        return failures

    # -- the connection ------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._serve(reader, writer))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # A bug; whoever runs the loop decides what to do about it.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "bgp.speaker: a task failed", "exception": error, "task": task}
            )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = Conversation(
            reader,
            writer,
            on_event=self._on_event,
            on_garbage=self._on_garbage,
            attributes=self._beliefs.attributes,
        )
        try:
            hello = await conversation.hello()
        except ConversationLost:
            await conversation.close()
            return
        # The bridge has one connection: an older one is dead even if we have not heard of it yet.
        before, self._conversation = self._conversation, conversation
        if before is not None:
            self._is_read_back = False
            await before.close()
        # Before the first line of the new ExaBGP is read: a session it reports up while it is being
        # read back is one of its own, not one that the old one took with it.
        is_same = self._exabgp in (None, hello.exabgp)
        if not is_same:
            self._beliefs.exabgp_restarted(self._clock())
        self._beliefs.begin_read_back()
        reading = asyncio.create_task(conversation.run())
        try:
            await self._read_back(conversation, hello, is_same=is_same)
            await self._work_until_lost(conversation, reading)
        except ConversationLost:
            pass
        except ProtocolError as error:
            self._on_garbage(str(error))
            await asyncio.sleep(RETRY_PAUSE_S)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await conversation.close()
            if self._conversation is conversation:
                self._conversation, self._is_read_back = None, False
                self._beliefs.lost(self._clock())
                self._on_change("speaker_lost")

    def _on_event(self, event: Event) -> None:
        reason = self._beliefs.event(event, self._clock())
        if isinstance(event, SessionUp | SessionDown):
            self._work.set()
        if reason is not None:
            self._on_change(reason)

    def _on_garbage(self, sentence: str) -> None:
        del sentence
        self._unreadable_lines += 1

    async def _read_back(self, conversation: Conversation, hello: Hello, *, is_same: bool) -> None:
        await conversation.synchronise()
        self._exabgp, self.exabgp_mode = hello.exabgp, hello.mode
        async with self._out_lock:
            states = api.decode_neighbors(await _lines(conversation, commands.SHOW_NEIGHBORS))
            # First whose sessions there are: what is told again belongs to the present ones.
            self._beliefs.correct_sessions(states, self._clock())
            whole = api.decode_replayed(await _lines(conversation, commands.REPLAY))
            again = self._beliefs.read_back(
                states, (), is_same_exabgp=is_same, now_s=self._clock(), whole=whole
            )
            await self._read_out(conversation)
            await self._read_marks(conversation)
        for peer, family in again:
            await conversation.ask(commands.route_refresh(peer, family))
        self._is_read_back = True
        self._work.set()
        self._on_change("speaker_read_back")

    async def _read_out(self, conversation: Conversation) -> None:
        lines = await _lines(conversation, commands.SHOW_ADJ_RIB_OUT)
        self._out = {}
        for peer, advertisement in map(api.decode_adj_rib_out, lines):
            if advertisement.next_hop == self._beliefs.local_address(peer):
                # This is how ExaBGP shows `self`, and `self` is how the hub says it.
                advertisement = replace(advertisement, next_hop=None)
            self._out[peer, advertisement.prefix] = advertisement
        self._write_announced()

    async def _learn_states(self, conversation: Conversation) -> None:
        lines = await _lines(conversation, commands.SHOW_NEIGHBORS)
        self._beliefs.correct_states(api.decode_neighbors(lines))

    async def _learn_attempts(self, conversation: Conversation) -> None:
        """For people alone, so an ExaBGP that does not answer is no fault."""
        answer = await conversation.ask(commands.SHOW_ATTEMPTS)
        attempts = api.decode_attempts(answer.lines) if answer.ok else {}
        for peer in self._beliefs.note_attempts(attempts):
            self._on_change(f"session_attempt:{peer}")

    async def _read_marks(self, conversation: Conversation) -> None:
        if self.exabgp_mode == api.TUNED:
            self._loaded_marks = frozenset(await _lines(conversation, commands.SHOW_MARKS))
        else:
            lines = await _lines(conversation, commands.SHOW_CONFIGURATION)
            self._loaded_marks = api.decode_configuration_marks(lines)
        self._note_loaded()

    def _note_loaded(self) -> None:
        if self._needs_reload():
            self._loaded.clear()
        else:
            self._loaded.set()

    def _needs_reload(self) -> bool:
        mark = self._conf_file.mark
        if mark is None:
            return False
        return self._loaded_marks != (frozenset({mark}) if self._peers else frozenset())

    # -- what is done in the background --------------------------------------------------------

    async def _work_until_lost(
        self, conversation: Conversation, reading: asyncio.Task[None]
    ) -> None:
        while not reading.done():
            self._work.clear()
            if self._needs_reload():
                await self._reload(conversation)
            if self._beliefs.lacks_negotiated():
                await self._learn_states(conversation)
            is_any_down = self._beliefs.is_any_down() and self.exabgp_mode == api.TUNED
            if is_any_down:
                await self._learn_attempts(conversation)
            async with self._out_lock:
                waiting = {key[0] for key in self._held}
                refused = await self._hand_over(
                    {peer for peer in waiting if self._beliefs.is_established(peer)}
                )
                self._write_announced()
            working = asyncio.create_task(self._work.wait())
            is_unfinished = self._needs_reload() or refused or self._is_unwritten
            wait_s = RETRY_S if is_unfinished else ATTEMPTS_S if is_any_down else None
            try:
                await asyncio.wait(
                    {working, reading}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                working.cancel()

    async def _reload(self, conversation: Conversation) -> None:
        """One attempt to make ExaBGP load the file; then what it holds is read again."""
        await self._take_leave(conversation)
        await conversation.ask(commands.RELOAD)
        for _ in range(RELOAD_POLLS):
            await self._read_marks(conversation)
            if not self._needs_reload():
                break
            await asyncio.sleep(RELOAD_POLL_S)
        else:
            return
        # A changed session may have lost its Adj-RIB-Out, a new one has none.
        async with self._out_lock:
            await self._learn_states(conversation)
            await self._read_out(conversation)
        self._on_change("peers_loaded")

    async def _take_leave(self, conversation: Conversation) -> None:
        """Withdraws everything from peers that are about to be removed.

        ExaBGP closes their sessions without a word, as graceful restart has it, and they would
        go on sending us traffic until their restart timer runs out.
        """
        async with self._out_lock:
            leaving = [(key, None) for key in self._out if not self._is_ours(key)]
            if leaving:
                lines = await _lines(conversation, commands.SHOW_NEIGHBORS)
                up = {s.peer for s in api.decode_neighbors(lines) if s.is_established}
                await self._send([entry for entry in leaving if entry[0][0] in up])

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for reason in self._tick():
                self._on_change(reason)

    def _tick(self) -> list[str]:
        return self._beliefs.tick(self._clock())


async def _lines(conversation: Conversation, command: str) -> list[str]:
    """The text of an answer that must be ``done``."""
    answer = await conversation.ask(command)
    if not answer.ok:
        raise ProtocolError(f"ExaBGP refused {command!r}")
    return answer.lines
