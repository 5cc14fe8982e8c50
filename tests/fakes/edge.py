"""Fakes of the pod's edge and of the connection table: state with failure switches."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni.attachment import Address
from cni.edge import OWED, Listing, Table, differences, owed_listing
from tests.fakes.kernel import Switches


class FakeEdge(Switches):
    """NftEdge without a kernel; passes the same contract (tests/contract/test_edge_contract.py).

    ``fail_next("ensure", error)`` makes it fail. ``held`` is what the kernel would list.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[Table, Listing] = {}
        self.ensured = 0
        self.is_closed = False

    def ensure(self) -> list[str]:
        """Puts everything in place; what was wrong."""
        self.raise_pending("ensure")
        self.ensured += 1
        wrong = [
            each
            for table in OWED
            for each in differences(table, owed_listing(table), self.held.get(table))
        ]
        self.held = {table: owed_listing(table) for table in OWED}
        return wrong

    def close(self) -> None:
        """The rules stay."""
        self.is_closed = True

    # -- what somebody else does ---------------------------------------------------------------

    def flush(self) -> None:
        """As ``nft flush ruleset``."""
        self.held = {}

    def delete_rule(self, name: str) -> None:
        """As ``nft delete rule``."""
        for table, found in self.held.items():
            rules = {
                chain: tuple(
                    rule
                    for rule, each in zip(there, found.names[chain], strict=True)
                    if each != name
                )
                for chain, there in found.rules.items()
            }
            names = {
                chain: tuple(each for each in there if each != name)
                for chain, there in found.names.items()
            }
            self.held[table] = replace(found, rules=rules, names=names)


@dataclass(frozen=True)
class Flow:
    """One connection: its ends as the opener named them, and as the answers come."""

    source: Address
    destination: Address
    answers_from: Address


class FakeConntrack(Switches):
    """KernelConntrack without a kernel. ``fail_next("flush", error)`` makes it fail."""

    def __init__(self) -> None:
        super().__init__()
        self.flows: list[Flow] = []
        self.flushed: list[Address] = []
        self.is_closed = False

    def is_empty(self) -> bool:
        """Never sure, so that every release is seen to flush."""
        return False

    def flush(self, address: Address) -> int:
        """Forgets every flow that names ``address``; how many there were."""
        self.raise_pending("flush")
        self.flushed.append(address)
        kept = [
            flow
            for flow in self.flows
            if address not in (flow.source, flow.destination, flow.answers_from)
        ]
        gone = len(self.flows) - len(kept)
        self.flows = kept
        return gone

    def close(self) -> None:
        """Nothing to free."""
        self.is_closed = True
