"""What README.md and the pages of docs/ hold: examples, commands, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from pipeline.cli import cli
from pipeline.config import known_keys

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

_FENCE = r"^```{language}[^\n]*\n(.*?)^```"
_ANY_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: str) -> str:
    """Return a page of the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def snippets(page: str, language: str) -> list[str]:
    """Return a page's examples in a language, in order."""
    pattern = _FENCE.format(language=language)
    return re.findall(pattern, text_of(page), flags=re.MULTILINE | re.DOTALL)


def shell_lines(page: str) -> list[str]:
    """Return the lines of a page's shell examples, continued ones joined."""
    joined = "".join(snippets(page, "bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def inline(page: str) -> list[str]:
    """Return what stands between backticks in a page's prose."""
    prose = _ANY_FENCE.sub("", text_of(page))
    return [" ".join(one.split()) for one in _INLINE.findall(prose)]


def commands(page: str) -> list[list[str]]:
    """Return a page's `anisoalign` commands split into words, those of its prose too."""
    lines = [line.split("2>>")[0] for line in (*shell_lines(page), *inline(page))]
    found = [line.removeprefix(".venv/bin/") for line in lines]
    return [
        shlex.split(line, comments=True)
        for line in dict.fromkeys(found)
        if line.startswith("anisoalign ")
    ]


def links(page: str) -> list[str]:
    """Return where a page's links and pictures lead."""
    return _LINK.findall(_ANY_FENCE.sub("", text_of(page)))


def anchors(page: str) -> set[str]:
    """Return the anchors that a page's headings have."""
    headings = re.findall(r"^#+ (.+)$", _ANY_FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in headings}


def problem(words: list[str]) -> str | None:
    """Return what is wrong with an `anisoalign` command line, None if nothing is."""
    node: Any = cli
    rest = words[1:]
    while isinstance(node, click.Group):
        if not rest:
            return f"{node.name} takes a command and arguments, not 0"
        if rest == ["--help"]:
            return None
        if rest[0] not in node.commands:
            return f"{rest[0]} is no command of {node.name}"
        node, rest = node.commands[rest[0]], rest[1:]
    options = {
        name: one
        for one in node.params
        if isinstance(one, click.Option)
        for name in (*one.opts, *one.secondary_opts)
    }
    given = 0
    while rest:
        word, rest = rest[0], rest[1:]
        if not word.startswith("-"):
            given += 1
        elif word not in options:
            return f"{word} is no option of {node.name}"
        elif not options[word].is_flag:
            if not rest:
                return f"{word} needs a value"
            if word == "--set" and rest[0].partition("=")[0] not in {*known_keys(), "KEY"}:
                return f"{rest[0]}: no such key"
            rest = rest[1:]
    arguments = [one for one in node.params if isinstance(one, click.Argument)]
    needed = sum(one.required for one in arguments)
    most = float("inf") if any(one.nargs == -1 for one in arguments) else len(arguments)
    if not needed <= given <= most:
        return f"{node.name} takes {needed} to {most} arguments, not {given}"
    return None
