"""ExaBGP's lines, recorded from 5.0.15, and the lines we send."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from bgp import exabgp_api as api
from bgp import exabgp_commands as commands
from bgp.exabgp_api import Answered, Hello, NeighborState, ProtocolError, Text
from bgp.judgement import NEXT_HOP_LINK_LOCAL
from bgp.paths import (
    Advertisement,
    Connected,
    EndOfRib,
    Event,
    Family,
    GracefulRestart,
    Notification,
    Opened,
    Origin,
    RefreshEnd,
    Rejection,
    SessionDown,
    SessionUp,
    SpeakerShutdown,
    Update,
)
from bgp.paths import Path as BgpPath

GOLDEN = Path(__file__).parent.parent / "golden" / "exabgp-5.0.15"
OLD = ip_address("127.0.0.2")
TOR = ip_address("192.0.2.2")
BIRD = ip_address("10.255.1.2")


def golden(name: str) -> list[str]:
    return (GOLDEN / name).read_text().splitlines()


def events(line: str) -> tuple[Event, ...]:
    decoded = api.decode(line.encode())
    assert isinstance(decoded, tuple)
    return decoded


def update_line(
    *,
    announce: object = None,
    withdraw: object = None,
    attribute: object = None,
    asn: tuple[int, int] = (65001, 65000),
) -> str:
    """A line as ExaBGP prints it, with the parts given."""
    update = {"attribute": attribute, "announce": announce, "withdraw": withdraw}
    return json.dumps(
        {
            "exabgp": "5.0.0",
            "type": "update",
            "neighbor": {
                "address": {"local": "192.0.2.1", "peer": "192.0.2.2"},
                "asn": {"local": asn[0], "peer": asn[1]},
                "direction": "receive",
                "message": {"update": {k: v for k, v in update.items() if v is not None}},
            },
        }
    )


GOOD_ATTRIBUTES: dict[str, object] = {
    "origin": "igp",
    "as-path": {"0": {"element": "as-sequence", "value": [65000]}},
}


def one_route(*, nlri: str = "10.9.0.0/26", **attributes: object) -> Update:
    """The Update of one announced route, with attributes added or (None) removed."""
    merged = GOOD_ATTRIBUTES | {k.replace("_", "-"): v for k, v in attributes.items()}
    line = update_line(
        announce={"ipv4 unicast": {"192.0.2.2": [{"nlri": nlri}]}},
        attribute={k: v for k, v in merged.items() if v is not None},
    )
    (event,) = events(line)
    assert isinstance(event, Update)
    return event


def test_recorded_events_decode_to_what_happened() -> None:
    """Each line recorded from ExaBGP 5.0.15 means exactly this."""
    block = ip_network("10.244.1.64/26")
    v6 = ip_network("2001:db8:9::/64")
    colour = ("65001:100", "65535:65283")

    expected: list[tuple[Event, ...]] = [
        (Connected(OLD),),
        (SessionUp(OLD),),
        (SessionDown(OLD, api.SHUTTING_DOWN),),
        (
            SessionDown(
                OLD,
                "closing outgoing connection as we have another incoming on with higher router-id",
            ),
        ),
        # Recorded between two loopback addresses, and no router forwards to one of those.
        (
            Update(
                OLD,
                rejected=tuple(
                    Rejection(ip_network(prefix), "next-hop-loopback")
                    for prefix in ("0.0.0.0/0", "10.244.2.0/26", "10.244.3.0/26")
                ),
            ),
        ),
        (EndOfRib(OLD, Family.IPV4),),
        (Update(ip_address("127.0.0.1"), withdrawn=(block,)),),
        (SpeakerShutdown(),),
        # Two next hops for one prefix (RFC 2545): the global one is the one to use.
        (Update(TOR, (BgpPath(TOR, v6, ip_address("2001:db8::2"), (65000,), 1, Origin.IGP),)),),
        (),
        (RefreshEnd(TOR, Family.IPV6),),
        (Notification(TOR, "6/2 cease: administrative shutdown"),),
        (
            Update(
                BIRD,
                (
                    BgpPath(
                        peer=BIRD,
                        prefix=ip_network("10.9.0.0/26"),
                        next_hop=BIRD,
                        origin=Origin.INCOMPLETE,
                        med=50,
                        local_pref=250,
                        communities=colour,
                        large_communities=("1:2:3",),
                    ),
                ),
            ),
        ),
        (
            Update(
                BIRD,
                (
                    BgpPath(
                        peer=BIRD,
                        prefix=ip_network("10.9.0.0/26"),
                        next_hop=BIRD,
                        as_path=(65010, 65010, 65099),
                        as_path_length=3,
                        origin=Origin.INCOMPLETE,
                        med=50,
                        communities=colour,
                        large_communities=("1:2:3",),
                    ),
                ),
            ),
        ),
    ]
    assert [events(line) for line in golden("events.txt")] == expected


def test_an_open_says_what_may_be_kept_in_a_restart() -> None:
    """Recorded from a BIRD that recovers, one that starts afresh, one without the capability."""
    both = frozenset(Family)
    expected = [
        (Opened(BIRD, GracefulRestart(120, both, preserved=both)),),
        (Opened(BIRD, GracefulRestart(120, both, preserved=frozenset())),),
        (Opened(BIRD, None),),
    ]
    lines = golden("opens.txt")
    assert [events(line) for line in lines] == expected
    # A family that we do not speak is none of ours; the rest of the capability stands.
    foreign = lines[0].replace('"ipv4/unicast": [ "restart" ]', '"ipv4/multicast": [ "restart" ]')
    ipv6 = frozenset({Family.IPV6})
    assert events(foreign) == (Opened(BIRD, GracefulRestart(120, ipv6, preserved=ipv6)),)
    for broken in ('"time": "x"', '"time": null'):
        with pytest.raises(ProtocolError, match="restart time"):
            events(lines[0].replace('"time": 120', broken))


def test_raw_updates_are_bytes_with_their_peer() -> None:
    """What the tuned ExaBGP says instead of JSON."""
    line = b'{"slash32":"updates","peer":"192.0.2.2","ebgp":true,"raw":"AAEC"}'
    assert api.decode(line) == api.RawUpdates(TOR, True, b"\0\1\2")
    with pytest.raises(ProtocolError, match="raw updates"):
        api.decode(line.replace(b"AAEC", b"AAE"))


def test_a_replay_names_whose_routes_are_whole() -> None:
    """A peer that is not named must be asked."""
    assert api.decode_replayed(["whole 192.0.2.2 2001:db8::1"]) == {TOR, ip_address("2001:db8::1")}
    assert api.decode_replayed(["whole"]) == frozenset()
    for text in ("", "lost", "whole nonsense"):
        with pytest.raises(ProtocolError):
            api.decode_replayed([text])


def test_what_is_announced_reads_back() -> None:
    """Adj-RIB-Out lines give the peer, the prefix and the next hop on the wire."""
    assert [
        (TOR, Advertisement(ip_network("10.244.1.0/26"), ip_address("192.0.2.1"))),
        (TOR, Advertisement(ip_network("fd00:1::/122"), ip_address("2001:db8::1"))),
    ] == [api.decode_adj_rib_out(line) for line in golden("adj-rib-out.txt")]


def test_session_states_read_back() -> None:
    """show neighbor json: the state is the state machine's, not the word "up"."""
    expected = NeighborState(
        peer=TOR,
        local_address=ip_address("192.0.2.1"),
        is_established=True,
        is_ebgp=True,
        duration_s=32,
        families=frozenset(Family),
        has_route_refresh=True,
        has_graceful_restart=True,
    )
    assert (expected,) == api.decode_neighbors(golden("neighbors.txt"))
    young = golden("neighbors.txt")[0].replace('"state": "up"', '"state": "down"')
    assert (expected,) == api.decode_neighbors([young])


def test_what_attempts_came_to_reads_back() -> None:
    """Of those peers alone that have a problem; safe for a terminal, and no event."""
    line = (
        '{"marks": ["slash32-0123456789abcdef"], "peers": {'
        '"192.0.2.2": {"established": false, "problem": "no answer"}, '
        '"2001:db8::1": {"established": false, "problem": "bad\\u001b[2J"}, '
        '"192.0.2.3": {"established": true, "problem": ""}}, "listen": []}'
    )
    assert api.decode(line.encode()) == Text(line)
    assert api.decode_attempts([line]) == {
        TOR: "no answer",
        ip_address("2001:db8::1"): "bad?[2J",
    }
    for text in ("[]", '{"peers": []}', '{"peers": {"nonsense": {"problem": "x"}}}'):
        with pytest.raises(ProtocolError):
            api.decode_attempts([text])


def test_the_marks_of_the_loaded_configuration_are_found() -> None:
    """Each neighbour carries the file's mark as its description."""
    assert {"slash32-0123456789abcdef"} == api.decode_configuration_marks(
        golden("configuration.txt")
    )
    assert frozenset() == api.decode_configuration_marks([])


def test_answers_are_told_from_events() -> None:
    """done, error, text, and the JSON of `show` that is no event."""
    assert api.decode(b"done") == Answered(ok=True)
    assert api.decode(b"error") == Answered(ok=False)
    assert api.decode(b"reload in progress") == Text("reload in progress")
    dump = golden("adj-rib-out.txt")[0]
    assert api.decode(dump.encode()) == Text(dump)


def test_the_bridge_introduces_exabgp() -> None:
    """Its greeting names the process by pid and start."""
    line = b'{"slash32": "bridge", "pid": 7, "exabgp_pid": 5, "exabgp_start": 1234}'
    assert api.decode(line) == Hello(bridge_pid=7, exabgp=(5, 1234))
    mode = line[:-1] + b', "mode": "stock: by setting"}'
    assert api.decode(mode) == Hello(bridge_pid=7, exabgp=(5, 1234), mode="stock: by setting")


@pytest.mark.parametrize(
    ("next_hop", "reason"),
    [
        ("no-nexthop", "no-next-hop"),
        ("null", "no-next-hop"),
        (str(ip_address(0)), "next-hop-unspecified"),
        ("127.0.0.1", "next-hop-loopback"),
        ("224.0.0.5", "next-hop-multicast"),
        ("255.255.255.255", "next-hop-reserved"),
        ("240.0.0.1", "next-hop-reserved"),
        ("0.1.2.3", "next-hop-this-network"),
        ("169.254.1.1", NEXT_HOP_LINK_LOCAL),
        ("fe80::1", NEXT_HOP_LINK_LOCAL),
        ("fe80::1%eth0", "next-hop-malformed"),
        ("nonsense", "next-hop-malformed"),
    ],
)
def test_an_impossible_next_hop_costs_that_route(next_hop: str, reason: str) -> None:
    """The route is rejected by reason, and the next one is not."""
    line = update_line(
        announce={
            "ipv4 unicast": {
                next_hop: [{"nlri": "10.9.0.0/26"}],
                "192.0.2.2": [{"nlri": "10.9.1.0/26"}],
            }
        },
        attribute=GOOD_ATTRIBUTES,
    )
    (event,) = events(line)
    assert isinstance(event, Update)
    assert event.rejected == (Rejection(ip_network("10.9.0.0/26"), reason),)
    assert [path.prefix for path in event.announced] == [ip_network("10.9.1.0/26")]


def test_an_ipv6_route_with_only_a_link_local_next_hop_is_rejected() -> None:
    """Which link it is local to is not in the message."""
    line = update_line(
        announce={"ipv6 unicast": {"fe80::1": [{"nlri": "2001:db8:9::/64"}]}},
        attribute=GOOD_ATTRIBUTES,
    )
    assert events(line) == (
        Update(TOR, rejected=(Rejection(ip_network("2001:db8:9::/64"), NEXT_HOP_LINK_LOCAL),)),
    )


def test_ipv4_may_go_over_ipv6_and_not_the_reverse() -> None:
    """RFC 8950 has one direction."""
    line = update_line(
        announce={
            "ipv4 unicast": {"2001:db8::1": [{"nlri": "10.9.0.0/26"}]},
            "ipv6 unicast": {"192.0.2.2": [{"nlri": "2001:db8:9::/64"}]},
        },
        attribute=GOOD_ATTRIBUTES,
    )
    (event,) = events(line)
    assert isinstance(event, Update)
    assert [(str(p.prefix), str(p.next_hop)) for p in event.announced] == [
        ("10.9.0.0/26", "2001:db8::1")
    ]
    assert event.rejected == (Rejection(ip_network("2001:db8:9::/64"), "next-hop-family"),)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"origin": None}, "origin-missing"),
        ({"origin": "guess"}, "origin-malformed"),
        ({"attribute-0x63-0x40": "0x78"}, "well-known-unknown"),
        ({"as_path": None}, "as-path-missing"),
        ({"as_path": {}}, "as-path-missing"),
        ({"as_path": [65000]}, "as-path-malformed"),
        ({"as_path": {"0": {"element": "as-loop", "value": [1]}}}, "as-path-malformed"),
        ({"as_path": {"x": {"element": "as-set", "value": [1]}}}, "as-path-malformed"),
        ({"as_path": {"0": {"element": "as-set", "value": [-1]}}}, "as-path-malformed"),
        ({"as_path": {"0": {"element": "as-set", "value": [True]}}}, "as-path-malformed"),
        ({"med": "50"}, "med-malformed"),
        ({"med": 2**32}, "med-malformed"),
        ({"local_preference": 1.5}, "local-preference-malformed"),
        ({"community": "65001:100"}, "community-malformed"),
        ({"community": [[1, 2, 3]]}, "community-malformed"),
        ({"community": [[1, 65536]]}, "community-malformed"),
        ({"community": ["1:x"]}, "community-malformed"),
    ],
)
def test_a_broken_attribute_rejects_the_routes_that_carry_it(
    attributes: dict[str, object], reason: str
) -> None:
    """Nothing is guessed, and nothing is raised."""
    event = one_route(**attributes)  # type: ignore[arg-type]
    assert event.announced == ()
    assert event.rejected == (Rejection(ip_network("10.9.0.0/26"), reason),)


def test_an_empty_as_path_is_ordinary_within_one_as() -> None:
    """ExaBGP leaves it out; only another AS must have put itself in."""
    line = update_line(
        announce={"ipv4 unicast": {"192.0.2.2": [{"nlri": "10.9.0.0/26"}]}},
        attribute={"origin": "igp"},
        asn=(65001, 65001),
    )
    (event,) = events(line)
    assert isinstance(event, Update)
    assert event.announced[0].as_path == ()


def test_an_as_set_counts_once_and_is_seen_whole() -> None:
    """Length for the decision, members for loop detection (RFC 4271 9.1.2.2 a)."""
    event = one_route(
        as_path={
            "0": {"element": "as-sequence", "value": [65000, 65002]},
            "1": {"element": "as-set", "value": [7, 8, 9]},
        }
    )
    assert event.announced[0].as_path == (65000, 65002, 7, 8, 9)
    assert event.announced[0].as_path_length == 3


@pytest.mark.parametrize(
    ("nlri", "rejection"),
    [
        ("10.9.0.1/26", Rejection(ip_network("10.9.0.0/26"), "host-bits")),
        ("10.9.0.0/33", Rejection(None, "prefix-malformed")),
        ("2001:db8::/64", Rejection(None, "prefix-family")),
        ("", Rejection(None, "prefix-malformed")),
    ],
)
def test_an_impossible_prefix_is_rejected(nlri: str, rejection: Rejection) -> None:
    """A prefix with host bits is named by its network, so that what was there before goes."""
    assert one_route(nlri=nlri).rejected == (rejection,)


def test_a_family_we_do_not_speak_is_rejected_and_the_rest_stands() -> None:
    """Announced or withdrawn."""
    line = update_line(
        announce={
            "ipv4 flow": {"no-nexthop": [{"string": "flow"}]},
            "ipv4 unicast": {"192.0.2.2": [{"nlri": "10.9.0.0/26"}]},
        },
        withdraw={"l2vpn evpn": [{}]},
        attribute=GOOD_ATTRIBUTES,
    )
    (event,) = events(line)
    assert isinstance(event, Update)
    assert event.rejected == (Rejection(None, "unknown-family"),) * 2
    assert len(event.announced) == 1


def test_event_types_that_we_do_not_know_are_passed_over() -> None:
    """A newer ExaBGP may say more; what we sent ourselves is no news either."""
    assert events('{"exabgp": "5.1", "type": "weather", "sun": true}') == ()
    sent = update_line(withdraw={}).replace('"receive"', '"send"')
    assert events(sent) == ()


@pytest.mark.parametrize(
    ("data", "end"), [('"0x0000FC59"', ": AS 64601"), ('"0xZ"', "configured one"), ("7", "one")]
)
def test_a_notifications_data_are_read_from_their_octets(data: str, end: str) -> None:
    """And what is no octets is left out: it is only for people."""
    line = golden("events.txt")[11].replace('"code": 6', '"code": 2').replace('"0x"', data)
    (found,) = events(line.replace('"message": ""', '"message": "\\u0000\\u0000\\ufffdY"'))
    assert isinstance(found, Notification)
    assert found.text.startswith("2/2 OPEN refused: the peer's AS number")
    assert found.text.endswith(end)


def test_a_peers_free_text_cannot_drive_a_terminal() -> None:
    """Shutdown messages (RFC 9003) are the peer's own words."""
    line = golden("events.txt")[2].replace("shutting down", "\\u001b[2J" + "x" * 999)
    (event,) = events(line)
    assert isinstance(event, SessionDown)
    assert "\x1b" not in event.reason
    assert len(event.reason) == api.MAX_REASON_CHARACTERS


@pytest.mark.parametrize(
    "line",
    [
        b'{"exabgp": ',
        b'{"exabgp": "5", "type": "state"}',
        b'{"exabgp": "5", "type": "state", "neighbor": []}',
        b'{"exabgp": "5", "type": "state", "neighbor": {"address": {"peer": "x"}}}',
        b'{"exabgp": "5", "type": "state", "neighbor": {"address": {"peer": "fe80::1%x"}}}',
        b'{"exabgp":"5","type":"state","neighbor":{"address":{"peer":"::1"},"state":"asleep"}}',
        b'{"slash32": "bridge", "pid": "7"}',
        b"\xff\xfe",
        b'{"exabgp": ' + b"[" * 100_000,
        b" " * (api.MAX_LINE_BYTES + 1),
    ],
)
def test_what_is_not_the_language_is_one_error(line: bytes) -> None:
    """Each is a ProtocolError with a sentence, even a million brackets."""
    with pytest.raises(ProtocolError) as caught:
        api.decode(line)
    assert len(str(caught.value)) < 300


def test_commands_are_exactly_these_lines() -> None:
    """What ExaBGP is told, word for word."""
    block = ip_network("10.244.1.64/26")
    block6 = ip_network("fd00:10:1::40/122")
    hop6 = ip_address("2001:db8::1")
    expected = [
        "neighbor 192.0.2.2 announce route 10.244.1.64/26 next-hop self",
        "neighbor 192.0.2.2 announce route fd00:10:1::40/122 next-hop 2001:db8::1",
        "neighbor 192.0.2.2 withdraw route 10.244.1.64/26",
        "neighbor 192.0.2.2 announce eor ipv6 unicast",
        "neighbor 192.0.2.2 , neighbor 192.0.2.3 announce eor ipv4 unicast",
        "neighbor 192.0.2.2 announce route-refresh ipv6 unicast",
    ]
    assert expected == [
        commands.announce(TOR, Advertisement(block)),
        commands.announce(TOR, Advertisement(block6, hop6)),
        commands.withdraw(TOR, block),
        commands.end_of_rib([TOR], Family.IPV6),
        commands.end_of_rib([TOR, ip_address("192.0.2.3")], Family.IPV4),
        commands.route_refresh(TOR, Family.IPV6),
    ]


def test_an_announcement_with_everything_is_said_in_a_fixed_order() -> None:
    """Communities ascend, whatever order they came in; our ASN stands once more than asked."""
    everything = Advertisement(
        ip_network("10.244.1.64/26"),
        communities=("65001:200", "65001:30", "65001:200"),
        large_communities=("65001:10:1", "65001:9:1"),
        med=0,
        local_pref=200,
        prepend=2,
    )
    assert commands.route(everything, prepend_asn=4200000001) == (
        "10.244.1.64/26 next-hop self as-path [ 4200000001 4200000001 4200000001 ] med 0 "
        "local-preference 200 community [ 65001:30 65001:200 ] "
        "large-community [ 65001:9:1 65001:10:1 ]"
    )
    # Within an AS nobody touches AS_PATH.
    assert "as-path" not in commands.route(everything)


@pytest.mark.parametrize(
    "fields",
    [
        {"communities": ("65001:100 ] med 1",)},
        {"communities": ("65536:1",)},
        {"communities": ("1:2\n",)},
        {"communities": ("no-export",)},
        {"large_communities": ("1:2",)},
        {"large_communities": ("4294967296:1:1",)},
        {"med": -1},
        {"med": "1"},
        {"local_pref": 2**32},
        {"prepend": 33},
    ],
)
def test_a_value_that_is_no_number_never_becomes_a_command(fields: dict[str, Any]) -> None:
    """It is refused by name; ExaBGP sees nothing of it."""
    with pytest.raises(ProtocolError):
        commands.announce(TOR, Advertisement(ip_network("10.0.0.0/26"), **fields))


def test_an_ipv4_next_hop_for_an_ipv6_prefix_is_refused() -> None:
    """ExaBGP would send it, and no router could use it; the reverse is RFC 8950."""
    with pytest.raises(ProtocolError, match="another family"):
        commands.announce(TOR, Advertisement(ip_network("fd00::/64"), ip_address("10.0.0.1")))


def test_free_text_behind_an_address_never_becomes_a_command() -> None:
    """Python takes anything for an IPv6 scope, a newline and another command included."""
    hostile = ip_address("fe80::1%x announce eor\nshutdown")
    with pytest.raises(ProtocolError, match="scope"):
        commands.withdraw(hostile, ip_network("10.0.0.0/26"))
