"""What the agent does not load: in an interpreter of its own, for it is about what is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def say(program: str) -> str:
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    return said.stdout.strip()


def test_the_agent_loads_no_rich_and_logs_all_the_same() -> None:
    """It is installed here, so structlog would take it."""
    log = (
        "import structlog, sys; structlog.dev.ConsoleRenderer(); "
        "print('rich.console' in sys.modules)"
    )
    assert say(log) == "True", "the control"
    assert say(f"from routing.lean_start import leave_out; leave_out(); {log}") == "False"


def test_aiohttp_trusts_nobody_by_default_and_others_still_do() -> None:
    """Its contexts are made at the import; one that is made afterwards has the machine's."""
    program = (
        "import os, ssl\n"
        "os.environ['SSL_CERT_DIR'] = '/nowhere'\n"
        "os.environ.pop('SSL_CERT_FILE', None)\n"
        "from routing.lean_start import no_default_certificates\n"
        "with no_default_certificates():\n"
        "    import aiohttp.connector as made\n"
        "print(len(made._SSL_CONTEXT_VERIFIED.get_ca_certs()), os.environ['SSL_CERT_DIR'],\n"
        "      'SSL_CERT_FILE' in os.environ)\n"
    )
    assert say(program) == "0 /nowhere False"
