"""Build the documentation's site as `make docs` does: dead links, missing anchors and pages outside of the nav fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import yaml

from tests.pages import REPOSITORY

pytest.importorskip("mkdocs", reason="needs the extra docs")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    site = tmp_path_factory.mktemp("site")
    done = build(REPOSITORY / "mkdocs.yml", site)
    assert done.returncode == 0, done.stderr[-4000:]
    return site


def test_every_page_is_built_and_every_link_leads_to_a_file(site):
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for page in site.glob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?]+)["#?]', page.read_text()):
            if not re.match(r"[a-z]+:|//|/", link) and page.name != "404.html":
                assert (page.parent / unescape(link)).exists(), f"{page.name}: {link}"


def test_no_page_loads_anything_from_another_server(site):
    for page in site.glob("*.html"):
        assert (
            re.findall(r'<(?:script|img|iframe)[^>]* src="https?:|<link[^>]*stylesheet[^>]*https?:', page.read_text())
            == []
        )


def test_the_api_reference_has_the_docstrings(site):
    text = (site / "api.html").read_text()
    for name in ("m2h_deploy.Runtime.submit", "engines.build.build_bundle", "m2h_deploy.parity.verify.verify"):
        assert f'id="{name}"' in text


def build_page(folder: Path, *links: str) -> subprocess.CompletedProcess[str]:
    """Build one page of these links with the site's hook and rules, without its plugins."""
    settings = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), yaml.UnsafeLoader)
    (folder / "docs").mkdir(parents=True)
    text = "\n".join(f"[a link]({link})" for link in links)
    (folder / "docs" / "page.md").write_text(f"# Page\n\n## A heading: `C++`\n\n{text}\n")
    kept = {name: settings[name] for name in ("validation", "use_directory_urls", "markdown_extensions")}
    config = {"site_name": "x", "hooks": [str(REPOSITORY / "docs" / "links.py")], "plugins": [], **kept}
    (folder / "mkdocs.yml").write_text(yaml.dump(config))
    return build(folder / "mkdocs.yml", folder / "site")


def test_links_of_pages_are_checked_and_files_outside_of_docs_become_pages(tmp_path):
    done = build_page(tmp_path / "good", "../README.md", "page.md#a-heading-c")
    assert done.returncode == 0, done.stderr
    assert "m2h-deploy" in (tmp_path / "good" / "site" / "files" / "README.md.html").read_text()
    done = build_page(tmp_path / "bad", "missing.md", "../missing.py", "page.md#missing")
    assert done.returncode == 1
    assert len(re.findall(r"link '(?:missing.md|../missing.py|page.md#missing)'", done.stderr)) == 3
