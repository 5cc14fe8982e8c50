"""Exit codes, the same everywhere, and the one place where exceptions become them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

HEALTHY = 0
FINDINGS = 1
USAGE = 2
UNREACHABLE = 3
PARTIAL = 4
TIMEOUT = 5


class Exit(click.ClickException):
    """A sentence on stderr and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        # click declares it on the class; ours differs from one instance to the next.
        vars(self)["exit_code"] = code

    def show(self, file: object = None) -> None:
        """One line on stderr, named as the command is named."""
        del file
        click.echo(f"slash32: {self.message}", err=True)


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turns our typed errors into exit codes; everything else is a bug and shows its traceback."""
    try:
        yield
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        raise Exit(str(error), code) from None


def _code_of(error: Exception) -> int | None:
    # Imported when something failed: a command that succeeds must not load the store for it.
    from routing.asking import Unreachable
    from routing.datastore.snapshot import (
        AlreadyExists,
        Conflict,
        InvalidResource,
        NotFound,
        StoreError,
    )
    from routing.settings import InvalidSettings

    if isinstance(error, InvalidResource | InvalidSettings):
        return USAGE
    if isinstance(error, NotFound | AlreadyExists | Conflict):
        return FINDINGS
    if isinstance(error, Unreachable | StoreError):
        return UNREACHABLE
    return None
