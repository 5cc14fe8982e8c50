"""A container image without a registry: busybox-static in an OCI image layout, as one tar file.

Both ``ctr images import`` and ``podman load`` read it. The same busybox gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.plan import LabFailure

BUSYBOX = Path("/bin/busybox")
REFERENCE = "slash32.local/busybox:1"

APPLETS = (*("cat", "dd", "env", "httpd", "ip", "nc", "ping", "sh", "sleep", "true", "wc", "wget"),)
PEER_SCRIPT = "www/cgi-bin/peer"
"""Answers an HTTP request with the client's address as the server saw it."""

_FILES: Mapping[str, bytes] = {
    PEER_SCRIPT: b'#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%s\\n" "$REMOTE_ADDR"\n',
}
_DIRECTORIES = ("bin", "dev", "etc", "proc", "sys", "tmp", "www", "www/cgi-bin")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MEDIA = "application/vnd.oci.image"


def build(path: Path) -> str:
    """Writes the image to ``path``.

    Returns:
        The reference it has once a runtime has loaded it.

    Raises:
        LabFailure: there is no busybox, or a machine whose images have no name we know.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise LabFailure(f"no image for {machine}: only for {', '.join(_ARCHITECTURES)}")
    try:
        busybox = BUSYBOX.read_bytes()
    except FileNotFoundError:
        raise LabFailure(
            f"{BUSYBOX} is missing; on Debian: apt-get install busybox-static"
        ) from None
    platform = {"architecture": _ARCHITECTURES[machine], "os": "linux"}
    layer = _layer(busybox)
    config = _json(
        {
            **platform,
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor("config.v1+json", config),
            "layers": [_descriptor("layer.v1.tar", layer)],
        }
    )
    names = {
        # containerd takes the first, podman the second.
        "io.containerd.image.name": REFERENCE,
        "org.opencontainers.image.ref.name": REFERENCE,
    }
    entry = {
        **_descriptor("manifest.v1+json", manifest),
        "platform": platform,
        "annotations": names,
    }
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _json({"schemaVersion": 2, "manifests": [entry]}))
        for blob in (layer, config, manifest):
            _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
    return REFERENCE


def _layer(busybox: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in _DIRECTORIES:
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        _add(archive, "bin/busybox", busybox, mode=0o755)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        for name, content in _FILES.items():
            _add(archive, name, content, mode=0o755)
    return stream.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode("ascii")


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": _digest(blob), "size": len(blob)}
