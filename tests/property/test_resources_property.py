"""Resources: round trips, and arbitrary documents raise InvalidResource or nothing."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.datastore.documents import dump
from routing.datastore.resources import from_document, parse_resources, to_document
from routing.datastore.snapshot import InvalidResource, SecretResource
from tests.property.resources_strategies import resources, secrets, texts

CASES = {"round trip": 0, "any document": 0, "grafted": 0, "secret": 0, "any text": 0}
FLOOR = 150


@settings(max_examples=200, deadline=None)
@given(resource=resources)
def test_a_resource_survives_document_yaml_and_json(resource):
    """Equal after each way round."""
    CASES["round trip"] += 1
    document = to_document(resource, with_secrets=True)
    assert from_document(document) == resource
    assert parse_resources(dump([document]), source="f") == [resource]
    assert parse_resources(json.dumps(document), source="f") == [resource]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**33)
    | st.floats()
    | st.sampled_from(["10.0.0.0/24", "192.0.2.1", "all()", "9s", "default", "pending", "host:n"])
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
FIELDS = {
    "IPPool": ["cidr", "blockSize", "disabled", "nodeSelector", "ipipMode", "natOutgoing",
               "allowedUses", "assignmentMode", "namespaceSelector", "disableBGPExport"],
    "BGPPeer": ["peerIP", "asNumber", "node", "nodeSelector", "holdTime", "keepaliveTime",
                "peerSelector", "password", "sourceAddress", "filters", "export", "maxPrefixes",
                "maxPrefixAction", "ttlSecurity", "multihopTTL", "nextHopMode", "reachableBy"],
    "BGPFilter": ["exportV4", "importV4", "exportV6", "importV6"],
    "Node": ["addresses", "bgp"],
    "BGPConfiguration": ["asNumber", "listenPort", "importAllow", "communities", "bindMode",
                         "prefixAdvertisements", "nodeMeshPassword", "meshFilters"],
    "Block": ["cidr", "pool", "affinity", "state"],
}  # fmt: skip
TOP = {
    "NodeStatus": ["version", "observedAt", "peers", "routes", "addresses", "conditions"],
    "Secret": ["a", "b"],
}


@st.composite
def damaged(draw):
    """A document with the right outline and anything in its fields."""
    kind = draw(st.sampled_from([*FIELDS, *TOP]))
    fields = {**FIELDS, **TOP}[kind]
    body = draw(st.dictionaries(st.sampled_from(fields) | texts, junk, max_size=5) | junk)
    metadata = draw(
        st.fixed_dictionaries(
            {"name": st.just("default") | junk},
            optional={"labels": junk, "annotations": junk, "uid": junk, "generation": junk},
        )
        | junk
    )
    version = "v1" if kind == "Secret" else "slash32.io/v1"
    where = draw(st.sampled_from(["data", "stringData"])) if kind == "Secret" else "spec"
    where = "status" if kind == "NodeStatus" else where
    document = {"apiVersion": version, "kind": kind, "metadata": metadata, where: body}
    for key in draw(st.sets(st.sampled_from(list(document)), max_size=1)):
        document[key] = draw(junk)
    return document


@settings(max_examples=200, deadline=None)
@given(one=resources, other=resources, data=st.data())
def test_a_document_with_a_part_of_another_is_read_or_refused(one, other, data):
    """Whole sections swapped between resources: deeper than junk ever gets."""
    CASES["grafted"] += 1
    document: dict[str, Any] = json.loads(json.dumps(to_document(one, with_secrets=True)))
    graft = json.loads(json.dumps(to_document(other, with_secrets=True)))
    target, source = (_mappings(each) for each in (document, graft))
    into = data.draw(st.sampled_from(target))
    into.update(data.draw(st.sampled_from(source)))
    resource = None
    sentence = ""
    try:
        resource = from_document(document)
    except InvalidResource as error:
        sentence = str(error)
    else:
        assert from_document(to_document(resource, with_secrets=True)) == resource
    assert len(sentence.splitlines()) == (resource is None)


def _mappings(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [each for item in value for each in _mappings(item)]
    if isinstance(value, dict):
        return [value, *(each for item in value.values() for each in _mappings(item))]
    return []


@settings(max_examples=200, deadline=None)
@given(secret=secrets.filter(lambda each: each.passwords), key=texts, junk_value=texts)
def test_nothing_that_is_shown_holds_a_password(secret: SecretResource, key, junk_value):
    """Not the document, not the value's repr, and no refusal of a document that holds it."""
    CASES["secret"] += 1
    marked = {name: f"hunter2{text.reveal()}"[:80] for name, text in secret.passwords.items()}
    document = to_document(secret, with_secrets=True) | {"stringData": marked}
    whole = from_document(document)
    shown = [json.dumps(to_document(whole)), repr(whole), str(whole)]
    for damage in (
        {"stringData": list(marked.values())},
        {"stringData": marked | {key + " ": "hunter2"}},
        {"stringData": marked | {"a": "hunter2\n"}},
        {"stringData": marked | {"a": "hunter2" * 12}},
        {"stringData": {}, "data": marked},
        {"stringdata": marked},
        {"kind": "secret"},
        {"kind": "Node", "apiVersion": "slash32.io/v1"},
        {"metadata": {"name": "x", "annotations": {key + " ": "hunter2"}}},
        {"metadata": {"name": "x", "labels": {"a": "hunter2 " + junk_value}}},
    ):
        try:
            shown.append(repr(from_document(document | damage)))
        except InvalidResource as error:
            shown.append(str(error) + repr(error.args) + repr(vars(error)))
    assert not any("hunter2" in each for each in shown)


@settings(max_examples=400, deadline=None)
@given(document=damaged())
def test_any_document_is_a_resource_or_an_invalid_resource(document):
    """Nothing else is raised; what is accepted is written back and read again alike."""
    CASES["any document"] += 1
    resource = None
    try:
        resource = from_document(document)
    except InvalidResource as error:
        sentence = str(error)
    else:
        sentence = ""
        assert from_document(to_document(resource, with_secrets=True)) == resource
    assert (resource is None) == bool(sentence)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            ["a", ": ", "\n", "- ", "  ", "{", "}", "[", "]", "&x", "*x", "!!set", "'", '"', "|",
             "---\n", "kind: ", "IPPool", "List", "items: ", "? ", "#", "\t", "<<", "\u2028"]
        ),
        max_size=20,
    ).map("".join)
)  # fmt: skip
def test_any_text_is_resources_or_an_invalid_resource(text):
    """Nothing else is raised, and no error is longer than a line."""
    CASES["any text"] += 1
    sentence = ""
    try:
        parse_resources(text, source="f")
    except InvalidResource as error:
        sentence = str(error)
    assert len(sentence.splitlines()) == 1


def test_enough_cases_ran():
    """A property test that ran nothing proves nothing."""
    assert all(count >= FLOOR for count in CASES.values()), CASES
