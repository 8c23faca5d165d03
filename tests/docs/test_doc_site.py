"""The site builds without a warning, its links lead somewhere, its pictures are new."""

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from doc_names import ROOT

SITE_MODULES = ("mkdocs", "material", "mkdocstrings")


class _Links(html.parser.HTMLParser):
    """Collects what a page links to, and the anchors in it."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors = [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in SITE_MODULES:
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def parsed(page):
    links = _Links()
    links.feed(page.read_text())
    return links


def test_site_builds_strictly_and_every_link_leads_somewhere(site):
    pages = {page: parsed(page) for page in site.rglob("*.html")}
    assert len(pages) > 20
    broken = []
    for page, found in pages.items():
        for link in found.links:
            address, anchor = urldefrag(link)
            if "://" in address or address.startswith(("mailto:", "data:")):
                continue
            base = site if address.startswith("/") else page.parent
            target = (base / unquote(address).lstrip("/")).resolve()
            target = target if address else page
            if target.is_dir():
                target /= "index.html"
            if page.name == "404.html":
                continue  # its links are the server's
            if not target.exists():
                broken.append(f"{page.name}: {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                broken.append(f"{page.name}: {link} (no such anchor)")
    assert not broken


def test_reference_is_generated_from_docstrings(site):
    text = (site / "reference" / "denoising.html").read_text()
    assert "ul2.denoising.spans.place" in text
    assert "Draws <code>count</code> corruptions" in text
    commands = (site / "reference" / "commands.html").read_text()
    assert "--train_vocab SIZE" in commands and "ul2 convert" in commands
    assert "SPIKE_THRESHOLD" in (site / "reference" / "macros.html").read_text()
    assert "gsm8k_cot" in (site / "reference" / "tasks.html").read_text()


def test_pictures_are_what_the_code_draws(tmp_path):
    script = ROOT / "scripts" / "docs_pictures.py"
    subprocess.run(
        [sys.executable, script, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {p.name: p.read_text() for p in (ROOT / "docs" / "pictures").iterdir()}
    assert kept == drawn, "run scripts/docs_pictures.py"


def test_links_of_the_front_page_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if "://" not in link:
                target = ROOT / Path(urldefrag(link)[0])
                assert target.exists(), f"{page.name}: {link}"
