"""exabgp.conf on disk: never seen half written, never readable by anybody else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def read_conf(path: str) -> str | None:
    """The file's text; None when there is none that we could have written."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def write_conf(path: str, text: str) -> None:
    """Replaces the file at once, mode 0600.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    fresh = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    # Exclusive: a link that somebody has put there is not followed.
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(fresh, path)
