"""exabgp.conf on disk: never seen half written, never readable by anybody else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from bgp.advertising import AdvertisementKey
from bgp.exabgp_conf import Conf, announced_in, render
from bgp.paths import Address, Advertisement, Peer


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


class ConfFile:
    """The file of one ExaBGP: its sessions, and the routes that we announce.

    The routes outlive us there. An ExaBGP that starts while there is no agent announces them, and
    the peers, which hold them as stale (RFC 4724 section 4.2), lose none. A new agent takes them
    over and keeps them in the file until it has heard from ExaBGP itself what is announced.
    """

    def __init__(self, path: str, *, python: str, bridge: str, socket_path: str) -> None:
        """Reads and writes nothing yet; the arguments are those of exabgp_conf.render."""
        self._path = path
        self._python, self._bridge, self._socket_path = python, bridge, socket_path
        self._peers: dict[Address, Peer] | None = None
        self._announced: dict[AdvertisementKey, Advertisement] | None = None
        self._conf: Conf | None = None

    @property
    def mark(self) -> str | None:
        """What ExaBGP shows when it has loaded the sessions; None before ``set_peers``."""
        return None if self._conf is None else self._conf.mark

    @property
    def is_missing(self) -> bool:
        """Nobody can start ExaBGP: the file is not there, or is none of ours."""
        return read_conf(self._path) is None

    def set_peers(self, peers: Mapping[Address, Peer]) -> None:
        """Writes these sessions and no others; routes of the others are forgotten.

        Raises:
            ConfError: a value must not be written; nothing changes.
            OSError: the file cannot be written; nothing changes.
        """
        before = read_conf(self._path)
        announced = announced_in(before or "") if self._announced is None else self._announced
        conf = self._render(peers, announced)
        if before != conf.text:
            write_conf(self._path, conf.text)
        self._peers, self._conf = dict(peers), conf
        self._announced = {key: value for key, value in announced.items() if key[0] in peers}

    def set_announced(self, announced: Mapping[AdvertisementKey, Advertisement]) -> None:
        """Writes these routes and no others; before ``set_peers`` they wait for it.

        Raises:
            OSError: the file cannot be written; it has the routes of before.
        """
        if announced == self._announced:
            return
        if self._peers is not None:
            conf = self._render(self._peers, announced)
            write_conf(self._path, conf.text)
            self._conf = conf
        self._announced = dict(announced)

    def _render(
        self,
        peers: Mapping[Address, Peer],
        announced: Mapping[AdvertisementKey, Advertisement],
    ) -> Conf:
        return render(
            peers,
            python=self._python,
            bridge=self._bridge,
            socket_path=self._socket_path,
            announced=announced,
        )
