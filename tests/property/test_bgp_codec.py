"""Whatever the bytes, the codec answers with values or with its one error."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bgp import exabgp_api as api
from bgp.exabgp_api import Answered, Hello, ProtocolError, RawUpdates, Text
from bgp.paths import Family, Update
from bgp.paths import Path as BgpPath
from tests.property import hunted

GOLDEN = Path(__file__).parent.parent / "golden" / "exabgp-5.0.15"
LINES = [
    line.encode()
    for name in ("events.txt", "adj-rib-out.txt", "neighbors.txt")
    for line in (GOLDEN / name).read_text().splitlines()
]
EVENTS = [json.loads(line) for line in (GOLDEN / "events.txt").read_text().splitlines()]
CASES = 300
FLOOR = 250
BULK_CASES = 20_000
PROFILE = hunted.cases(CASES)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=4,
)


def check(line: bytes) -> None:
    """Every decoder on one line: values, or ProtocolError, and nothing else ever."""
    decoders: list[Callable[[], object]] = [
        lambda: api.decode_neighbors([text]),
        lambda: api.decode_replayed([text]),
        lambda: api.decode_adj_rib_out(text),
        lambda: api.decode_configuration_marks([text]),
    ]
    text = line.decode("utf-8", "replace")
    for decode in decoders:
        with contextlib.suppress(ProtocolError):
            decode()
    try:
        decoded = api.decode(line)
    except ProtocolError:
        return
    if not isinstance(decoded, tuple):
        assert isinstance(decoded, Answered | Hello | RawUpdates | Text)
        return
    for event in decoded:
        if isinstance(event, Update):
            for path in event.announced:
                check_path(path)
            assert all(rejection.reason for rejection in event.rejected)


def check_path(path: BgpPath) -> None:
    """A path that is let through can be used as it stands."""
    assert path.next_hop.version == path.prefix.version
    assert not path.next_hop.is_loopback
    assert not path.next_hop.is_multicast
    assert not path.next_hop.is_unspecified
    assert not path.next_hop.is_link_local
    assert Family.of(path.prefix) in Family
    assert 0 <= path.as_path_length <= len(path.as_path)
    assert all(type(number) is int and 0 <= number < 2**32 for number in path.as_path)
    for value in (path.med, path.local_pref):
        assert value is None or 0 <= value < 2**32


def test_arbitrary_bytes_raise_only_protocol_error() -> None:
    """Random bytes, with and without the markers of an event."""
    cases = 0

    @PROFILE
    @given(st.binary(max_size=200), st.sampled_from([b"", b'{"exabgp":', b'{"slash32":', b'{"']))
    def run(data: bytes, start: bytes) -> None:
        nonlocal cases
        cases += 1
        check(start + data)

    run()
    assert cases >= FLOOR


def test_mutated_real_lines_raise_only_protocol_error() -> None:
    """Bytes of recorded lines cut out, doubled, replaced."""
    cases = 0

    @PROFILE
    @given(
        st.sampled_from(LINES),
        st.lists(
            st.tuples(st.integers(0, 2000), st.integers(0, 6), st.binary(max_size=6)),
            min_size=1,
            max_size=4,
        ),
    )
    def run(line: bytes, edits: list[tuple[int, int, bytes]]) -> None:
        nonlocal cases
        cases += 1
        for position, length, replacement in edits:
            at = position % (len(line) + 1)
            line = line[:at] + replacement + line[at + length :]
        check(line)

    run()
    assert cases >= FLOOR


def test_a_great_many_mutated_real_lines_raise_only_protocol_error() -> None:
    """The same without shrinking, for numbers that Hypothesis would take minutes for."""
    chance = random.Random(4271)
    raised = 0
    for _ in range(BULK_CASES):
        line = bytearray(chance.choice(LINES))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(line))
            line[at : at + chance.randint(0, 4)] = chance.choice(
                [b"", b"0", b'"', b"{", b"]", b"-1", b"null", b"1e999", chance.randbytes(2)]
            )
        try:
            decoded = api.decode(bytes(line))
        except ProtocolError:
            raised += 1
            continue
        for event in decoded if isinstance(decoded, tuple) else ():
            for path in event.announced if isinstance(event, Update) else ():
                check_path(path)
    assert BULK_CASES // 10 < raised < BULK_CASES


def test_real_events_with_any_member_replaced_raise_only_protocol_error() -> None:
    """The syntax stays right, a value somewhere inside is anything JSON can say."""
    cases = 0
    changed = 0

    def replace_member(node: Any, path: list[int], value: object) -> bool:
        for step in path:
            if isinstance(node, dict) and node:
                key = sorted(node)[step % len(node)]
            elif isinstance(node, list) and node:
                key = step % len(node)
            else:
                return False
            if not isinstance(node[key], dict | list) or step % 5 == 0:
                node[key] = value
                return True
            node = node[key]
        return False

    @PROFILE
    @given(
        st.integers(0, len(EVENTS) - 1),
        st.lists(st.integers(0, 30), min_size=1, max_size=9),
        json_values,
    )
    def run(index: int, path: list[int], value: object) -> None:
        nonlocal cases, changed
        cases += 1
        event = json.loads(json.dumps(EVENTS[index]))
        changed += replace_member(event, path, value)
        check(json.dumps(event).encode())

    run()
    assert cases >= FLOOR
    assert changed >= FLOOR // 2


def test_real_lines_unchanged_are_all_understood() -> None:
    """So that the tests above mutate something that has a meaning."""
    for event in EVENTS:
        assert isinstance(api.decode(json.dumps(event).encode()), tuple)
