"""The pod's edge in the kernel: puts our nftables tables in place through ``nft``, reads them back.

``nft`` is run at the start and when something changed, never for a pod. Whether anything changed
at all is one netlink message: the kernel numbers every nftables transaction of a namespace, whoever
made it (NFT_MSG_GETGEN). So a check that finds nothing costs 0.03 ms and can run every second.

One transaction deletes and remakes our tables: no packet sees a moment without rules, and other
tables are not touched.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from cni.edge import (
    OWED,
    EdgeError,
    Listing,
    ListingError,
    Table,
    apply_script,
    differences,
    is_same_shape,
    listing,
    owed_listing,
    remove_script,
)
from cni.netlink import MalformedMessage, attributes
from cni.netlink_socket import NetlinkSocket
from cni.netns import inside
from cni.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    NFNL_SUBSYS_NFTABLES,
    big_u32,
    message_type,
    nfgenmsg,
)

NFT_DEADLINE_S = 10.0
"""nft takes 3 ms; a host on which it takes this long is in trouble that we report."""

_NFT_MSG_GETGEN = 16
_NFTA_GEN_ID = 1
_ABSENT = "No such file or directory"


class NftMissing(EdgeError):
    """There is no nft program."""


class NftFailed(EdgeError):
    """nft ended badly, did not end, or said something that is no listing."""


class EdgeNotHeld(EdgeError):
    """nft applied our tables, and the kernel holds something else."""


class NftEdge:
    """The Edge of one network namespace. Thread-safe.

    Args:
        netns_fd: the host's namespace; None is that of whatever thread calls. Not kept.
        program: nft, by name on PATH or by path.
    """

    def __init__(self, *, netns_fd: int | None = None, program: str = "nft") -> None:
        self._program = program
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._netns_fd: int | None = None
        if netns_fd is not None:
            self._netns_fd = os.dup(netns_fd)
            self._stack.callback(os.close, self._netns_fd)
        self._socket: NetlinkSocket | None = None
        self._verified_generation: int | None = None
        self._as_applied: Mapping[Table, Listing] = {}

    def close(self) -> None:
        """Closes the socket. The rules stay. Closing twice is harmless."""
        with self._lock:
            self._stack.close()

    def ensure(self) -> list[str]:
        """Returns once our tables are as they must be; what was wrong before, [] when nothing.

        Raises:
            NftMissing, NftFailed, EdgeNotHeld: the tables are not in place, or nobody can tell.
            EdgeError: this kernel has no nftables.
        """
        with self._lock:
            generation = self._generation()
            if generation == self._verified_generation:
                return []
            found = self._read()
            wrong = [each for table in OWED for each in self._differences(table, found[table])]
            if wrong:
                self._verified_generation = None
                self._nft("-f", "-", stdin=apply_script())
                generation = self._generation()
                self._as_applied = self._read_back()
            self._verified_generation = generation
            return wrong

    def is_there(self) -> bool:
        """Whether there is any table of ours.

        Raises:
            NftMissing, NftFailed: nobody can tell.
        """
        with self._lock:
            return any(self._read().values())

    def remove(self) -> bool:
        """Takes our tables away, for an uninstall; False when there were none.

        Raises:
            NftMissing, NftFailed: they could not be taken away.
        """
        with self._lock:
            found = self._read()
            self._verified_generation = None
            if not any(found.values()):
                return False
            self._nft("-f", "-", stdin=remove_script())
            return True

    # -- steps -------------------------------------------------------------------------------

    def _differences(self, table: Table, found: Listing | None) -> list[str]:
        if found is not None and found == self._as_applied.get(table):
            return []
        return differences(table, owed_listing(table), found)

    def _read_back(self) -> dict[Table, Listing]:
        held: dict[Table, Listing] = {}
        for table, found in self._read().items():
            if found is None or not is_same_shape(table, found):
                wrong = "; ".join(differences(table, owed_listing(table), found))
                raise EdgeNotHeld(f"nft applied our rules, but the kernel holds others: {wrong}")
            held[table] = found
        return held

    def _read(self) -> dict[Table, Listing | None]:
        return {table: self._read_table(table) for table in OWED}

    def _read_table(self, table: Table) -> Listing | None:
        try:
            return listing(self._nft("-j", "list", "table", table.family, table.name))
        except ListingError as error:
            raise NftFailed(f"{self._program} -j list table {table}: {error}") from error
        except NftFailed as error:
            # nft has one exit status for everything that goes wrong.
            if _ABSENT in str(error):
                return None
            raise

    def _nft(self, *arguments: str, stdin: str = "") -> str:
        """What nft printed, run in our namespace (a child inherits its thread's)."""
        command = (self._program, *arguments)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        try:
            with inside(self._netns_fd):
                done = subprocess.run(
                    command,
                    input=stdin,
                    capture_output=True,
                    text=True,
                    timeout=NFT_DEADLINE_S,
                    env=environment,
                    check=False,
                )
        except FileNotFoundError:
            raise NftMissing(
                f"there is no program {self._program}: install nftables, without it pods could "
                "send from addresses that are not theirs"
            ) from None
        except subprocess.TimeoutExpired:
            raise NftFailed(f"{_shown(command)} did not end within {NFT_DEADLINE_S} s") from None
        except (OSError, UnicodeDecodeError) as error:
            raise NftFailed(f"{_shown(command)}: {error}") from error
        if done.returncode != 0:
            said = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
            raise NftFailed(f"{_shown(command)}: {said}")
        return done.stdout

    def _generation(self) -> int:
        """The number of the namespace's latest nftables transaction, by whoever."""
        kind = message_type(NFNL_SUBSYS_NFTABLES, _NFT_MSG_GETGEN)
        try:
            if self._socket is None:
                self._socket = self._stack.enter_context(
                    NetlinkSocket(
                        netns_fd=self._netns_fd,
                        receive_buffer_bytes=1 << 16,
                        protocol=NETLINK_NETFILTER,
                    )
                )
            body = self._socket.get(kind, nfgenmsg(socket.AF_UNSPEC))
            return big_u32(attributes(body, NFGENMSG_BYTES).get(_NFTA_GEN_ID, b""))
        except (OSError, MalformedMessage) as error:
            reason = getattr(error, "strerror", None) or error
            raise EdgeError(f"nftables cannot be asked for its generation: {reason}") from error


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)
