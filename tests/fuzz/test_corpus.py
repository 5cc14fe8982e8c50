"""Every input that was worth keeping, again; and the controls that show the targets can fail."""

from __future__ import annotations

import logging
from ipaddress import ip_address

import pytest
import structlog

from cni import spec
from routing import telemetry
from routing.datastore import resources
from tests.fuzz import (
    bgp_targets,
    cluster_targets,
    cni_targets,
    corpus,
    injection_target,
    launcher_target,
)
from tests.fuzz.cni_targets import check_answer
from tests.fuzz.draw import Draw
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Broken

CORPUS_MAX_BYTES = 400 * 1024
CASES_MIN = 250


@pytest.fixture(autouse=True)
def logging_as_before():
    """A target turns logging off, for speed."""
    yield
    logging.disable(logging.NOTSET)
    structlog.reset_defaults()


@pytest.fixture(autouse=True, scope="module")
def nothing_left():
    """Sockets, loops and files of the targets go with the last test."""
    yield
    cni_targets.forget()
    bgp_targets.forget()
    cluster_targets.forget()
    launcher_target.forget()


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_is_handled_now(name: str):
    """Seeds and corpus: no exception, and enough of them get past the door."""
    target = TARGETS[name]
    inputs = [*target.seeds(), *corpus.read(name)]
    accepted = sum(target.run(data) for data in inputs)
    assert accepted >= max(1, target.floor * len(inputs))


def test_the_corpus_is_there_and_stays_small():
    """A replay of nothing proves nothing; and a repository is no place for a fuzzer's disk."""
    files = list(corpus.DIRECTORY.glob("*.txt"))
    assert {file.stem for file in files} <= set(TARGETS)
    assert sum(len(corpus.read(file.stem)) for file in files) >= CASES_MIN
    assert sum(file.stat().st_size for file in files) <= CORPUS_MAX_BYTES


def test_values_are_drawn_from_any_bytes_and_from_none():
    """So that a fuzzer may cut and add anywhere."""
    document = {"a": ["b", {"c": 1}], "d": "e"}
    assert Draw(b"").damaged(document) == document
    for size in range(200):
        draw = Draw(bytes((size * 37 + at * 11) % 256 for at in range(size)))
        assert isinstance(draw.damaged(document), dict)
        draw.value()
        draw.text()
    assert document == {"a": ["b", {"c": 1}], "d": "e"}


# -- each kind of target fails when what it guards is gone ---------------------------------------


def replay(name: str) -> None:
    for data in [*TARGETS[name].seeds(), *corpus.read(name)]:
        TARGETS[name].run(data)


def test_an_error_of_the_parser_is_found(monkeypatch):
    """A bug in reading a request comes out as code 100, and that is a finding."""
    monkeypatch.setattr(spec, "_KUBERNETES_NAME", None)
    with pytest.raises(Broken, match="the agent failed"):
        replay("cni-request")
    with pytest.raises(Broken, match="the agent failed"):
        check_answer(b'\1{"cniVersion": "1.1.0", "code": 100, "msg": "m", "details": ""}')


def test_a_log_that_is_written_as_it_comes_is_found(monkeypatch):
    """What the two forms do to a line break is what keeps a name from writing lines."""
    monkeypatch.setattr(telemetry, "printable", lambda text: text)
    with pytest.raises(Broken, match="broke out of its line"):
        replay("injection")


def test_markup_that_is_not_escaped_is_found(monkeypatch):
    """Of the pages that operators open."""
    from routing.picture import drawing

    monkeypatch.setattr(drawing, "markup", lambda text: text)
    with pytest.raises(Broken, match=r"markup|not XML"):
        replay("injection")


def test_a_line_of_another_hand_in_the_configuration_is_found(monkeypatch):
    """exabgp.conf names a program that runs as root."""
    from bgp import exabgp_conf

    monkeypatch.setattr(
        exabgp_conf, "_ttl", lambda _peer, _remote: "  outgoing-ttl 1; run /bin/sh;\n"
    )
    with pytest.raises(Broken, match="not ours"):
        injection_target.injection(b"")


def test_a_path_that_cannot_be_used_is_found(monkeypatch):
    """Past every judgement of next hops."""
    from bgp import judgement

    monkeypatch.setattr(judgement, "_next_hop", lambda _value, _prefix: ip_address("127.0.0.1"))
    with pytest.raises(Broken, match="let through"):
        replay("exabgp-line")


def test_a_document_that_does_not_read_back_is_found(monkeypatch):
    """What is stored is what was written."""
    real = resources.to_document
    monkeypatch.setattr(
        "tests.fuzz.resource_targets.to_document",
        lambda each, **rest: real(each, **rest) | {"metadata": {"name": "x"}},
    )
    with pytest.raises(Broken, match="does not read back"):
        replay("resource-document")
