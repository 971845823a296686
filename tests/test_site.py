"""The pages of docs/ as `make docs` builds them: no warning, nothing from elsewhere, every key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from pipeline.config import known_keys
from tests.documents import ROOT, text_of

_LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "link": "href",
}
_NOT_LOADED = {"canonical", "prev", "next", "alternate"}


class Page(HTMLParser):
    """Collects what a page loads, and the ids in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.ids: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if tag in _LOADING and found.get("rel") not in _NOT_LOADED:
            self.loaded.add(found.get(_LOADING[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built site."""
    target = tmp_path_factory.mktemp("site")
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert not re.search(r"WARNING|ERROR", found.stderr), found.stderr
    return target


def test_make_docs_is_what_is_tested():
    assert "mkdocs build --strict" in text_of("Makefile")


def test_every_page_is_there_and_in_the_navigation(site: Path):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} == {*pages, "404"}
    start = (site / "index.html").read_text(encoding="utf-8")
    assert {page for page in pages if f'href="{page}.html"' in start} == pages


def test_pages_load_nothing_from_elsewhere(site: Path):
    for path in site.glob("*.html"):
        page = Page(path)
        for one in page.loaded:
            assert not re.match(r"(https?:)?//", one), f"{path.name} loads {one}"
            if one and path.name != "404.html" and not one.startswith("data:"):
                assert (path.parent / one.partition("#")[0]).exists(), f"{path.name}: {one}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text(encoding="utf-8"))


def test_every_key_has_a_row_with_its_type_and_line(site: Path):
    page = Page(site / "configuration.html")
    assert set(known_keys()) <= page.ids
    for key in known_keys():
        (row,) = re.findall(rf'<tr>\s*<td><code id="{re.escape(key)}">.*?</tr>', page.text, re.S)
        _, kind, _, line = (
            re.sub("<[^>]+>", "", one) for one in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
        )
        assert kind.strip(), key
        assert line.strip(), key
    assert "&lt;!-- every key" not in page.text


def test_the_reference_is_of_the_code(site: Path):
    page = Page(site / "api.html")
    for name in (
        "pipeline.align.Aligner.transform",
        "pipeline.align.AnisoAlign.fit",
        "pipeline.readers.SubstituteDataset.state_after",
        "pipeline.readers.SubstituteLookup.lookup",
        "pipeline.encoders.OpenClipEncoder.encode_texts",
        "pipeline.config.load_config",
    ):
        assert name in page.ids, name
    assert "substitute image embeddings (n, d)" in page.text


def test_scripts_stand_in_their_page(site: Path):
    text = re.sub("<[^>]+>", "", (site / "examples.html").read_text(encoding="utf-8"))
    for script in (ROOT / "docs/examples").glob("*.py"):
        assert script.read_text(encoding="utf-8").splitlines()[-1] in text


def test_nothing_is_fetched_by_the_build():
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, whose tags name Python objects."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    settings = yaml.load(text_of("mkdocs.yml"), Loader)
    assert settings["strict"] is True
    assert settings["theme"]["font"] is False
    assert "repo_url" not in settings  # its stars would be asked for by every reader's browser
