"""The documentation site: built as `make docs` builds it, whole, and self-contained."""

import importlib
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import melbo
from research.site.api import PUBLIC_ROOMS

ROOT = Path(melbo.__file__).parents[1]
# what a page loads by itself; links that a reader may follow are another thing
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|"
    r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=[\"']?(?:https?:)?//|"
    r"@import\s+url\([\"']?https?:",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the site; a warning of mkdocs ends the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def entries(site):
    """Place of each name in the site, by the inventory that other sites link with."""
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(data).decode("utf-8").splitlines()
    fields = (line.split(" ", 4) for line in lines)
    return {name: place.replace("$", name) for name, _, _, place, _ in fields}


def test_every_public_name_has_a_page(site, entries):
    names = [f"melbo.{name}" for name in melbo.__all__]
    for room in PUBLIC_ROOMS:
        module = importlib.import_module(f"melbo.{room}")
        face = {id(getattr(melbo, name)) for name in melbo.__all__}
        others = [n for n in module.__all__ if id(getattr(module, n)) not in face]
        names += [f"melbo.{room}.{name}" for name in others]
    assert len(names) > 80
    for name in names:
        page, _, anchor = entries[name].partition("#")
        assert page == f"api/{name}.html"
        assert f'id="{anchor}"' in (site / page).read_text(encoding="utf-8")


def test_other_names_of_modules_have_an_entry(entries):
    for name in (
        "melbo.discovery.openings.Openings",
        "melbo.maps.base.Map.value",
        "melbo.maths.geometry.stability",
        "melbo.models.text.built_in.REFERENCE",
    ):
        assert name in entries


def test_comments_above_constants_are_their_text(site):
    html = (site / "api" / "melbo.methods.METHODS.html").read_text(encoding="utf-8")
    assert "Methods by their names on the command line." in html


def test_names_between_backticks_lead_to_their_pages(site):
    html = (site / "api" / "melbo.fit.html").read_text(encoding="utf-8")
    link = re.search(r'<a[^>]*href="([^"]+)"[^>]*><code>CausalMap</code></a>', html)
    assert link[1] == "melbo.CausalMap.html#melbo.CausalMap"


def test_citations_of_the_method_lead_to_their_section(site):
    html = (site / "api" / "melbo.Exponential.html").read_text(encoding="utf-8")
    place, anchor = re.search(r'<a href="([^"#]+)#([^"]+)">docs/method\.md §3</a>', html).groups()
    method = (site / "api" / place).resolve()
    assert method == (site / "method.html").resolve()
    assert f'id="{anchor}"' in method.read_text(encoding="utf-8")


def test_pages_load_nothing_from_elsewhere(site):
    assert LOADED.search('<script src="https://example.org/x.js"></script>')
    assert LOADED.search('<link rel="stylesheet" href="//example.org/x.css">')
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 100
    assert not [str(page) for page in pages if LOADED.search(page.read_text(encoding="utf-8"))]


def test_pictures_of_results_and_lists_of_messages_are_there(site):
    html = (site / "results" / "depth.html").read_text(encoding="utf-8")
    [picture] = re.findall(r'<img[^>]*src="([^"]+picture\.png)"', html)
    assert (site / "results" / picture).resolve().is_file()
    html = (site / "errors" / "models.html").read_text(encoding="utf-8")
    assert "melbo/models/loading/load.py#L" in html
