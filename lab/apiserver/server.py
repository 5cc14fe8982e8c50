"""ApiDouble: an API server on loopback that keeps what the real one promises about writes.

Public doubles lack the compare-and-swap, and that is what block ownership stands on. This one has
resourceVersion and UID preconditions, the status subresource, merge patches, paged lists, watches
with bookmarks and 410 after compaction; and switches for everything that goes wrong:

    fault(...)      the next matching requests: 409, 429 with Retry-After, 500, slow, cut off after
                    the write was done
    is_silent       watches stay open and say nothing any more, not even that they end
    has_bookmarks   False: none are sent, whatever a watch asks for
    lag_s           lists and watches tell of the state so long ago, as a server whose cache has
                    fallen behind; single objects and writes are current
    down() / up()   the server is gone, and back on the same port with the same state
    state.compact() watches from before get 410

With ``namespaces`` it is on loopback, at the same port, of each of these too: every node of a lab
then reaches it, and no link of the lab carries it.

Several servers may have one State, each with faults and a lag of its own: a control plane of
several API servers before one etcd.

From another process: ``python -m lab.apiserver --kubeconfig K``; SIGUSR1 is down, SIGUSR2 is up;
POST /-/fault takes a Fault as JSON, /-/clear and /-/compact nothing, /-/silent, /-/newer and
/-/bookmarks ``{"on": bool}``, /-/lag ``{"s": seconds}``, /-/missing ``{"plurals": [...]}``;
/-/calls answers with the number of requests so far, /-/recent with the last ones: seconds ago,
verb, resource, name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from cni.netns import inside
from lab.apiserver.schema import load_schemas
from lab.apiserver.state import (
    KINDS,
    ApiError,
    Change,
    Key,
    Kind,
    Object,
    State,
    with_conditions,
)

JSON = "application/json"
TOKEN = "lab-token-9vQ2mK7xR4"  # noqa: S105 - any would do; this one can be looked for
STRATEGIC = "application/strategic-merge-patch+json"
MERGE_PATCHES = ("application/merge-patch+json", STRATEGIC)
WATCH_DEFAULT_S = 1800.0
TIMES_MAX = 100_000
RECENT_MAX = 5_000
"""Changes whose time is known, for a server that lags."""
LAG_LOOK_S = 0.1
"""How often a watch of a server that lags looks whether more has become old enough."""


class UnknownPath(Exception):
    """No such collection: an API server answers with a line of text, and no metav1.Status."""


@dataclass(slots=True)
class Fault:
    """What happens to the next ``times`` requests that match; an empty field matches all.

    ``share``: only this part of them, evenly spread: 0.5 is every second one.
    ``after_commit``: the request is done first; then the answer is ``status``, or comes
    ``slow_s`` late, or (neither) never: the connection is cut.
    """

    verb: str = ""
    resource: str = ""
    name: str = ""
    status: int = 0
    reason: str = ""
    retry_after_s: float | None = None
    slow_s: float = 0.0
    after_commit: bool = False
    times: int = 1
    share: float = 1.0
    _due: float = 0.0

    def matches(self, asked: Asked) -> bool:
        is_asked = (
            self.times > 0
            and self.verb in ("", asked.verb)
            and self.resource in ("", asked.resource)
            and self.name in ("", asked.name)
        )
        if not is_asked:
            return False
        self._due += self.share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for. ``resource`` is the plural, with ``/status`` for the subresource."""

    verb: str
    kind: Kind
    namespace: str
    name: str
    is_status: bool
    query: Mapping[str, str]
    is_strategic: bool = False

    @property
    def resource(self) -> str:
        return self.kind.plural + ("/status" if self.is_status else "")

    @property
    def key(self) -> Key:
        return Key(self.kind, self.namespace, self.name)


class ApiDouble:
    """The server. ``await start()``, then ``url``; ``await stop()``."""

    def __init__(
        self,
        state: State | None = None,
        *,
        listen: str = "127.0.0.1",
        namespaces: Sequence[Path] = (),
    ) -> None:
        self.state = state or State(load_schemas())
        self.calls: Counter[tuple[str, str]] = Counter()
        """(verb, resource) -> requests."""
        self.recent: deque[tuple[float, str, str, str]] = deque(maxlen=RECENT_MAX)
        """The last requests: monotonic seconds, verb, resource, name."""
        self.bookmark_s = 1.0
        self.has_bookmarks = True
        self.lag_s = 0.0
        self.missing: set[str] = set()
        """Plurals that are not served, as if nobody had installed their definitions."""
        self.secret_queries: list[Mapping[str, str]] = []
        """The queries of lists and watches of Secrets."""
        self.port = 0
        self._listen = listen
        self._namespaces = namespaces
        self._is_silent = False
        self._faults: list[Fault] = []
        self._pages: dict[str, list[Object]] = {}
        self._runner: web.AppRunner | None = None
        self._open: set[asyncio.Transport] = set()
        self._stirred: list[asyncio.Event] = []
        self._times: deque[tuple[float, int]] = deque(maxlen=TIMES_MAX)

    @property
    def url(self) -> str:
        host = f"[{self._listen}]" if ":" in self._listen else self._listen
        return f"http://{host}:{self.port}"

    @property
    def is_up(self) -> bool:
        return self._runner is not None

    @property
    def is_silent(self) -> bool:
        return self._is_silent

    @is_silent.setter
    def is_silent(self, value: bool) -> None:
        self._is_silent = value
        self._stir()

    def fault(self, **fields: Any) -> None:
        """Arms a Fault."""
        self._faults.append(Fault(**fields))

    def clear_faults(self) -> None:
        """Disarms what was not used up."""
        self._faults.clear()

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that leads here, for its owner's eyes."""
        path.touch(mode=0o600)
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "double",
                    "clusters": [{"name": "double", "cluster": {"server": self.url}}],
                    "users": [{"name": "double", "user": {"token": TOKEN}}],
                    "contexts": [
                        {"name": "double", "context": {"cluster": "double", "user": "double"}}
                    ],
                }
            )
        )
        return path

    # -- life ------------------------------------------------------------------------------

    async def start(self, port: int = 0) -> None:
        """Listens; on the port of before when there was one."""
        application = web.Application(client_max_size=4 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            application, handle_signals=False, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, self._listen, port or self.port, reuse_address=True)
        await site.start()
        self._runner = runner
        self.port = runner.addresses[0][1]
        for namespace in self._namespaces:
            await web.SockSite(runner, self._socket_in(namespace)).start()
        self.state.listen(self._stir)

    def _socket_in(self, namespace: Path) -> socket.socket:
        """A socket stays in the namespace it was made in, whoever reads it."""
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with inside(descriptor):
                family = socket.AF_INET6 if ":" in self._listen else socket.AF_INET
                return socket.create_server((self._listen, self.port), family=family)
        finally:
            os.close(descriptor)

    async def down(self) -> None:
        """The process died: nobody listens, connections are reset, the state stays (etcd)."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        self.state.unlisten(self._stir)
        for site in list(runner.sites):
            await site.stop()
        for transport in list(self._open):
            transport.abort()
        self._stir()
        await runner.cleanup()

    async def up(self) -> None:
        """And is started again."""
        await self.start()

    async def stop(self) -> None:
        """The end."""
        await self.down()

    def _known(self) -> int:
        """The version that lists and watches tell of: of ``lag_s`` ago."""
        if not self.lag_s:
            return self.state.version
        since_s = time.monotonic() - self.lag_s
        later = next((version for at_s, version in self._times if at_s > since_s), None)
        return self.state.version if later is None else later - 1

    def _stir(self) -> None:
        self._times.append((time.monotonic(), self.state.version))
        for event in self._stirred:
            event.set()

    # -- requests --------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if isinstance(transport, asyncio.Transport):
            self._open.add(transport)
        try:
            return await self._answer(request)
        except ApiError as error:
            return web.json_response(error.document(), status=error.code)
        except UnknownPath:
            return web.Response(text="404 page not found\n", status=404)
        finally:
            if isinstance(transport, asyncio.Transport):
                self._open.discard(transport)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path.startswith("/-/"):
            return await self._control(path, request)
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if path == "/version":
            return web.json_response({"major": "1", "minor": "35", "gitVersion": "v1.35.0-double"})
        asked = _asked(request)
        if asked.kind.plural in self.missing:
            raise UnknownPath
        if asked.kind.kind == "Secret" and asked.verb in ("list", "watch"):
            self.secret_queries.append(asked.query)
        self.calls[asked.verb, asked.resource] += 1
        self.recent.append((time.monotonic(), asked.verb, asked.resource, asked.name))
        fault = next((each for each in self._faults if each.matches(asked)), None)
        if fault is not None:
            fault.times -= 1
            if not fault.after_commit:
                await asyncio.sleep(fault.slow_s)
                if fault.status:
                    return _refusal(fault)
        if asked.verb == "watch":
            return await self._watch(asked, request)
        document = self._do(asked, await _body(request))
        if fault is not None and fault.after_commit:
            if fault.status:
                return _refusal(fault)
            if not fault.slow_s and request.transport is not None:
                request.transport.abort()
            await asyncio.sleep(fault.slow_s)
        return web.json_response(document, status=201 if asked.verb == "create" else 200)

    def _do(self, asked: Asked, body: Object) -> Object:
        if asked.query.get("dryRun") == "All":
            with self.state.dry():
                return self._perform(asked, body)
        return self._perform(asked, body)

    def _perform(self, asked: Asked, body: Object) -> Object:
        state = self.state
        match asked.verb:
            case "get":
                return state.get(asked.key)
            case "list":
                return self._list(asked)
            case "create":
                return state.create(asked.kind, asked.namespace, body)
            case "update":
                return state.replace(asked.key, body, is_status=asked.is_status)
            case "patch":
                if asked.is_strategic:
                    body = with_conditions(state.get(asked.key), body)
                return state.patch(asked.key, body, is_status=asked.is_status)
            case "delete":
                old = state.delete(asked.key, body.get("preconditions") or {})
                details = {"name": asked.name, "uid": old["metadata"]["uid"]}
                return {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "status": "Success",
                    "details": details,
                }
            case _:
                raise ApiError(405, "MethodNotAllowed", f"{asked.verb} is not supported")

    def _list(self, asked: Asked) -> Object:
        known = self._known()
        metadata = {"resourceVersion": str(known)}
        token = asked.query.get("continue")
        if token:
            if token not in self._pages:
                raise ApiError(410, "Expired", "The provided continue parameter is too old")
            found = self._pages.pop(token)
            metadata["resourceVersion"] = json.loads(base64.b64decode(token))["rv"]
        else:
            found = [
                each
                for each in self.state.list_at(asked.kind, asked.namespace, known)
                if _selected(asked, each)
            ]
        limit = int(asked.query.get("limit", 0))
        if limit and len(found) > limit:
            rest = {
                "rv": metadata["resourceVersion"],
                "n": len(self._pages),
                "of": asked.kind.plural,
            }
            token = base64.b64encode(json.dumps(rest).encode()).decode()
            self._pages[token] = found[limit:]
            metadata["continue"] = token
            found = found[:limit]
        return {
            "kind": f"{asked.kind.kind}List",
            "apiVersion": asked.kind.api_version,
            "metadata": metadata,
            "items": found,
        }

    async def _watch(self, asked: Asked, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.enable_chunked_encoding()
        await response.prepare(request)
        stirred = asyncio.Event()
        self._stirred.append(stirred)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + float(asked.query.get("timeoutSeconds", WATCH_DEFAULT_S))
        wants_bookmarks = asked.query.get("allowWatchBookmarks") == "true"
        version = int(asked.query.get("resourceVersion") or self._known())
        runner = self._runner
        with suppress(ConnectionError):
            try:
                while self._runner is runner and asked.kind.plural not in self.missing:
                    stirred.clear()
                    if not self._is_silent:
                        version = await self._speak(asked, response, version)
                        if loop.time() >= end_s:
                            break
                    wait_s = min(self.bookmark_s, max(0.0, end_s - loop.time()))
                    if self.lag_s:
                        wait_s = min(wait_s, LAG_LOOK_S)
                    try:
                        async with asyncio.timeout(None if self._is_silent else wait_s):
                            await stirred.wait()
                    except TimeoutError:
                        if wants_bookmarks and self.has_bookmarks:
                            version = await self._speak(asked, response, version)
                            await response.write(_line("BOOKMARK", _bookmark(asked.kind, version)))
            except ApiError as error:
                await response.write(_line("ERROR", error.document()))
            finally:
                self._stirred.remove(stirred)
        return response

    async def _speak(self, asked: Asked, response: web.StreamResponse, version: int) -> int:
        """Writes what happened since a version; returns the version it came to."""
        # A client that knows more than this server now tells is told nothing twice.
        until = max(version, self._known())
        for change in list(self.state.changes(asked.kind, asked.namespace, version)):
            if change.version > until:
                break
            event = _event(asked, change)
            if event is not None:
                await response.write(event)
        return until

    async def _control(self, path: str, request: web.Request) -> web.Response:
        body = await _body(request)
        match path:
            case "/-/fault":
                self.fault(**body)
            case "/-/clear":
                self.clear_faults()
            case "/-/compact":
                self.state.compact()
            case "/-/bookmarks":
                self.has_bookmarks = bool(body.get("on", True))
            case "/-/newer":
                self.state.is_newer = bool(body.get("on", True))
            case "/-/lag":
                self.lag_s = float(body["s"])
            case "/-/missing":
                self.missing = set(body["plurals"])
                self._stir()
            case "/-/calls":
                return web.json_response({"calls": self.calls.total()})
            case "/-/recent":
                now_s = time.monotonic()
                return web.json_response([[now_s - at_s, *what] for at_s, *what in self.recent])
            case "/-/silent":
                self.is_silent = bool(body.get("on", True))
            case _:
                raise ApiError(404, "NotFound", path)
        return web.json_response({})


def _asked(request: web.Request) -> Asked:
    path = request.path
    for kind in KINDS:
        prefix = kind.prefix + "/"
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        namespace = ""
        if len(parts) > 2 and parts[0] == "namespaces" and kind.plural != "namespaces":
            namespace, parts = parts[1], parts[2:]
        if parts[0] != kind.plural or len(parts) > 3:
            continue
        name = parts[1] if len(parts) > 1 else ""
        is_status = len(parts) == 3
        if is_status and (parts[2] != "status" or not kind.has_status):
            continue
        is_strategic = request.content_type == STRATEGIC
        verb = _verb(request, name)
        return Asked(verb, kind, namespace, name, is_status, request.query, is_strategic)
    raise UnknownPath


def _verb(request: web.Request, name: str) -> str:
    if request.method == "GET":
        if request.query.get("watch") in ("true", "1"):
            return "watch"
        return "get" if name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


async def _body(request: web.Request) -> Object:
    text = await request.read()
    if not text:
        return {}
    if request.method == "PATCH" and request.content_type not in MERGE_PATCHES:
        raise ApiError(415, "UnsupportedMediaType", request.content_type)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ApiError(400, "BadRequest", str(error)) from None
    if not isinstance(value, dict):
        raise ApiError(400, "BadRequest", "not an object")
    return value


def _selected(asked: Asked, document: Object) -> bool:
    metadata = document["metadata"]
    for term in filter(None, asked.query.get("fieldSelector", "").split(",")):
        path, _, value = term.partition("=")
        found: Any = document
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if str(found) != value.lstrip("="):
            return False
    labels = metadata.get("labels") or {}
    for term in filter(None, asked.query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value.lstrip("="):
            return False
    return True


def _event(asked: Asked, change: Change) -> bytes | None:
    return _line(change.type, change.document) if _selected(asked, change.document) else None


def _line(type_: str, document: Object) -> bytes:
    return json.dumps({"type": type_, "object": document}).encode() + b"\n"


def _bookmark(kind: Kind, version: int) -> Object:
    return {
        "kind": kind.kind,
        "apiVersion": kind.api_version,
        "metadata": {"resourceVersion": str(version), "creationTimestamp": None},
    }


def _refusal(fault: Fault) -> web.Response:
    reasons = {403: "Forbidden", 409: "Conflict", 410: "Expired", 429: "TooManyRequests"}
    reason = fault.reason or reasons.get(fault.status, "InternalError")
    error = ApiError(fault.status, reason, f"fault: {reason}")
    headers = {} if fault.retry_after_s is None else {"Retry-After": f"{fault.retry_after_s:g}"}
    return web.json_response(error.document(), status=fault.status, headers=headers)
