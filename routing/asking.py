"""The asking end of the agent's control socket. Standard library only and quick to import: a status
that takes 200 ms to start is a status nobody polls."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPLY_MAX_BYTES = 256 * 1024 * 1024


class Unreachable(Exception):
    """The agent does not answer; the sentence says where it was looked for and why it failed."""


def ask(
    path: Path, view: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 5.0
) -> Any:
    """The agent's answer to one view, or to one query with its arguments.

    Raises:
        Unreachable: no agent answers at ``path`` within ``timeout_s``, or not in our form.
    """
    chunks: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            request = {"view": view, "arguments": dict(arguments or {})}
            client.sendall(json.dumps(request).encode() + b"\n")
            size = 0
            while chunk := client.recv(1 << 20):
                chunks.append(chunk)
                size += len(chunk)
                if size > REPLY_MAX_BYTES:
                    raise Unreachable(f"the agent's answer on {path} is larger than 256 MiB")
    except OSError as error:
        reason = error.strerror or str(error) or "no answer in time"
        raise Unreachable(f"no slash32 agent answers on {path}: {reason}") from None
    try:
        reply = json.loads(b"".join(chunks))
        if "error" in reply:
            raise Unreachable(f"the agent on {path} says: {reply['error']}")
        return reply["data"]
    except (ValueError, KeyError, TypeError):
        raise Unreachable(f"the answer on {path} is not a slash32 agent's") from None
