"""A pod's own routes on the host, written for ADD, DEL and CHECK without waiting for a pass.

Through the same driver as the loop's: the next pass finds what is here as wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cni.attach import HostRouteError
from cni.attachment import Attachment
from cni.podlink import PodLink
from routing.delta import Delta
from routing.fib import Fib
from routing.route_table import RouteTable
from routing.routes import Address, NextHop, Route, RouteKey, host_prefix, next_hops_text


class HostRoutes:
    """The HostRoutes port of cni.attach.

    Args:
        fib: the kernel's routes.
        last_read: our routes as the last pass found them.

    ``ensured`` holds the routes written since the last pass looked; whoever runs passes clears it
    before it looks.
    """

    def __init__(self, fib: Fib, last_read: Callable[[], Mapping[RouteKey, Route]]) -> None:
        self._fib = fib
        self._last_read = last_read
        self.ensured: dict[RouteKey, Route] = {}

    async def ensure(self, link: PodLink) -> None:
        """Returns once the pod's host routes are in the kernel.

        Raises:
            HostRouteError: the kernel refused; the sentence names the holder of the prefix.
        """
        routes = pod_routes(link)
        try:
            await self._refuse_taken(routes)
            await self._refuse_overruled(link)
            failed = await self._fib.apply(Delta(create=routes))
        except OSError as error:
            raise _no_answer(link.host_ifname, error) from error
        if failed:
            raise HostRouteError("; ".join(f"{f.key.prefix}: {f.error}" for f in failed))
        self.ensured.update(routes)

    async def _refuse_taken(self, routes: Mapping[RouteKey, Route]) -> None:
        """The driver brings a route of ours to what is wanted; here that would take the address
        from a pod that has it. The last pass knows enough to ask the kernel only then."""
        known, read = self.ensured, RouteTable.of(self._last_read())
        for key, route in routes.items():
            there = known.get(key) or read.find(key)
            if there is not None and there != route:
                break
        else:
            return
        actual = await self._fib.read()
        for key, route in routes.items():
            found = actual.get(key, route)
            if found != route:
                raise HostRouteError(f"{key.prefix} is routed already: {next_hops_text(found)}")

    async def _refuse_overruled(self, link: PodLink) -> None:
        """A route to this very address that has another metric or table holds another key: the
        kernel would take ours and go on using that one, or this pod would get what is another's."""
        for address in link.addresses:
            holder = await self._fib.holder_of(address)
            if holder is not None and holder != link.host_ifname:
                raise HostRouteError(f"{address} is routed already: dev {holder}")

    async def forget(self, attachment: Attachment, addresses: tuple[Address, ...]) -> None:
        """Returns once no route of ours leads to any of ``addresses``.

        The kernel takes a route along with its link, but not one that somebody has pointed
        elsewhere, and the address may be another pod's soon. One message an address, no dump.

        Raises:
            HostRouteError: the kernel kept one.
        """
        over = _routes_over(attachment.host_ifname, addresses)
        with _as_host_route_error(attachment.host_ifname):
            failed = await self._fib.apply(Delta({}, {}, over))
        if failed:
            raise HostRouteError("; ".join(f"{f.key.prefix}: {f.error}" for f in failed))

    async def check(self, link: PodLink) -> list[str]:
        """What is wrong with the host routes of ``link``."""
        with _as_host_route_error(link.host_ifname):
            actual = await self._fib.read()
        differences = []
        for key, route in pod_routes(link).items():
            found = actual.get(key)
            if found is None:
                differences.append(f"host route {key.prefix} dev {link.host_ifname} is missing")
            elif found != route:
                differences.append(
                    f"host route {key.prefix}: expected dev {link.host_ifname}, "
                    f"found {next_hops_text(found)}"
                )
        return differences


@contextmanager
def _as_host_route_error(ifname: str) -> Iterator[None]:
    """A kernel that does not answer is no bug of ours, which another error would be taken for."""
    try:
        yield
    except OSError as error:
        raise _no_answer(ifname, error) from error


def _no_answer(ifname: str, error: OSError) -> HostRouteError:
    return HostRouteError(f"routes over {ifname}: {error.strerror or error}")


def pod_routes(link: PodLink) -> dict[RouteKey, Route]:
    """The host routes one pod link needs: a /32 or /128 to its host end for each address."""
    return _routes_over(link.host_ifname, link.addresses)


def _routes_over(ifname: str, addresses: tuple[Address, ...]) -> dict[RouteKey, Route]:
    hops = (NextHop(ifname),)
    keys = [RouteKey(host_prefix(address)) for address in addresses]
    return {key: Route(key, hops) for key in keys}
