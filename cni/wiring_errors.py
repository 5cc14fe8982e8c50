"""What can go wrong with a pod link, in types; server.py makes CNI codes of them."""

from __future__ import annotations

from types import TracebackType

from cni.netlink import MalformedMessage


class WiringError(Exception):
    """A pod link could not be made, read or removed; the sentence names the link and the reason."""


class LinkExists(WiringError):
    """The host end's name is taken.

    Attributes:
        is_ours: by a link of ours, whose alias says what it is for; else by somebody else's.
    """

    def __init__(self, message: str, *, is_ours: bool = False) -> None:
        super().__init__(message)
        self.is_ours = is_ours


class PodInterfaceExists(WiringError):
    """The pod's namespace has an interface of the wanted name already."""


class NamespaceGone(WiringError):
    """The descriptor is not, or not any more, a network namespace."""


class OwnNamespace(WiringError):
    """The pod's namespace is the host's: wiring would give the host a second default route."""


class as_wiring_error:  # noqa: N801 - reads as what it does
    """Turns what netlink and /proc raise into WiringError, with the link's name in front.

    Not a generator: three of these are on the way of every ADD.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, (OSError, MalformedMessage)):
            reason = getattr(error, "strerror", None) or error
            raise WiringError(f"{self._what}: {reason}") from error
