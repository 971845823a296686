"""What docs/trainers.md says, exists: its commands, and its Python runs as far as it is ours."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.readme import ROOT
from tests.test_operations import problem

TEXT = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
_SHELL = "".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")
COMMANDS = [
    shlex.split(line, comments=True)
    for line in dict.fromkeys([*_SHELL.splitlines(), *re.findall(r"`(anisoalign [^`\n]+)`", TEXT)])
    if line.startswith("anisoalign ")
]
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_export_is_told_of():
    assert any(words[1] == "export" for words in COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_and_options_exist(words: list[str]):
    # Some name a command in passing, without its arguments.
    found = problem(words)
    assert found is None or "arguments, not 0" in found


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split("\n")[0])
def test_python_is_sound_and_its_imports_are_ours(snippet: str):
    compile(snippet, "docs/trainers.md", "exec")
    for line in re.findall(r"^from pipeline.*$", snippet, flags=re.MULTILINE):
        exec(line, {})
