"""The program that runs in every namespace of a probed lab: it serves, and it asks. Stdlib only.

As a server it takes TCP streams to their end and answers with what it saw: the peer's address, the
number of bytes and their SHA-256. As a client it reads one JSON line of tasks from stdin, does them
one after another, and prints one JSON line of outcomes. It judges nothing: probes.py does.

Started as a plain script (``python -I -S prober.py PORT...``), so that it costs 20 ms, not 200.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading

REPLY_MAX_BYTES = 4096
CHUNK_BYTES = 256 * 1024
IO_DEADLINE_S = 20.0
PING_DEADLINE_S = 3


def listen(port: int, family: socket.AddressFamily) -> socket.socket:
    """A listening socket on every address of one family."""
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # Otherwise an IPv4 peer would be reported as ::ffff:a.b.c.d.
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind(("", port))
    server.listen(64)
    return server


def serve(server: socket.socket) -> None:
    """Takes connections for ever, one thread each."""
    while True:
        connection, peer = server.accept()
        threading.Thread(target=answer, args=(connection, peer[0]), daemon=True).start()


def answer(connection: socket.socket, peer: str) -> None:
    """Reads to the end, then says what was seen."""
    digest, size = hashlib.sha256(), 0
    try:
        with connection:
            connection.settimeout(IO_DEADLINE_S)
            while chunk := connection.recv(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
            report = {"peer": peer, "bytes": size, "sha256": digest.hexdigest()}
            connection.sendall(json.dumps(report).encode())
    except OSError as error:
        print(f"from {peer}: {error}", file=sys.stderr, flush=True)


def stream(task: dict) -> dict:  # type: ignore[type-arg]
    """Sends ``bytes`` random bytes to address and port; the server's report beside our own."""
    payload = os.urandom(task["bytes"])
    family = socket.AF_INET6 if ":" in task["address"] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(IO_DEADLINE_S)
            client.connect((task["address"], task["port"]))
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)
            reply = b""
            while len(reply) < REPLY_MAX_BYTES and (chunk := client.recv(REPLY_MAX_BYTES)):
                reply += chunk
        report = json.loads(reply)
    except (OSError, ValueError) as error:
        return {"error": str(error) or type(error).__name__}
    return {"report": report, "sha256": hashlib.sha256(payload).hexdigest()}


def ping(task: dict) -> dict:  # type: ignore[type-arg]
    """One echo request of ``bytes`` payload bytes by the ping program; no second try."""
    command = ["ping", "-n", "-c", "1", "-W", str(PING_DEADLINE_S), "-s", str(task["bytes"])]
    done = subprocess.run([*command, task["address"]], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return {}
    words = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return {"error": next((w for w in reversed(words) if w), f"status {done.returncode}")}


def main() -> None:
    """Serves on every port given, says so, then works through tasks until stdin ends."""
    families = [socket.AF_INET]
    if os.path.exists("/proc/net/if_inet6"):
        families.append(socket.AF_INET6)
    for port in sys.argv[1:]:
        for family in families:
            threading.Thread(target=serve, args=(listen(int(port), family),), daemon=True).start()
    print(json.dumps({"ready": True}), flush=True)
    does = {"ping": ping, "stream": stream}
    for line in sys.stdin:
        outcomes = [does[task["kind"]](task) for task in json.loads(line)]
        print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main()
