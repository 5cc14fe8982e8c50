"""What a cluster says beside our own documents: the API server's objects, Calico's, and resources
that vanish; and what lies about on a node: the journal, the leases' file, nft's listing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cni.edge import (
    OWED,
    ListingError,
    _table_objects,
    differences,
    is_same_shape,
    listing,
    owed_listing,
)
from routing.calico import KINDS, from_calico
from routing.controller.file_leases import _load
from routing.datastore.kubernetes_documents import (
    changed_object,
    new_object,
    read_object,
    read_secret_keys,
)
from routing.datastore.resources import from_document
from routing.datastore.snapshot import InvalidResource, Resource
from routing.journal import read_journal, read_journal_end
from routing.last_peers import with_last_peers
from routing.topology import sessions_for
from tests.fuzz.documents import DOCUMENTS
from tests.fuzz.draw import Draw
from tests.fuzz.resource_targets import snapshot_of_all
from tests.fuzz.target import Broken, Target

_SERVERS = {
    "uid": "0-1", "resourceVersion": "7", "generation": 2, "creationTimestamp": "2026-01-31",
    "managedFields": [{"manager": "m"}], "finalizers": ["f"],
}  # fmt: skip
_NODE: dict[str, Any] = {
    "metadata": {
        "name": "node-1",
        "labels": {"rack": "a"},
        "annotations": {
            "slash32.io/ipv4-address": "192.0.2.1", "slash32.io/as-number": "64601",
            "projectcalico.org/IPv6Address": "2001:db8::1/64", "slash32.io/drain": "false",
            "slash32.io/other": "x", "foreign/x": "y",
        },
    },
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"},
                             {"type": "Hostname", "address": "n"}]},
}  # fmt: skip


def kubernetes_object(data: bytes) -> bool:
    """An object of ours or a Secret as the API server keeps it, or a Node with any texts in it.

    Of a Node the API server keeps the types: texts alone are drawn there.
    """
    draw = Draw(data)
    document: Any = draw.choice((*DOCUMENTS, _NODE, _NODE))
    if document is _NODE:
        kind, document = "Node", _with_texts(draw, _NODE)
    else:
        kind = str(document["kind"])
        if kind == "Node":
            return False
        document = draw.damaged(document)
        if not isinstance(document.get("metadata", {}), dict):
            return False
        document["metadata"] = {**document.get("metadata", {}), **_SERVERS}
    if isinstance(document.get("data"), dict):
        read_secret_keys(document)
    try:
        resource = read_object(kind, document)
    except InvalidResource as error:
        if len(str(error).splitlines()) != 1:
            raise Broken(f"not one line: {error!r}") from None
        return False
    made = new_object(resource)
    if kind != "Node" and kind != "NodeStatus":
        if new_object(read_object(kind, made)) != made:
            raise Broken(f"does not read back: {made}")
        changed_object(document, resource)
    return True


def _with_texts(draw: Draw, node: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(node))
    for _ in range(draw.below(4)):
        place = draw.choice(
            (copy["metadata"]["annotations"], copy["metadata"]["labels"],
             copy["status"]["addresses"][0])
        )  # fmt: skip
        key = draw.choice([*place, "slash32.io/ipv6-address", "projectcalico.org/IPv4Address"])
        texts = ("192.0.2.9", "2001:db8::9", "192.0.2.9/24", "65000", "1.5", "true", "")
        place[key] = draw.text() if draw.below(2) else draw.choice(texts)
    return copy


def object_seeds() -> Iterator[bytes]:
    """Each, with a little damage."""
    for number in range(len(DOCUMENTS) + 2):
        yield bytes([number])
        for what in range(8):
            yield bytes([number, 1, what % 3, what, what & 1, what])


def calico(data: bytes) -> bool:
    """Calico's resources, as ``slash32 migrate from-calico`` reads them."""
    draw = Draw(data)
    documents = []
    for _ in range(1 + draw.below(2)):
        base = draw.choice([each for each in DOCUMENTS if each["kind"] in (*KINDS, "Node")])
        other = {"apiVersion": "projectcalico.org/v3"}
        more = {"spec": {**base["spec"], **draw.choice(_CALICOS)}}
        documents.append(draw.damaged({**base, **other, **more}))
    if draw.below(4) == 3:
        documents = [{"apiVersion": "v1", "kind": "List", "items": documents}]
    done = from_calico([each for each in documents if isinstance(each, dict)])
    for document in done.documents:
        from_document(document)
    if any(len(str(each).splitlines()) != 1 for each in done.lost):
        raise Broken(f"not one line: {done.lost}")
    return bool(done.documents)


_CALICOS: tuple[dict[str, Any], ...] = (
    {}, {"ipipMode": "Always", "natOutgoing": True}, {"vxlanMode": "Never"}, {"reachableBy": "x"},
    {"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "logSeverityScreen": "Info"}, {"x": [1]},
)  # fmt: skip


def calico_seeds() -> Iterator[bytes]:
    """Each kind, with what is Calico's alone."""
    for number in range(8):
        for more in range(len(_CALICOS)):
            yield bytes([0, number, more])
            yield bytes([1, number, more, 1, 3, 1, number, more])


def last_peers(data: bytes) -> bool:
    """Two states of a store, the second with resources damaged or gone. Accepted: some are kept."""
    draw = Draw(data)

    def drawn(*, most_gone: int) -> list[Resource]:
        found = []
        for document in DOCUMENTS:
            if draw.below(8) < most_gone:
                continue
            whole = draw.damaged(document) if draw.below(3) == 2 else document
            try:
                found.append(from_document(whole))
            except InvalidResource:
                continue
        return found

    before = snapshot_of_all(drawn(most_gone=0))
    found = snapshot_of_all(drawn(most_gone=3))
    wall_s = float(draw.below(2000))
    kept, why = with_last_peers(found, before, node="node-1", wall_s=wall_s)
    sessions = sessions_for(kept, "node-1")
    if why is None:
        if kept is not found:
            raise Broken("something else than the store says, and nobody is told")
        return False
    names = {each.name for each in sessions.sessions}
    if not set(why.sessions) <= names or not 0 < why.left_s <= found.bgp.keep_last_peers_s:
        raise Broken(f"told {why}, has {names}")
    if len(str(why).splitlines()) != 1:
        raise Broken(f"not one line: {why}")
    later_s = wall_s + found.bgp.keep_last_peers_s
    if with_last_peers(found, kept, node="node-1", wall_s=later_s)[1] is not None:
        raise Broken("kept longer than is said")
    return True


def last_seeds() -> Iterator[bytes]:
    """All there, then one of them gone."""
    size = len(DOCUMENTS)
    whole = bytes([1, 0] * size)
    for gone in range(size):
        yield whole + b"".join(b"\0" if at == gone else b"\7\0" for at in range(size))
    yield whole + bytes(size)


# -- on a node -----------------------------------------------------------------------------------

_ENTRY = {"at": 1.5, "kind": "route", "action": "created", "prefix": "10.0.0.0/8", "reason": "r"}


def _file(data: bytes) -> Path:
    directory = _Lazily.directory
    if directory is None:
        directory = _Lazily.directory = tempfile.mkdtemp(prefix="slash32-fuzz-", dir="/dev/shm")
    path = Path(directory) / "file"
    path.write_bytes(data)
    return path


class _Lazily:
    directory: str | None = None


def forget() -> None:
    """Removes what the targets have made."""
    import shutil

    if _Lazily.directory is not None:
        shutil.rmtree(_Lazily.directory)
    _Lazily.directory = None


_PIECES = (b'"', b"{", b"}", b"[" * 3000, b"\n", b"\xff", b"NaN", b"1e999", b'"at": true', b"\0")


def journal(data: bytes) -> bool:
    """The journal that ``slash32 history`` and the pages read."""
    draw = Draw(data)
    entries = [draw.damaged(_ENTRY) for _ in range(draw.below(5))]
    text = b"".join(json.dumps(each).encode() + b"\n" for each in entries)
    path = _file(draw.spliced(text, _PIECES) + draw.rest())
    found = list(read_journal(path, since=0.0))
    for entry in [*found, *read_journal_end(path), *read_journal_end(path, max_bytes=50)]:
        if "at" not in entry:
            raise Broken(f"no entry: {entry}")
    return bool(found)


def leases(data: bytes) -> bool:
    """The file of the controllers' leases, of the embedded store."""
    draw = Draw(data)
    lease = {
        "name": "n", "holder": "h", "duration_s": 15, "transitions": 1, "renewed_at": "t",
        "version": "1",
    }  # fmt: skip
    text = json.dumps(draw.damaged([lease, lease])).encode()
    path = _file(draw.spliced(text, _PIECES, 2) + draw.rest())
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bool(_load(file))
    finally:
        os.close(file)


def nft_listing(data: bytes) -> bool:
    """What nft prints of our tables; whoever may change them has a say in it."""
    draw = Draw(data)
    table = draw.choice(OWED)
    whole = {"nftables": [{"metainfo": {}}, *_table_objects(table)]}
    text = json.dumps(draw.damaged(draw.damaged(whole))).encode()
    try:
        found = listing(draw.spliced(text, _PIECES, 1).decode("utf-8", "replace"))
    except ListingError as error:
        if len(str(error).splitlines()) != 1:
            raise Broken(f"not one line: {error!r}") from None
        return False
    wrong = list(differences(table, owed_listing(table), found))
    is_same_shape(table, found)
    if any(len(each.splitlines()) != 1 for each in wrong):
        raise Broken(f"not one line: {wrong}")
    if not wrong and found != owed_listing(table):
        raise Broken("another table passes for ours")
    return True


def table_seeds() -> Iterator[bytes]:
    """Each table, and each of its objects changed."""
    for number in range(len(OWED)):
        yield bytes([number])
        for place in range(16):
            yield bytes([number, 1, 0, 1, place, place & 3, place % 8, 1, 0])


def journal_seeds() -> Iterator[bytes]:
    """Entries whole, changed, cut."""
    yield bytes([3])
    for what in range(8):
        yield bytes([2, 1, what, what, 3, 1, 1, 0, 20 + what, 0, what])
    yield b"\0\0" + b"[" * 3000


TARGETS = (
    Target(
        "kubernetes-object",
        "objects of ours, Secrets and Nodes as the API server has them",
        kubernetes_object,
        object_seeds,
        floor=0.1,
    ),
    Target("calico", "Calico's resources", calico, calico_seeds, floor=0.1, weight=5),
    Target(
        "last-peers",
        "resources that are damaged or gone from one pass to the next",
        last_peers,
        last_seeds,
        weight=2,
    ),
    Target(
        "nft-listing",
        "what nft prints of the tables at the pods' edge",
        nft_listing,
        table_seeds,
        floor=0.1,
        weight=5,
    ),
    Target(
        "leases", "the file of the controllers' leases", leases, journal_seeds, floor=0.1, weight=5
    ),
    Target("journal", "the node's journal of changes", journal, journal_seeds, weight=5),
)
