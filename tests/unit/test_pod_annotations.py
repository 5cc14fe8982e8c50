"""What pods may ask for by annotation: pools, fixed addresses, and what their namespace allows."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from cni.wish import NO_WISH, PodWish, WishRefused
from routing.datastore.pod_annotations import ALLOW_ADDRESSES, Annotated, wish_of
from routing.datastore.snapshot import IPPoolResource, Meta

POOLS = (
    IPPoolResource(Meta("four"), ip_network("10.0.0.0/16"), 26),
    IPPoolResource(Meta("six"), ip_network("fd00::/64"), 122),
    IPPoolResource(Meta("by-name"), ip_network("10.1.0.0/16"), 26, is_manual=True),
    IPPoolResource(
        Meta("payments"), ip_network("10.2.0.0/16"), 26, namespace_selector="team == 'payments'"
    ),
)
PLACE = Annotated("shop", labels={"team": "shop"})
PAYMENTS = Annotated("pay", labels={"team": "payments"})
ALLOWED = Annotated("shop", annotations={ALLOW_ADDRESSES: "true"})


def wish(place=PLACE, pools=POOLS, **annotations):
    """Of a pod with these annotations; ``_`` in a key stands for what may not be in a name."""
    keys = {
        "v4": "slash32.io/ipv4-pools",
        "v6": "slash32.io/ipv6-pools",
        "addresses": "slash32.io/addresses",
        "calico_v4": "cni.projectcalico.org/ipv4pools",
        "calico_addresses": "cni.projectcalico.org/ipAddrs",
    }
    pod = Annotated("web", annotations={keys[key]: value for key, value in annotations.items()})
    return wish_of(pod, place, pools)


def test_a_pod_that_asks_for_nothing_wishes_nothing():
    """Any pool that needs no naming; a pool of another namespace is not among them."""
    assert wish() is NO_WISH


@pytest.mark.parametrize(
    ("annotations", "wanted"),
    [
        ({"v4": '["by-name"]'}, PodWish(pools_v4=("by-name",))),
        ({"calico_v4": '["by-name", "four"]'}, PodWish(pools_v4=("by-name", "four"))),
        ({"v4": '["10.1.0.0/16"]', "v6": '["six"]'}, PodWish(("by-name",), ("six",))),
        ({"v4": '["four"]', "calico_v4": '[ "four" ]'}, PodWish(pools_v4=("four",))),
    ],
)
def test_pools_are_asked_for_by_name_or_cidr(annotations, wanted):
    """In the order given; Calico's names are aliases."""
    assert wish(**annotations) == wanted


def test_a_namespace_may_ask_for_all_its_pods():
    """A pod's own annotation comes first."""
    place = Annotated("shop", annotations={"cni.projectcalico.org/ipv4pools": '["by-name"]'})

    assert wish(place) == PodWish(pools_v4=("by-name",))
    assert wish(place, v4='["four"]') == PodWish(pools_v4=("four",))


def test_a_pool_of_a_namespace_is_for_its_pods_alone():
    """They get it unasked, before the pools for everybody; others are refused it by name."""
    assert wish(PAYMENTS) == PodWish(pools_v4=("payments", "four"))
    assert wish(PAYMENTS, v4='["payments"]') == PodWish(pools_v4=("payments",))
    with pytest.raises(WishRefused, match=r"'payments' is not for namespace shop: its namespaceS"):
        wish(v4='["payments"]')
    named = (
        IPPoolResource(
            Meta("one"), ip_network("10.3.0.0/16"), 26,
            namespace_selector="projectcalico.org/name == 'shop'",
        ),
    )  # fmt: skip
    assert wish(pools=named) == PodWish(pools_v4=("one",))
    assert wish(PAYMENTS, pools=named) is NO_WISH


def test_fixed_addresses_are_for_namespaces_that_may_have_them():
    """One of each family; else the sentence says what is missing where."""
    given = '["10.0.0.7", "fd00::7"]'
    wanted = PodWish(addresses=(ip_address("10.0.0.7"), ip_address("fd00::7")))

    assert wish(ALLOWED, addresses=given) == wanted
    assert wish(ALLOWED, calico_addresses='["fd00::7","10.0.0.7"]') == wanted
    with pytest.raises(WishRefused, match=r"not allowed in namespace shop: its Namespace must say"):
        wish(addresses=given)
    own = Annotated("web", annotations={ALLOW_ADDRESSES: "true", "slash32.io/addresses": given})
    with pytest.raises(WishRefused, match="not allowed"):
        wish_of(own, PLACE, POOLS)


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ({"v4": "four"}, "must be a JSON list of 1 to 16 texts"),
        ({"v4": "[]"}, "must be a JSON list"),
        ({"v4": "[1]"}, "must be a JSON list"),
        ({"v4": '{"a": "b"}'}, "must be a JSON list"),
        ({"v4": "[" * 3000}, "must be a JSON list"),
        ({"v4": '["' + "x" * 5000 + '"]'}, "must be a JSON list"),
        ({"v4": '["none"]'}, "there is no such IPPool of that family: 'none'"),
        ({"v4": '["six"]'}, "there is no such IPPool of that family: 'six'"),
        ({"v4": '["10.9.0.0/16"]'}, "there is no such IPPool"),
        ({"v4": '["10.9.0.1/16"]'}, "has host bits set"),
        ({"v4": '["four"]', "calico_v4": '["by-name"]'}, "and its alias .* differ"),
        ({"addresses": '["10.0.0.256"]'}, "'10.0.0.256' must be an IPv4 or IPv6 address"),
        ({"addresses": '["10.0.0.1", "10.0.0.2"]'}, "a pod gets one IPv4 address"),
        ({"addresses": '["10.0.0.1"]', "v4": '["four"]'}, "excludes pools"),
    ],
)
def test_what_cannot_be_granted_is_refused_with_its_reason(annotations, why):
    """Never ignored: a pod with another address than it asked for fails later and worse."""
    with pytest.raises(WishRefused, match=why):
        wish(ALLOWED, **annotations)
