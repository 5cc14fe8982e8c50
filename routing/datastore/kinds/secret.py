"""Secret: a v1 Secret, as far as BGP passwords are in it. Pure.

Nothing here ever shows a value: errors say ``***`` in its place, and so does the document that is
shown to people. Only the store's own form holds the texts.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from routing.datastore.fields import Fields, Malformed, parse_name
from routing.datastore.snapshot import Meta, Password, SecretKeyRef, SecretResource

HIDDEN = "***"
"""What stands for a value. Not base64, so that a document with it cannot be applied by mistake."""
LENGTH_MAX_BYTES = 80
"""As long as Linux takes a key of TCP-MD5 (TCP_MD5SIG_MAXKEYLEN)."""
KEYS_MAX = 256
KEY_PATTERN = "[-._a-zA-Z0-9]{1,253}"

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""The annotation in which kubectl keeps the whole document it applied, passwords and all."""
NOT_OPTIONAL = "must be false: slash32 does not speak to a peer without the password it should have"

_KEY = re.compile(KEY_PATTERN)


def parse_key(value: object) -> str:
    """A key of a Secret. Raises Malformed."""
    if isinstance(value, str) and _KEY.fullmatch(value):
        return value
    raise Malformed("must be a Secret's key: letters, digits, hyphens, dots or _, at most 253")


def parse_password(value: bytes) -> Password:
    """A password from a Secret's value.

    Raises:
        Malformed: it cannot be one; the sentence does not hold the value.
    """
    if not 1 <= len(value) <= LENGTH_MAX_BYTES:
        raise Malformed(f"must have 1 to {LENGTH_MAX_BYTES} bytes, as TCP-MD5 allows")
    if value.endswith(b"\n"):
        raise Malformed("ends with a line end, which the router's has not; write it with printf")
    if not all(0x20 <= byte <= 0x7E for byte in value):
        raise Malformed("must be printable ASCII")
    return Password(value.decode("ascii"))


def read_password_ref(owner: Fields, key: str) -> SecretKeyRef | None:
    """``{secretKeyRef: {name, key}}`` under a field, or None when it is absent.

    Raises:
        InvalidResource: names the field, the value and the rule.
    """
    if not owner.has(key):
        owner.known(key)
        return None
    # Hidden: who writes the password itself here shall not find it in a log.
    password = owner.section(key, hides=True)
    ref = password.section("secretKeyRef", is_required=True)
    found = SecretKeyRef(
        ref.parsed("name", ref.take("name"), parse_name),
        ref.parsed("key", ref.take("key"), parse_key),
    )
    ref.only("optional", (False,), NOT_OPTIONAL)
    ref.done()
    password.done()
    return found


def password_ref_document(ref: SecretKeyRef) -> dict[str, Any]:
    """What ``read_password_ref`` reads back."""
    return {"secretKeyRef": {"name": ref.name, "key": ref.key}}


def read(meta: Meta, document: Fields) -> SecretResource:
    """A Secret from the top of its document: ``data`` in base64, ``stringData`` as it is.

    As in Kubernetes, stringData wins. ``type`` and ``immutable`` are Kubernetes' own and not kept.

    Raises:
        InvalidResource: a key or value cannot be a password's; the value is not repeated.
    """
    document.text("type", "")
    document.flag("immutable", default=False)
    passwords: dict[str, Password] = {}
    for field, decode in (("data", _decoded), ("stringData", _encoded)):
        values = document.section(field)
        if len(values.values) > KEYS_MAX:
            raise document.error(field, HIDDEN, f"must have at most {KEYS_MAX} keys")
        for key, value in values.values.items():
            try:
                passwords[parse_key(key)] = parse_password(decode(value))
            except Malformed as error:
                raise values.error(key, HIDDEN, str(error)) from None
    annotations = {k: v for k, v in meta.annotations.items() if k != LAST_APPLIED}
    return SecretResource(replace(meta, annotations=annotations), passwords)


def _decoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise Malformed("must be text in base64")
    try:
        return base64.b64decode(re.sub(r"[\r\n]", "", value).encode(), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("must be text in base64") from None


def _encoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise Malformed("must be text")
    return value.encode("utf-8", "replace")


def content(passwords: Mapping[str, Password], *, with_secrets: bool) -> dict[str, Any]:
    """The document's part beside metadata: real only when the store itself asks for it."""
    if with_secrets:
        return {"stringData": {key: value.reveal() for key, value in passwords.items()}}
    return {"data": dict.fromkeys(passwords, HIDDEN)}
