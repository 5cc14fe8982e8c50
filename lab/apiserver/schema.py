"""Structural schemas for the API double: pruning, defaults and validation from our own CRDs.

CEL rules (x-kubernetes-validations) are not evaluated: the real kube-apiserver does that, under the
same contract suite.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parents[2] / "manifests" / "crds"


class Invalid(Exception):
    """The object breaks its schema; the sentence names the field."""


class Schema:
    """One kind's openAPIV3Schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        import jsonschema

        # OpenAPI 3.0 has draft 4's booleans exclusiveMinimum and exclusiveMaximum.
        self._validator = jsonschema.Draft4Validator(_plain(schema))

    def admit(self, document: dict[str, Any]) -> dict[str, Any]:
        """The object as it would be stored. Raises Invalid."""
        outside: dict[str, Any] = {
            key: document[key] for key in ("apiVersion", "kind", "metadata") if key in document
        }
        inside = copy.deepcopy({k: v for k, v in document.items() if k not in outside})
        inside = _defaulted(self._schema, _pruned(self._schema, inside))
        for error in self._validator.iter_errors({**inside, **_named(outside)}):
            path = ".".join(str(part) for part in error.absolute_path)
            raise Invalid(f"{path}: {error.message}")
        return {**outside, **inside}


def _named(outside: Mapping[str, Any]) -> dict[str, Any]:
    metadata = outside.get("metadata") or {}
    return {**outside, "metadata": {"name": metadata.get("name")}}


def load_schemas(directory: Path = CRDS) -> dict[str, Schema]:
    """The schema of each kind that has a CRD in a directory; none when there is no directory.

    And none where ``jsonschema`` is not installed, which only tests need.
    """
    found: dict[str, Schema] = {}
    if importlib.util.find_spec("jsonschema") is None:
        return found
    for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else []:
        for document in yaml.safe_load_all(path.read_text()):
            if not document or document.get("kind") != "CustomResourceDefinition":
                continue
            version = document["spec"]["versions"][0]
            found[document["spec"]["names"]["kind"]] = Schema(version["schema"]["openAPIV3Schema"])
    return found


def _plain(schema: Any) -> Any:
    """The schema without what JSON Schema does not know, and with what OpenAPI spells otherwise."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: _plain(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("nullable", "format", "default")
    }
    if schema.get("x-kubernetes-int-or-string"):
        plain["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(plain.get("type"), str):
        plain["type"] = [plain["type"], "null"]
    return plain


def _pruned(schema: Mapping[str, Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_pruned(schema.get("items") or {}, each) for each in value]
    properties, extra = schema.get("properties"), schema.get("additionalProperties")
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return value
    if isinstance(extra, dict):
        return {key: _pruned(extra, each) for key, each in value.items()}
    if properties is None:
        return value
    return {key: _pruned(properties[key], each) for key, each in value.items() if key in properties}


def _defaulted(schema: Mapping[str, Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_defaulted(schema.get("items") or {}, each) for each in value]
    if not isinstance(value, dict):
        return value
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        return {key: _defaulted(extra, each) for key, each in value.items()}
    result = dict(value)
    for key, inner in (schema.get("properties") or {}).items():
        if result.get(key) is None and "default" in inner:
            result[key] = copy.deepcopy(inner["default"])
        if key in result:
            result[key] = _defaulted(inner, result[key])
    return result
