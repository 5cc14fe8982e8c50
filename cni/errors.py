"""CniError: a failure in the words of the CNI specification (section 5, Error). Pure."""

from __future__ import annotations

import json
from enum import IntEnum

_SHOWN_VALUE_CHARS = 60


class Code(IntEnum):
    """Error codes: below 100 the specification's (section 5, Error), from 100 ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODE_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 100
    NO_ADDRESS = 101
    WIRING_FAILED = 102
    INTERFACE_EXISTS = 103
    HOST_ROUTE_FAILED = 104
    CHECK_FOUND_DIFFERENCES = 105
    GC_INCOMPLETE = 106


class CniError(Exception):
    """A failure as the runtime will read it.

    Attributes:
        code: one of ``Code``.
        msg: one sentence.
        details: what else helps, may be empty.
    """

    def __init__(self, code: Code, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


def shown(value: object) -> str:
    """``value`` for a sentence: quoted, escaped, and cut at 60 characters."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:
        # Decoded JSON can be nested as deep as the decoder bore, and we stand deeper on the stack.
        text = type(value).__name__
    cut = text[:_SHOWN_VALUE_CHARS]
    return json.dumps(cut) + ("..." if len(text) > len(cut) else "")


def undecodable(field: str, what: str) -> CniError:
    """Code 6: ``field`` of the network configuration has a form we cannot read."""
    return CniError(Code.DECODE_FAILURE, f"network configuration: {field} {what}")
