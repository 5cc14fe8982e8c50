"""ExaBGP and its bridge alone: a reader of bgp.sock that counts and understands nothing.

What is left of our time when the agent is taken away. Not one of the systems that run unless it is
asked for: ``--systems speaker,bird``.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from bgp.conf_file import ConfFile
from bgp.paths import Peer
from bgp.speaker import BRIDGE
from lab.bench.announcer import Load
from lab.bench.systems import ASN, PEER_ASN, System, own, router, slash32_command
from lab.plan import LabFailure

CONNECT_DEADLINE_S = 20.0


class SpeakerAlone(System):
    """The real speaker, its agent's place taken by a thread that only reads."""

    name = "speaker"
    programs_kernel = False

    def __init__(self, directory: Path, namespace: str) -> None:
        super().__init__(directory, namespace)
        self._ends_of_rib = 0
        self._agent: socket.socket | None = None
        self._routers: Sequence[int] = ()

    def start(self, routers: Sequence[int]) -> None:
        self._routers = routers
        run = self.directory / "run"
        run.mkdir()
        path = str(run / "bgp.sock")
        # ExaBGP opens it from another network namespace, which a path does not mind.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.settimeout(CONNECT_DEADLINE_S)
        conf = ConfFile(
            str(run / "exabgp.conf"), python=sys.executable, bridge=BRIDGE, socket_path=path
        )
        conf.set_peers({IPv4Address(router(number)): _peer(number) for number in routers})
        self.spawn([*slash32_command(), "speaker", "--run-dir", str(run)])
        try:
            self._agent, _ = listener.accept()
        except TimeoutError:
            raise LabFailure("the bridge did not connect") from None
        finally:
            listener.close()
        threading.Thread(target=self._read, args=(self._agent,), daemon=True).start()

    def _read(self, agent: socket.socket) -> None:
        tail = b""
        try:
            while data := agent.recv(1 << 20):
                data = tail + data
                # One of IPv4 and one of IPv6 is what the announcer ends each load with.
                self._ends_of_rib += data.count(b'"eor"')
                tail = data[-4:]
        except OSError:
            return

    def route_count(self, load: Load) -> int:
        """All after the End-of-RIB of the first load, none before it and after the next."""
        time.sleep(0.0005)
        return load.count if self._ends_of_rib == 2 * len(self._routers) else 0

    def announce(self, prefix: str) -> None:
        """A line of ExaBGP's API, as the agent writes it."""
        if self._agent is None:
            raise LabFailure("not started")
        lines = [
            f"neighbor {router(number)} announce route {prefix} next-hop self\n"
            for number in self._routers
        ]
        self._agent.sendall("".join(lines).encode())

    def stop(self) -> None:
        """Ends the reader too."""
        super().stop()
        if self._agent is not None:
            self._agent.close()


def _peer(number: int) -> Peer:
    return Peer(
        name=f"r{number}",
        address=IPv4Address(router(number)),
        remote_asn=PEER_ASN,
        local_asn=ASN,
        local_address=IPv4Address(own(number)),
        router_id=IPv4Address(own(1)),
    )
