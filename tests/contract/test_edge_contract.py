"""One suite for the fake edge and for nftables in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from cni.edge import OWED, Edge, Table
from cni.edge_nft import NftEdge
from tests.fakes.edge import FakeEdge
from tests.fakes.netns import Namespace, fabric
from tests.fakes.podnode import delete_rule

RULES = [rule.name for table in OWED for chain in table.chains for rule in chain.rules]


class World(Protocol):
    """An edge, and somebody who changes things behind its back."""

    edge: Edge

    def flush(self) -> None:
        """Everything is gone."""

    def delete_rule(self, name: str) -> None:
        """One rule is gone."""

    def successor(self) -> Edge:
        """The next agent's edge, over the same state."""


class FakeWorld:
    """The fake is its own world."""

    def __init__(self) -> None:
        self._fake = FakeEdge()
        self.edge: Edge = self._fake

    def flush(self) -> None:
        """The fake's state is emptied."""
        self._fake.flush()

    def delete_rule(self, name: str) -> None:
        """The fake's state lacks a rule."""
        self._fake.delete_rule(name)

    def successor(self) -> Edge:
        """Another fake of the same state."""
        made = FakeEdge()
        made.held = dict(self._fake.held)
        return made


class KernelWorld:
    """A namespace, and nft."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.edge: Edge = NftEdge(netns_fd=namespace.fd)

    def flush(self) -> None:
        """As a careless administrator does."""
        self.namespace.run("nft", "flush", "ruleset")

    def delete_rule(self, name: str) -> None:
        """By its handle."""
        delete_rule(self.namespace, name)

    def successor(self) -> Edge:
        """Another driver, which remembers nothing."""
        return NftEdge(netns_fd=self.namespace.fd)


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.netns)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Nothing is in place yet."""
    if request.param == "fake":
        yield FakeWorld()
        return
    with fabric() as made:
        kernel = KernelWorld(made.namespace("edge"))
        yield kernel
        kernel.edge.close()


def missing(table: Table) -> str:
    """The sentence for a table that is not there."""
    return f"nftables table {table} was missing"


def test_a_first_ensure_makes_both_tables_and_a_second_finds_nothing(world: World) -> None:
    """Level-triggered: asking again is free."""
    assert world.edge.ensure() == [missing(table) for table in OWED]
    assert world.edge.ensure() == []


def test_what_somebody_flushed_is_put_back(world: World) -> None:
    """Both tables are named."""
    world.edge.ensure()
    world.flush()
    assert world.edge.ensure() == [missing(table) for table in OWED]
    assert world.edge.ensure() == []


@pytest.mark.parametrize("name", RULES)
def test_a_rule_somebody_deleted_is_named_and_put_back(world: World, name: str) -> None:
    """Each one of them."""
    world.edge.ensure()
    world.delete_rule(name)
    (mended,) = world.edge.ensure()
    assert mended.startswith("chain ")
    assert mended.endswith(f"lacked its rule {name}")
    assert world.edge.ensure() == []


def test_closing_leaves_the_rules(world: World) -> None:
    """An agent that stops does not open the door; closing twice is harmless."""
    world.edge.ensure()
    world.edge.close()
    world.edge.close()
    successor = world.successor()
    assert successor.ensure() == []
    successor.close()
