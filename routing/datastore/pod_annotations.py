"""What a pod's annotations ask of its addresses, and whether its namespace may. Pure.

Pools by name or CIDR (``slash32.io/ipv4-pools``, ``ipv6-pools``), a pod's own before those of its
namespace; fixed addresses (``slash32.io/addresses``), a pod's own only. Values are JSON lists of
text, as Calico's, whose names are aliases.

A pool may be asked for by pods of the namespaces that its ``namespaceSelector`` selects. A fixed
address may be asked for in namespaces that an administrator has allowed it, by an annotation on
the Namespace: whoever may create pods could otherwise take any free address of the cluster, one
that a firewall trusts for instance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cni.wish import NO_WISH, PodWish, WishRefused
from routing.datastore.fields import Malformed, parse_address, parse_cidr
from routing.datastore.selector import Selector
from routing.datastore.snapshot import Address, IPPoolResource

POOLS = {
    4: ("slash32.io/ipv4-pools", "cni.projectcalico.org/ipv4pools"),
    6: ("slash32.io/ipv6-pools", "cni.projectcalico.org/ipv6pools"),
}
ADDRESSES = ("slash32.io/addresses", "cni.projectcalico.org/ipAddrs")
ALLOW_ADDRESSES = "slash32.io/allow-fixed-addresses"
"""On a Namespace; its value must be ``true``."""
READ = frozenset({*POOLS[4], *POOLS[6], *ADDRESSES, ALLOW_ADDRESSES})
"""All that is read of annotations."""

LIST_MAX = 16
VALUE_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Annotated:
    """A Pod or a Namespace as far as it is read. ``annotations``: those of ``READ``."""

    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def wish_of(pod: Annotated, namespace: Annotated, pools: Iterable[IPPoolResource]) -> PodWish:
    """What the pod asks for, as far as it may.

    Raises:
        WishRefused: an annotation is malformed, or asks for what the namespace may not have.
    """
    pools = sorted(pools, key=lambda pool: pool.meta.name)
    addresses = _addresses(pod, namespace)
    if addresses:
        if any(_given(pod, keys) for keys in POOLS.values()):
            raise WishRefused(f"{ADDRESSES[0]} excludes pools: the address says which pool it is")
        return PodWish(addresses=addresses)
    wish = PodWish(
        pools_v4=_pools(pod, namespace, 4, pools), pools_v6=_pools(pod, namespace, 6, pools)
    )
    return NO_WISH if wish == NO_WISH else wish


def _addresses(pod: Annotated, namespace: Annotated) -> tuple[Address, ...]:
    given = _given(pod, ADDRESSES)
    if given is None:
        return ()
    key, texts = given
    found: dict[int, Address] = {}
    for text in texts:
        try:
            address = parse_address(text)
        except Malformed as error:
            raise WishRefused(f"{key}: {text!r} {error}") from None
        if found.setdefault(address.version, address) != address:
            raise WishRefused(
                f"{key}: asks for {found[address.version]} and {address}; a pod gets one "
                f"IPv{address.version} address"
            )
    if namespace.annotations.get(ALLOW_ADDRESSES) != "true":
        raise WishRefused(
            f"{key} is not allowed in namespace {namespace.name}: its Namespace must say "
            f'{ALLOW_ADDRESSES}: "true"'
        )
    return tuple(found[version] for version in sorted(found))


def _pools(
    pod: Annotated, namespace: Annotated, version: int, pools: list[IPPoolResource]
) -> tuple[str, ...]:
    own = [pool for pool in pools if pool.cidr.version == version]
    given = _given(pod, POOLS[version]) or _given(namespace, POOLS[version])
    if given is None:
        return _selected(namespace, own)
    key, texts = given
    return tuple(_named(key, text, namespace, own).meta.name for text in texts)


def _named(
    key: str, text: str, namespace: Annotated, pools: list[IPPoolResource]
) -> IPPoolResource:
    """The pool of that name, or of that CIDR."""
    pool = next((each for each in pools if each.meta.name == text), None)
    if pool is None and "/" in text:
        try:
            cidr = parse_cidr(text)
        except Malformed as error:
            raise WishRefused(f"{key}: {text!r} {error}") from None
        pool = next((each for each in pools if each.cidr == cidr), None)
    if pool is None:
        raise WishRefused(f"{key}: there is no such IPPool of that family: {text!r}")
    if not _selects(pool, namespace):
        raise WishRefused(
            f"{key}: IPPool {pool.meta.name!r} is not for namespace {namespace.name}: its "
            f"namespaceSelector is {pool.namespace_selector!r}"
        )
    return pool


def _selected(namespace: Annotated, pools: list[IPPoolResource]) -> tuple[str, ...]:
    """For a pod that asks for none: () for any pool, unless some are for its namespace alone.

    These come first, then those for everybody.
    """
    automatic = [pool for pool in pools if not pool.is_manual]
    mine = [p for p in automatic if not _is_for_all(p) and _selects(p, namespace)]
    if not mine:
        return ()
    return tuple(pool.meta.name for pool in (*mine, *filter(_is_for_all, automatic)))


def _is_for_all(pool: IPPoolResource) -> bool:
    return pool.namespace_selector in ("", "all()")


def _selects(pool: IPPoolResource, namespace: Annotated) -> bool:
    if _is_for_all(pool):
        return True
    # As Calico names a namespace to selectors, whatever its labels.
    labels = {"projectcalico.org/name": namespace.name, **namespace.labels}
    return Selector.parse(pool.namespace_selector).matches(labels)


def _given(who: Annotated, keys: tuple[str, str]) -> tuple[str, tuple[str, ...]] | None:
    """The annotation's key and its texts, or None when there is none.

    Raises:
        WishRefused: it is no JSON list of text, or both names are given and differ.
    """
    found = [(key, _texts(key, who.annotations[key])) for key in keys if key in who.annotations]
    if not found:
        return None
    if len(found) == 2 and found[0][1] != found[1][1]:
        raise WishRefused(f"{keys[0]} and its alias {keys[1]} differ; give one of them")
    return found[0]


def _texts(key: str, value: str) -> tuple[str, ...]:
    rule = f'{key}: must be a JSON list of 1 to {LIST_MAX} texts, such as ["one"]'
    if len(value) > VALUE_MAX_CHARACTERS:
        raise WishRefused(rule)
    try:
        texts = json.loads(value)
    except (ValueError, RecursionError):
        raise WishRefused(rule) from None
    if not isinstance(texts, list) or not 1 <= len(texts) <= LIST_MAX:
        raise WishRefused(rule)
    if not all(isinstance(each, str) and len(each) <= 253 for each in texts):
        raise WishRefused(rule)
    return tuple(texts)
