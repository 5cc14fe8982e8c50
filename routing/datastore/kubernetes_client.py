"""ApiServer: requests and watches to a Kubernetes API server, and its errors as ours.

What the official client offers, and what is used of it. ``kubernetes.informer`` is a thread with a
blocking client: it has no inactivity deadline (a connection that died without a word is never
noticed), retries every failure after fixed five seconds or at once, and keeps no word of being
stale. ``kubernetes.aio.watch`` is asynchronous, but swallows the end of a stream, treats 410 as
one more try and hides status and Retry-After. So list and watch are ours (``kubernetes_watch``),
on the client's asynchronous HTTP layer: ``kubernetes.aio.config`` (kubeconfig, in-cluster tokens
that rotate, exec plugins, proxies) and ``ApiClient`` (TLS, authentication). Its generated models
are not used: our resources are custom ones, and a Node as a model costs ten times its JSON.

Importing this module loads the client (0.5 s, 40 MB), so only ``opening.py`` does, and late.
"""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import structlog

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the generated client's own deprecations
    from kubernetes.aio import client as kubernetes_client
    from kubernetes.aio import config as kubernetes_config

from routing.datastore.snapshot import StoreError

log = structlog.get_logger("routing.datastore")

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 15.0
"""For one request and its answer. A write that took longer may have happened."""
RETRY_BUDGET_S = 20.0
"""How long a request is tried again that the server refused unread (429 with Retry-After)."""
RETRY_AFTER_DEFAULT_S = 1.0
PAGE_MAX = 500
"""Objects in one page of a list; the server answers it from one moment, page after page."""
LISTINGS_MAX = 3
"""Lists begun again because their pages had expired (410)."""
ABORT_TURNS = 5
RELOAD_MIN_S = 10.0
"""Credentials are read again at most so often."""

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

Object = dict[str, Any]
Objects = list[Object]
Query = Mapping[str, str | int]


class Unreachable(StoreError):
    """No answer: nobody knows whether a write happened."""


class Refused(StoreError):
    """The server's answer was no.

    Attributes:
        status: the HTTP status.
        reason: the metav1.Status reason, such as AlreadyExists; may be empty.
        retry_after_s: when the server asks to be left alone for a while.
        causes: (field, rule) of an object that breaks its schema.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int,
        reason: str = "",
        retry_after_s: float | None = None,
        causes: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.causes = causes


class ApiServer:
    """One API server (or the address that stands for several). Make it with ``connect``."""

    def __init__(self, kubeconfig: Path | None) -> None:
        self._kubeconfig = kubeconfig
        self._client: Any = None
        self._retired: list[Any] = []
        self._loaded_at_s = 0.0
        self._loading = asyncio.Lock()
        self._is_closed = False
        self.name = "kubernetes"

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None) -> ApiServer:
        """Reads the configuration; the server itself need not be there yet.

        Args:
            kubeconfig: a file, or None for the service account of the pod we run in.

        Raises:
            StoreError: there is no usable configuration.
        """
        server = cls(kubeconfig)
        await server._load()
        return server

    async def close(self) -> None:
        """Ends all connections; may be called twice."""
        self._is_closed = True
        clients, self._retired, self._client = [*self._retired, self._client], [], None
        for client in clients:
            if client is not None:
                await _end(client)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        content_type: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Object:
        """One request and its answer's JSON. Only what the server refused unread is tried again.

        Raises:
            Refused: it said no.
            Unreachable: there was no answer, or half of one.
        """
        if asyncio.current_task() is None:
            # A verb of the CNI server comes here without a task until it first waits
            # (cni/eager.py), and timeouts, ours and aiohttp's, need one.
            await asyncio.sleep(0)
        deadline_s = time.monotonic() + RETRY_BUDGET_S
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    response = await self._send(method, path, query, body, content_type)
                    return await self._answer(response)
            except TimeoutError:
                raise self._unreachable(f"no answer in {timeout_s:g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                raise self._unreachable(_sentence(error)) from None
            except Refused as refused:
                if refused.status != 429:
                    raise
                wait_s = refused.retry_after_s or RETRY_AFTER_DEFAULT_S
                if time.monotonic() + wait_s > deadline_s:
                    raise
            await asyncio.sleep(wait_s)

    async def list(
        self, path: str, *, query: Query | None = None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> tuple[Objects, str]:
        """Every object of a collection and the version of that moment.

        resourceVersion is left out of the request, which makes it a quorum read: it holds every
        write that was acknowledged before, ours among them, whichever API server answered.

        Raises:
            Refused, Unreachable: as for ``request``.
        """
        for attempt in range(LISTINGS_MAX):
            try:
                return await self._list_once(path, query, timeout_s)
            except Refused as refused:
                if refused.status != 410 or attempt == LISTINGS_MAX - 1:
                    raise
        raise AssertionError("not reached")

    async def _list_once(
        self, path: str, query: Query | None, timeout_s: float
    ) -> tuple[Objects, str]:
        items: list[Object] = []
        page: dict[str, str | int] = {**(query or {}), "limit": PAGE_MAX}
        while True:
            answer = await self.request("GET", path, query=page, timeout_s=timeout_s)
            found, meta = answer.get("items") or [], answer.get("metadata") or {}
            if not isinstance(found, list) or not isinstance(meta, dict):
                raise self._unreachable(f"{path} is not a list")
            items += found
            if not meta.get("continue"):
                return items, str(meta.get("resourceVersion", ""))
            page["continue"] = meta["continue"]

    @asynccontextmanager
    async def watch(self, path: str, *, query: Query) -> AsyncIterator[AsyncIterator[Object]]:
        """A watch that the server has accepted: an iterator of events, ended by the server.

        An ERROR event is raised as Refused with its code. No deadline but for the acceptance; the
        caller has one for the whole.

        Raises:
            Refused, Unreachable: as for ``request``.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                response = await self._send("GET", path, {**query, "watch": "true"}, None, JSON)
                if response.status != 200:
                    await self._answer(response)
        except TimeoutError:
            raise self._unreachable(f"no answer in {REQUEST_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(_sentence(error)) from None
        try:
            yield self._events(response)
        finally:
            _break_off(response)

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
        while True:
            try:
                line = await response.content.readline()
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise self._unreachable(f"watch broke off: {_sentence(error)}") from None
            if not line:
                return
            event = self._json(line)
            if event.get("type") == "ERROR":
                raise self._refusal(0, event.get("object"), None)
            yield event

    # -- one exchange ----------------------------------------------------------------------

    async def _send(
        self, method: str, path: str, query: Query | None, body: Any, content_type: str
    ) -> aiohttp.ClientResponse:
        response = await self._send_once(method, path, query, body, content_type)
        if response.status == 401 and await self._reload():
            # A token or certificate that was replaced on disk.
            response.release()
            response = await self._send_once(method, path, query, body, content_type)
        return response

    async def _send_once(
        self, method: str, path: str, query: Query | None, body: Any, content_type: str
    ) -> aiohttp.ClientResponse:
        if self._client is None:
            raise StoreError(f"{self.name}: is closed")
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=dict(query or {}),
                header_params={"Accept": JSON, "Content-Type": content_type},
                auth_settings=["BearerToken"],
            )
        except (kubernetes_config.ConfigException, OSError) as error:
            raise self._unreachable(f"no credentials: {_sentence(error)}") from None
        method, url, headers, _, _ = request
        answer = await self._client.call_api(
            method,
            url,
            header_params=headers,
            body=body,
            _request_timeout=aiohttp.ClientTimeout(
                total=None, connect=CONNECT_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S
            ),
        )
        response: aiohttp.ClientResponse = answer.response
        return response

    async def _answer(self, response: aiohttp.ClientResponse) -> Object:
        data = await response.read()
        if 200 <= response.status < 300:
            return self._json(data)
        try:
            found = json.loads(data)
        except ValueError:
            found = {"message": data[:200].decode("utf-8", "replace").strip()}
        raise self._refusal(response.status, found, response.headers.get("Retry-After"))

    def _json(self, data: bytes) -> Object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._unreachable(f"an answer that is not an object: {data[:80]!r}")
        return value

    def _refusal(self, status: int, found: Any, retry_after: str | None) -> Refused:
        found = found if isinstance(found, dict) else {}
        code = found.get("code")
        status = status or (code if isinstance(code, int) else 500)
        details = found.get("details")
        details = details if isinstance(details, dict) else {}
        asked = details.get("retryAfterSeconds")
        causes = [each for each in details.get("causes") or [] if isinstance(each, dict)]
        reason, message = str(found.get("reason") or ""), str(found.get("message") or "")
        return Refused(
            f"{self.name}: {message or reason or 'refused'} (HTTP {status})",
            status=status,
            reason=reason,
            retry_after_s=_seconds(retry_after) or _seconds(asked),
            causes=[(str(c.get("field") or ""), str(c.get("message") or "")) for c in causes],
        )

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(f"{self.name}: {why}")

    # -- configuration ---------------------------------------------------------------------

    async def _reload(self) -> bool:
        """Reads the credentials again; False when that was done just now."""
        async with self._loading:
            if self._is_closed or time.monotonic() - self._loaded_at_s < RELOAD_MIN_S:
                return False
            log.info("kubernetes_credentials_reloaded", server=self.name)
            # The old one's watches go on until they end; it is closed when the next one retires.
            retired, self._retired = self._retired, [self._client]
            await self._load()
            for client in retired:
                if client is not None:
                    await _end(client)
            return True

    async def _load(self) -> None:
        configuration = kubernetes_client.Configuration()
        where = "in-cluster" if self._kubeconfig is None else str(self._kubeconfig)
        try:
            if self._kubeconfig is None:
                kubernetes_config.load_incluster_config(configuration)
            else:
                if not self._kubeconfig.is_file():
                    raise StoreError(f"kubernetes: kubeconfig {where} does not exist")
                await kubernetes_config.load_kube_config(
                    str(self._kubeconfig),
                    client_configuration=configuration,
                    persist_config=False,
                )
            if urlsplit(configuration.host).hostname in ("127.0.0.1", "::1", "localhost"):
                # A proxy of the environment is not the way to ourselves.
                configuration.client_session_kwargs = {"trust_env": False}
            client = kubernetes_client.ApiClient(configuration)
        except StoreError:
            raise
        except Exception as error:
            # The loaders raise whatever a broken file makes them stumble over.
            raise StoreError(
                f"kubernetes: configuration {where} cannot be used: {_sentence(error)}"
            ) from None
        client.user_agent = "slash32"
        self._client = client
        self._loaded_at_s = time.monotonic()
        self.name = f"kubernetes {configuration.host}"


async def _end(client: Any) -> None:
    """Closes a client and its connections, without TLS goodbyes, which nobody would wait for."""
    session = client.rest_client.pool_manager
    if session is not None and session.connector is not None:
        await session.connector.close(abort_ssl=True)
    await client.close()
    for _ in range(ABORT_TURNS):
        # An aborted connection is closed in the loop's next turns, not before.
        await asyncio.sleep(0)


def _break_off(response: aiohttp.ClientResponse) -> None:
    """Ends a response that may be half read, and its connection with it."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _sentence(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__


def _seconds(value: object) -> float | None:
    """Retry-After in seconds (RFC 9110 section 10.2.3; Kubernetes never sends the date form)."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return min(seconds, 60.0) if seconds > 0 else None
