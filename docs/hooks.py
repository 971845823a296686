"""What mkdocs fills in when it builds: the tables of every configuration key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from typing import Any

from pipeline.config import RunConfig
from pipeline.config.reading import NAME

_MARKER = "<!-- every key -->"
_LONGEST_DEFAULT = 60
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
}

_Node = Mapping[str, Any]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page has the marker."""
    return markdown.replace(_MARKER, configuration_tables()) if _MARKER in markdown else markdown


def configuration_tables() -> str:
    """Return a heading and a table for each section of the configuration, in Markdown."""
    schema = RunConfig.model_json_schema()
    parts = []
    for section, keys in groupby(_keys(schema, schema), key=lambda found: found[0]):
        heading = f"### `{section}`" if section else "### Top level"
        about = _about(schema, section)
        rows = [
            f"| `{name}`{{ #{name} }} | {_type(schema, node)} | {_default(node)} | "
            f"{_cell(node.get('description', ''))} |"
            for _, name, node in keys
        ]
        table = ["| key | type | default | |", "|---|---|---|---|", *rows]
        parts += [heading, about, "\n".join(table)]
    return "\n\n".join(part for part in parts if part)


def _keys(schema: _Node, node: _Node, section: str = "") -> Iterator[tuple[str, str, _Node]]:
    """Yield the section, dotted name and schema of every key, those of a section together."""
    properties = _resolved(schema, node).get("properties", {})
    dotted = f"{section}." if section else ""
    below = {name: child for name, child in properties.items() if _is_section(schema, child)}
    for name, child in properties.items():
        named = child.get("additionalProperties")
        if isinstance(named, Mapping) and _is_section(schema, named):
            below[f"{name}.{NAME}"] = named
    for name, child in properties.items():
        if name not in below:
            yield section, f"{dotted}{name}", child
    for name, child in below.items():
        yield from _keys(schema, child, f"{dotted}{name}")


def _resolved(schema: _Node, node: _Node) -> _Node:
    name = node.get("$ref", "").rpartition("/")[2]
    found: _Node = schema["$defs"].get(name, node)
    return found


def _is_section(schema: _Node, node: _Node) -> bool:
    return "$ref" in node and "properties" in _resolved(schema, node)


def _about(schema: _Node, section: str) -> str:
    """Return the first paragraph of what a section's class says of itself."""
    node = schema
    for name in filter(None, section.split(".")):
        found = _resolved(schema, node)
        below = found["additionalProperties"] if name == NAME else found["properties"][name]
        node = below
    return _resolved(schema, node).get("description", "").partition("\n\n")[0] if section else ""


def _type(schema: _Node, node: _Node) -> str:
    """Return what a value may be, in words."""
    if "anyOf" in node:
        return " or ".join(_type(schema, one) for one in node["anyOf"])
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{one}`" for one in node["enum"])
    if "$ref" in node:
        found = _resolved(schema, node)
        named = ", ".join(f"`{name}`" for name in found.get("properties", {}))
        return f"mapping of {named}" if named else _type(schema, found)
    kind = str(node.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema, node.get('items', {}))}"
    limits = [words.format(node[name]) for name, words in _BOUNDS.items() if name in node]
    return ", ".join([{"object": "mapping"}.get(kind, kind), *limits])


def _default(node: _Node) -> str:
    if "default" not in node:
        return ""
    text = json.dumps(node["default"], ensure_ascii=False)
    if len(text) > _LONGEST_DEFAULT:
        return f"{len(node['default'])} entries" if isinstance(node["default"], list) else "long"
    return f"`{text}`"


def _cell(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
