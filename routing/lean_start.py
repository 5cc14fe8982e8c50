"""What the agent's libraries would load and the agent never uses, 5 MiB of it, is left out.

An agent runs on every node for as long as the node does. structlog takes rich for tracebacks in
colour wherever it is installed; ours are text. aiohttp makes two TLS contexts when it is imported,
with every certification authority of the machine in both, for connections of a kind that we never
open: the web server speaks none, and the Kubernetes client makes a context of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Where OpenSSL looks for a default's certificates, if not in its own places."""


def leave_out() -> None:
    """Before anything imports structlog."""
    # The documented way to say that there is none.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]


@contextmanager
def no_default_certificates() -> Iterator[None]:
    """TLS contexts made meanwhile trust nobody; to import aiohttp in."""
    before = {name: os.environ.get(name) for name in CERTIFICATES}
    os.environ.update(dict.fromkeys(CERTIFICATES, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
