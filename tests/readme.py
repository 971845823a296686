"""The README's examples, taken out of it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _snippets(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def python_snippets() -> list[str]:
    """Return the README's Python examples, in order."""
    return _snippets("python")


def commands() -> list[list[str]]:
    """Return the README's shell commands, split into words, comments dropped."""
    lines = "".join(_snippets("bash")).replace("\\\n", " ").splitlines()
    words = [line.split("#")[0].split() for line in lines]
    return [command for command in words if command]
