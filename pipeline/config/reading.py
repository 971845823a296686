"""From YAML and `--set a.b=c` to a validated configuration, and what is said of a wrong one."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.align.settings import PAIRED_METHODS
from pipeline.config.run_config import RunConfig


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key and what to do."""


NAME = "NAME"
"""What stands for a name of the user's own in a dotted key."""


@cache
def known_keys() -> tuple[str, ...]:
    """Return every dotted key of the configuration."""
    root = RunConfig.model_json_schema()
    definitions = root.get("$defs", {})

    def walk(node: Mapping[str, Any], prefix: str) -> Iterable[str]:
        reference = node.get("$ref", "")
        properties = definitions.get(reference.rpartition("/")[2], node).get("properties", {})
        for name, child in properties.items():
            dotted = f"{prefix}{name}"
            named = child.get("additionalProperties")
            if isinstance(named, Mapping):  # sections under names of the user's own
                yield dotted
                yield from walk(named, f"{dotted}.{NAME}.")
                continue
            below = list(walk(child, f"{dotted}."))
            yield from below or [dotted]

    return tuple(walk(root, ""))


def nearest_key(unknown: str) -> str | None:
    """Return the known dotted key closest to an unknown one, None when nothing is near."""
    keys = known_keys()
    section, _, last = unknown.rpartition(".")
    beside = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(last, beside, n=1, cutoff=0.8)
    if near:
        return ".".join(filter(None, (section, near[0])))
    by_name = {key.rpartition(".")[2]: key for key in keys if NAME not in key}
    if last in by_name:  # the right name in the wrong section
        return by_name[last]
    sections = sorted({key.rpartition(".")[0] for key in keys} - {""})
    close = difflib.get_close_matches(unknown, [*keys, *sections], n=1, cutoff=0.6)
    if close:
        return close[0]
    named = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.7)
    return by_name[named[0]] if named else None


_MOVED = {"rejects.truncated": "text.over_long (truncate, split or reject)"}
"""Keys of earlier releases, and what does the same now."""


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location = ".".join(str(part) for part in problem["loc"] if part not in _UNION_TAGS)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = _MOVED.get(location) or nearest_key(location)
            lines.append(f"unknown key {location}" + (f"; did you mean {near}?" if near else ""))
        elif problem["type"] == "value_error":
            # The settings' messages begin with the key, or with their own section and the key.
            above, _, section = location.rpartition(".")
            message = str(problem["ctx"]["error"])
            own = message.startswith((f"{section}.", f"{section} ", f"{section}:"))
            place = above if own else location
            lines.append(f"{place}.{message}" if place else message)
        elif location == "align.method" and problem["input"] in PAIRED_METHODS:
            lines.append(
                f"{location}: {problem['input']} is a diagnostic method that uses pairs; it runs "
                f"in `anisoalign evaluate geometry --methods {problem['input']}` only"
            )
        else:
            lines.append(f"{location}: {problem['msg']}, not {problem['input']!r}")
    return "; ".join(dict.fromkeys(lines))


_UNION_TAGS = frozenset({"int", "float", "str", "literal['auto']", "constrained-int"})


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate plain values; raises ConfigError naming the key and, if unknown, the nearest one."""
    try:
        # Through JSON: strict there still takes a list for a tuple and a mapping for a dataclass.
        return RunConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except TypeError as error:
        raise ConfigError(
            f"the configuration holds a value that is not plain YAML: {error}"
        ) from None


def apply_settings(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return values with `a.b=c` settings laid over them; c is read as YAML.

    Raises:
        ConfigError: for a setting that has no `=`, or a path through something not a section.
    """
    result = copy.deepcopy(values)
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set takes KEY=VALUE, for example align.rank=32, not {setting!r}")
        *sections, last = key.strip().split(".")
        node = result
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {setting}: {section} is a value, not a section")
        try:
            # A glob, which YAML would take for an alias.
            node[last] = value if value.startswith("*") else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting}: the value is not YAML ({error})") from None
    return result


def load_config(path: str | Path, settings: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, lay `--set` settings over it and validate.

    Raises:
        ConfigError: when the file is missing or not a mapping, or a key or value is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not UTF-8 text") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not {type(values).__name__}")
    try:
        return parse_config(apply_settings(values, settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
