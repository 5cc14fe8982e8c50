"""A BGP speaker that says exactly what it is told to. Stdlib only; a plain script in a namespace.

``python -I -S raw_speaker.py ADDRESS ASN``: takes one connection after another, opens a session,
keeps it alive, and sends what comes on stdin: one line of hexadecimal is one whole message. Each
event is one JSON line on stdout: ``up``, and ``down`` with the NOTIFICATION's two codes, if any.
"""

import json
import os
import select
import socket
import struct
import sys
import time

MARKER = b"\xff" * 16
OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4
BGP_PORT = 179
HOLD_TIME_S = 90
KEEPALIVE_S = 3.0


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271 section 4.1."""
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def open_message(asn: int, router_id: str) -> bytes:
    """IPv4 unicast (RFC 4760), four-octet AS numbers (RFC 6793), no graceful restart."""
    capabilities = b"\x01\x04\x00\x01\x00\x01" + b"\x41\x04" + struct.pack("!I", asn)
    options = b"\x02" + bytes([len(capabilities)]) + capabilities
    short = asn if asn < 65536 else 23456
    fixed = struct.pack("!BHH4s", 4, short, HOLD_TIME_S, socket.inet_aton(router_id))
    return message(OPEN, fixed + bytes([len(options)]) + options)


def tell(event: str, **fields: object) -> None:
    """One line for whoever drives us."""
    print(json.dumps({"event": event, **fields}), flush=True)


class Session:
    """One connection from accept to end."""

    def __init__(self, connection: socket.socket, asn: int, router_id: str) -> None:
        self.connection = connection
        self.received = b""
        self.is_up = False
        self.sent_s = 0.0
        self.send(open_message(asn, router_id))

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.sent_s = time.monotonic()

    def read(self) -> "list | None":  # type: ignore[type-arg]
        """None while it lives; else the codes of its end, [] for none."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            return []
        if not data:
            return []
        self.received += data
        while len(self.received) >= 19:
            length, kind = struct.unpack_from("!HB", self.received, 16)
            if len(self.received) < length:
                break
            body, self.received = self.received[19:length], self.received[length:]
            if kind == OPEN:
                self.send(message(KEEPALIVE))
            elif kind == KEEPALIVE and not self.is_up:
                self.is_up = True
                tell("up")
            elif kind == NOTIFICATION:
                return list(body[:2])
        return None


def main() -> None:
    """Serves until stdin ends."""
    address, asn = sys.argv[1], int(sys.argv[2])
    # One address, and so one link: the router's other neighbours must not take the place.
    server = socket.create_server((address, BGP_PORT))
    session = None
    lines = b""
    tell("listening")
    while True:
        readers = [0, server.fileno()] + ([session.connection.fileno()] if session else [])
        ready, _, _ = select.select(readers, [], [], 0.5)
        if server.fileno() in ready:
            connection, _ = server.accept()
            if session is None:
                session = Session(connection, asn, address)
            else:
                connection.close()
        if session and session.connection.fileno() in ready:
            end = session.read()
            if end is not None:
                tell("down", codes=end)
                session.connection.close()
                session = None
        if session and session.is_up and time.monotonic() - session.sent_s > KEEPALIVE_S:
            session.send(message(KEEPALIVE))
        if 0 in ready:
            data = os.read(0, 1 << 20)
            if not data:
                return
            *whole, lines = (lines + data).split(b"\n")
            for line in whole:
                if session and session.is_up:
                    session.send(bytes.fromhex(line.decode()))


if __name__ == "__main__":
    main()
