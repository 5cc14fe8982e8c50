"""routing.readiness: what CNI STATUS answers, for every cause and every combination."""

import itertools
from ipaddress import ip_address

import pytest

from bgp.paths import PeerStatus, SessionState
from cni.errors import Code
from routing.readiness import PEERS_TOLD_MAX, SETTLING_S, Seen, probe, readiness
from routing.topology import PeerName

TOR1, TOR2 = ip_address("172.30.0.0"), ip_address("172.30.0.2")
PEERS = (
    PeerName("tor1", TOR1),
    PeerName("tor2", TOR2),
)
UP = SessionState.ESTABLISHED


def sessions(first=SessionState.IDLE, second=SessionState.IDLE, *, reason="hold timer expired"):
    """What is known of the two sessions."""
    return {
        address: PeerStatus(address, state, last_reason="" if state is UP else reason)
        for address, state in ((TOR1, first), (TOR2, second))
    }


@pytest.mark.parametrize(
    "seen",
    [
        Seen(),
        Seen(is_speaker_connected=False),
        Seen(peers=PEERS, sessions=sessions(UP, UP)),
        Seen(peers=PEERS, sessions=sessions(second=UP)),
        Seen(peers=PEERS, sessions=sessions(UP), has_learned_routes=True),
        Seen(peers=PEERS, sessions=sessions(), has_learned_routes=True),
        Seen(peers=PEERS, is_speaker_connected=False, has_learned_routes=True),
    ],
    ids=[
        "no peers, nothing wrong",
        "no peers, so no speaker is needed",
        "all sessions up",
        "one of two sessions up, nothing learned from it",
        "one of two sessions up",
        "no session up yet, routes kept over a restart",
        "the speaker is away, its routes are kept",
    ],
)
def test_a_node_whose_pods_are_reachable_is_ready(seen):
    """One session is enough, and so are the routes that graceful restart keeps."""
    assert readiness(seen) is None


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Seen(unread_store="cannot open x.db"), "the datastore has not been read: cannot open"),
        (Seen(shortage="no IPPool is enabled for node n1"), "no IPPool is enabled for node n1"),
        (Seen(edge_error="there is no program nft"), "kept in bounds: there is no program nft"),
    ],
)
def test_an_add_that_would_fail_is_code_50_and_says_why(seen, said):
    """Pods that run are not concerned."""
    unready = readiness(seen)

    assert unready is not None
    assert unready.code == Code.NOT_AVAILABLE
    assert said in unready.reason


def test_a_store_that_was_never_read_hides_the_shortage_that_follows_from_it():
    """ "No pool is enabled" would send an operator to look at pools."""
    unready = readiness(Seen(unread_store="away", shortage="no IPPool is enabled"))

    assert unready is not None
    assert "IPPool" not in unready.reason


def test_no_session_left_is_code_51_and_names_each_peer_with_its_reason():
    """What an operator asks next."""
    states = sessions(reason="hold timer expired") | {TOR2: PeerStatus(TOR2)}

    unready = readiness(Seen(peers=PEERS, sessions=states))

    assert unready is not None
    assert unready.code == Code.LIMITED_CONNECTIVITY
    assert unready.reason == (
        "no BGP session is up: tor1 172.30.0.0 (hold timer expired), "
        "tor2 172.30.0.2 (never up so far)"
    )


def test_a_peer_that_exabgp_does_not_know_yet_is_not_up():
    """Configured a moment ago, or not reachable at all: there is no session to speak of."""
    unready = readiness(Seen(peers=PEERS[:1]))

    assert unready is not None
    assert unready.reason == (
        "no BGP session is up: tor1 172.30.0.0 (not in ExaBGP's configuration yet)"
    )


def test_a_session_that_was_up_when_the_speaker_went_counts_no_more():
    """Its routes are gone, so nobody has heard of it for the stale time."""
    unready = readiness(Seen(peers=PEERS, sessions=sessions(UP, UP), is_speaker_connected=False))

    assert unready is not None
    assert unready.code == Code.LIMITED_CONNECTIVITY
    assert "ExaBGP is not connected to the agent" in unready.reason
    assert "tor1 172.30.0.0, tor2 172.30.0.2" in unready.reason


@pytest.mark.parametrize("is_speaker_connected", [True, False])
def test_a_sentence_names_a_few_peers_and_counts_the_others(is_speaker_connected):
    """A node with many peers does not make a page of it."""
    many = [PeerName(f"tor{n}", ip_address(f"172.30.0.{n}")) for n in range(PEERS_TOLD_MAX + 3)]

    unready = readiness(Seen(peers=many, is_speaker_connected=is_speaker_connected))

    assert unready is not None
    assert unready.reason.count("tor") == PEERS_TOLD_MAX
    assert "and 3 more" in unready.reason


def test_every_combination_gets_the_code_of_its_worst_cause_and_tells_all():
    """51 where pods are cut off, else 50 where an ADD would fail, else ready."""
    ran = 0
    for (store, shortage, edge), (is_up, is_connected, kept) in itertools.product(
        itertools.product((None, "STORE"), (None, "SHORT"), (None, "EDGE")),
        itertools.product((False, True), repeat=3),
    ):
        ran += 1
        seen = Seen(
            unread_store=store,
            shortage=shortage,
            edge_error=edge,
            peers=PEERS,
            sessions=sessions(UP if is_up else SessionState.IDLE),
            is_speaker_connected=is_connected,
            has_learned_routes=kept,
        )
        causes = {each for each in (store or shortage, edge) if each is not None}
        is_cut_off = not kept and not (is_up and is_connected)

        unready = readiness(seen)

        if unready is None:
            assert not causes
            assert not is_cut_off
            continue
        assert unready.code == (51 if is_cut_off else 50)
        assert {each for each in ("STORE", "SHORT", "EDGE") if each in unready.reason} == causes
        assert ("BGP session" in unready.reason) == is_cut_off
    assert ran == 64


def test_the_probe_waits_for_every_session_at_first_and_for_one_later():
    """So that a rollout does not take the second session from the next node too."""
    one_of_two = Seen(peers=PEERS, sessions=sessions(UP), has_learned_routes=True)
    early = probe(one_of_two, age_s=SETTLING_S - 1, kernel_errors=())
    assert early is not None
    assert early.reason == f"waiting for the sessions with tor2 {TOR2}"
    assert probe(one_of_two, age_s=SETTLING_S, kernel_errors=()) is None
    both = Seen(peers=PEERS, sessions=sessions(UP, UP))
    assert probe(both, age_s=0, kernel_errors=()) is None
    assert probe(Seen(), age_s=0, kernel_errors=()) is None


def test_the_probe_says_what_the_kernel_lacks():
    """A node whose routes are not in place is not ready, whatever its sessions say."""
    both = Seen(peers=PEERS, sessions=sessions(UP, UP))
    unready = probe(both, age_s=99, kernel_errors=("10.0.0.0/26: File exists", "b"))
    assert unready is not None
    assert unready.reason == "the kernel is not in sync: 10.0.0.0/26: File exists and 1 more"


def test_the_probe_says_what_status_says_first():
    """One answer for one cause."""
    seen = Seen(peers=PEERS, sessions=sessions())
    assert probe(seen, age_s=99, kernel_errors=("x",)) == readiness(seen)
