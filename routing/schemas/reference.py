"""docs/resources.md: every field of every resource, from the definitions themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

HEAD = """# Resources

Every field of every resource, written by `make manifests` from the custom resource definitions in
`manifests/crds/`; change it in `routing/schemas/`. Unknown fields are refused by `kubectl` (strict
validation) and by `slash32 apply`. Field names and meanings are Calico v3's where the meaning is
the same, so that a Calico user's IPPool, BGPPeer, BGPFilter and BGPConfiguration apply with only
`apiVersion` changed; what Calico has and slash32 does not is in the table with the sentence it is
refused with. `slash32 migrate from-calico --dry-run` translates and names what is lost.

What no schema can judge, the agents do: pools that overlap, selectors that cannot be parsed,
filters and Secrets that are not there.
"""
CONDITIONS = "conditions"


def reference(definitions: Sequence[Document]) -> str:
    """The whole page."""
    kinds = [definition["spec"]["names"]["kind"] for definition in definitions]
    contents = ", ".join(f"[{kind}](#{kind.lower()})" for kind in kinds)
    parts = [HEAD, f"{contents}, [conditions](#conditions-of-every-status)\n"]
    parts += [_kind(definition) for definition in definitions]
    conditions = _schema(definitions[0])["properties"]["status"]["properties"][CONDITIONS]
    parts.append(
        "## Conditions of every status\n\n"
        + _table(_rows({"properties": {CONDITIONS: conditions}}, "status.", is_cut=False))
    )
    return "\n".join(parts)


def _schema(definition: Document) -> Document:
    found: Document = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def _kind(definition: Document) -> str:
    names, schema = definition["spec"]["names"], _schema(definition)
    version = definition["spec"]["versions"][0]
    short = ", ".join(f"`{each}`" for each in names["shortNames"])
    columns = "\n".join(
        f"- **{each['name'].upper()}**{' (with `-o wide`)' if each.get('priority') else ''}: "
        f"{each['description']} (`{each['jsonPath']}`)"
        for each in version["additionalPrinterColumns"]
    )
    text = (
        f"## {names['kind']}\n\n{schema['description']}\n\n"
        f"`{definition['spec']['group']}/{version['name']}`, cluster-scoped; "
        f"`kubectl get {names['plural']}` (short: {short}) shows:\n\n{columns}\n"
    )
    rules = [each["message"] for each in schema.get("x-kubernetes-validations", [])]
    if rules:
        text += "\n" + "\n".join(f"{_sentence(each)}" for each in rules) + "\n"
    for part in ("spec", "status"):
        if part in schema["properties"]:
            inner = schema["properties"][part]
            is_needed = part in schema.get("required", [])
            text += f"\n### {names['kind']}: {part}\n\n{inner['description']}"
            text += " Required.\n" if is_needed else "\n"
            for rule in inner.get("x-kubernetes-validations", []):
                text += f"\n- {_sentence(rule['message'])}"
            text += "\n\n" if inner.get("x-kubernetes-validations") else "\n"
            text += _table(_rows(inner, f"{part}."))
    return text


def _table(rows: Iterator[Sequence[str]]) -> str:
    head = "| field | type | default | meaning and limits |\n|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _rows(schema: Document, prefix: str, *, is_cut: bool = True) -> Iterator[Sequence[str]]:
    required = schema.get("required", [])
    for key, node in (schema.get("properties") or {}).items():
        path = f"{prefix}{key}"
        if key == CONDITIONS and is_cut:
            link = "See [conditions](#conditions-of-every-status)."
            yield f"`{path}[]`", "list", "", link
            continue
        default = f"`{_json(node['default'])}`" if "default" in node else ""
        yield f"`{path}`", _type(node), default, _meaning(node, is_required=key in required)
        yield from _inside(node, path, is_cut=is_cut)


def _inside(node: Document, path: str, *, is_cut: bool) -> Iterator[Sequence[str]]:
    items = node.get("items")
    if items is None:
        yield from _rows(node, f"{path}.", is_cut=is_cut)
    elif items.get("properties"):
        rules = [_sentence(each["message"]) for each in items.get("x-kubernetes-validations", [])]
        told = " ".join([items["description"], *rules])
        yield f"`{path}[]`", _type(items), "", _cell(told + _count_of_properties(items))
        yield from _rows(items, f"{path}[].", is_cut=is_cut)
    elif items.get("description"):
        yield f"`{path}[]`", _type(items), "", _meaning(items, is_required=False)


def _count_of_properties(schema: Document) -> str:
    return " Exactly one of its fields." if schema.get("maxProperties") == 1 else ""


def _type(node: Document) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "integer or text"
    names = {"string": "text", "boolean": "true or false", "array": "list", "object": "mapping"}
    return names.get(str(node["type"]), str(node["type"]))


def _meaning(node: Document, *, is_required: bool) -> str:
    parts = [node["description"]]
    if is_required:
        parts.append("Required.")
    if "enum" in node:
        parts.append(f"One of {', '.join(f'`{each}`' for each in node['enum'])}.")
    if "minimum" in node and "maximum" in node:
        parts.append(f"From {node['minimum']} to {node['maximum']}.")
    if "maxItems" in node and node["maxItems"] > 0:
        least = f"{node['minItems']} to " if node.get("minItems") else "at most "
        parts.append(f"It has {least}{node['maxItems']} items.")
    if node.get("x-kubernetes-list-type") == "set":
        parts.append("None twice.")
    if node.get("x-kubernetes-list-type") == "map":
        parts.append(f"No `{node['x-kubernetes-list-map-keys'][0]}` twice.")
    is_told = any(_is_said(each, node) for each in _messages(node))
    if node.get("type") == "string" and "maxLength" in node and not is_told:
        parts.append(f"At most {node['maxLength']} characters.")
    parts += [_sentence(each) for each in _together(_messages(node)) if not _is_said(each, node)]
    return _cell(" ".join(parts))


def _messages(node: Document) -> list[str]:
    found = [each["message"] for each in node.get("x-kubernetes-validations", [])]
    return list(dict.fromkeys(found))


def _is_said(message: str, node: Document) -> bool:
    """Of a field that is refused, or taken with one value alone: its description is the rule."""
    return message.lower() in node["description"].lower()


def _sentence(message: str) -> str:
    """With a capital, unless it begins with a name that has its own spelling."""
    first = message.split(maxsplit=1)[0]
    is_name = first.startswith("slash32") or not first.isalpha() or first.lower() != first
    return f"{message}." if is_name else f"{message[0].upper()}{message[1:]}."


def _together(messages: Sequence[str]) -> list[str]:
    """Rules that begin alike (``must not reach into ...``) in one sentence."""
    found: list[str] = []
    for message in messages:
        head = " ".join(message.split()[:4])
        if found and len(message.split()) > 4 and found[-1].startswith(f"{head} "):
            found[-1] += f", {message.removeprefix(head).strip()}"
        else:
            found.append(message)
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _json(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
