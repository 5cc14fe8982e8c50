"""One request on the CNI socket, as bytes. Pure; plugin.py describes the protocol."""

from __future__ import annotations

from cni.errors import shown

MAGIC = b"slash32-cni 1\0"
REQUEST_MAX_BYTES = 1 << 20


class FrameError(Exception):
    """The bytes are not a request of our protocol."""


def split_request(data: bytes) -> tuple[dict[str, str], bytes]:
    """Environment and standard input of one request.

    Raises:
        FrameError: the bytes have another form.
    """
    if not data.startswith(MAGIC):
        raise FrameError(f"it begins with {shown(data[: len(MAGIC)])}, not with {shown(MAGIC)}")
    environment: dict[str, str] = {}
    position = len(MAGIC)
    while True:
        end = data.find(b"\0", position)
        if end < 0:
            raise FrameError("its environment has no end")
        entry = data[position:end]
        position = end + 1
        if not entry:
            return environment, data[position:]
        key, equals, value = entry.partition(b"=")
        if not equals or not key.startswith(b"CNI_"):
            raise FrameError("its environment has an entry that is not CNI_*=VALUE")
        try:
            environment[key.decode("ascii")] = value.decode("utf-8")
        except UnicodeDecodeError:
            raise FrameError(f"the value of {shown(key)} is not UTF-8") from None
