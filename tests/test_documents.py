"""What README.md and docs/ say, exists: commands, options, keys, files, links; Python is sound."""

from __future__ import annotations

import itertools
import re
import runpy
from pathlib import Path

import pytest

from pipeline.config import known_keys, load_config
from tests.documents import (
    PAGES,
    ROOT,
    anchors,
    commands,
    inline,
    links,
    problem,
    shell_lines,
    snippets,
    text_of,
)

COMMANDS = [(page, words) for page in PAGES for words in commands(page)]
_SECTIONS = {key.partition(".")[0] for key in known_keys() if "." in key}
_FILES = (".md", ".json", ".yaml", ".py", ".parquet", ".safetensors", ".npz", ".npy", ".txt")


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS]
)
def test_commands_and_options_exist(page: str, words: list[str]):
    # Prose names some commands in passing, without their arguments.
    found = problem(words)
    assert found is None or ("arguments, not 0" in found and " ".join(words) in inline(page))


def test_there_are_commands_of_every_group():
    told = {words[1] for _, words in COMMANDS}
    assert {"demo", "run", "nightly", "plan", "verify", "versions", "gc", "rollback"} <= told
    assert {"export", "evaluate", "bench", "config", "encode", "fit", "synthesize"} <= told


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("anisoalign nigthly CONFIG", "nigthly is no command"),
        ("anisoalign versions lst DATASET", "lst is no command"),
        ("anisoalign gc DATASET --kep 7", "--kep is no option"),
        ("anisoalign rollback DATASET", "takes 2 to 2 arguments, not 1"),
        ("anisoalign run CONFIG --set nightly.on_drfit=warn", "no such key"),
    ],
)
def test_a_wrong_command_is_found(line: str, found: str):
    assert found in (problem(line.split()) or "")


def test_configurations_validate_with_their_settings():
    checked = 0
    for _, words in COMMANDS:
        configs = [word for word in words if word.startswith("configs/")]
        settings = [after for word, after in itertools.pairwise(words) if word == "--set"]
        if len(configs) == 1 and not any("…" in setting for setting in settings):
            load_config(ROOT / configs[0], settings)  # raises with what is wrong
            checked += 1
    assert checked >= 15, "hardly a command names a configuration"


@pytest.mark.parametrize("page", PAGES)
def test_configuration_keys_exist(page: str):
    found = {
        match[1]
        for one in inline(page)
        if (match := re.match(r"([a-z_]+(?:\.[a-z0-9_]+)+)(?=$|[:=])", one))
        and match[1].partition(".")[0] in _SECTIONS
        and not match[1].endswith(_FILES)
    }
    assert found <= set(known_keys())


@pytest.mark.parametrize("page", PAGES)
def test_files_make_targets_and_jobs_exist(page: str):
    words = " ".join([*shell_lines(page), *inline(page)]).split()
    named = {one for one in words if re.fullmatch(r"(configs|jobs|docs)/[\w/.-]+\w", one)}
    assert [one for one in sorted(named) if not (ROOT / one).exists()] == []
    makefile = text_of("Makefile")
    makes = [line.split()[1] for line in (*shell_lines(page), *inline(page)) if line[:5] == "make "]
    for target in makes:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_readme_names_both_commands_and_its_picture_s():
    lines = "\n".join(shell_lines("README.md"))
    assert re.search(r"^make demo\b", lines, re.MULTILINE)
    assert re.search(r"^make test\b", lines, re.MULTILINE)
    assert "docs/images/clouds.png" in links("README.md")
    assert "make figures" in inline("README.md")


def test_pictures_are_those_that_make_figures_draws():
    from pipeline.report.figures import FIGURE_NAMES

    (drawn,) = re.findall(r"^FIGURES := (.+)$", text_of("Makefile"), re.MULTILINE)
    assert set(drawn.split()) <= FIGURE_NAMES
    assert {path.name for path in (ROOT / "docs/images").iterdir()} == {
        f"{name}.png" for name in drawn.split()
    }
    shown = {Path(link).name for page in PAGES for link in links(page) if link.endswith(".png")}
    assert shown == {f"{name}.png" for name in drawn.split()}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str):
    for link in links(page):
        if re.match(r"https://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("page", PAGES)
def test_python_is_sound_and_its_imports_are_ours(page: str):
    for snippet in snippets(page, "python"):
        if not snippet.startswith("--8<--"):
            compile(snippet, page, "exec")
            for line in re.findall(r"^from pipeline.*$", snippet, flags=re.MULTILINE):
                exec(line, {})


def test_the_page_of_scripts_shows_all_of_them():
    scripts = {path.name for path in (ROOT / "docs/examples").glob("*.py")}
    shown = set(re.findall(r'^--8<-- "examples/(\w+\.py)"$', text_of("docs/examples.md"), re.M))
    assert shown == scripts
    run = {word for line in shell_lines("docs/examples.md") for word in line.split()}
    assert {f"docs/examples/{name}" for name in scripts} <= run


def test_the_readme_s_corpus_is_read_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tests.readers.samples import write_dataset

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    write_dataset("runs/local/dataset", [20])
    (snippet,) = snippets("README.md", "python")
    Path("example.py").write_text(snippet)
    corpus = runpy.run_path("example.py")["corpus"]
    assert len(corpus) == 20
