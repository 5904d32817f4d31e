"""Events of mkdocs: pages made from the code join those of docs/, and their links are mended."""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

from research.site.api import Api
from research.site.messages import fill, read_messages

ROOT = Path(__file__).parents[2]
#: Where files outside docs/ are read, and where the site keeps the pictures among them.
SOURCE = "https://github.com/melbo-project/melbo/blob/main/"
_PICTURES = (".png", ".svg")
_LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)")
_NAMED = re.compile(r"<code>([A-Za-z_][\w.]*)</code>(?!</a>)")

_CITED = re.compile(r"docs/([\w/-]+)\.md(?: §(\d+))?")
_SECTION = re.compile(r"^## (\d+) .*$", re.MULTILINE)

_api = Api.of(ROOT)
_messages = read_messages(ROOT)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API into the navigation."""
    for entry in config.nav or []:
        if "API" in entry:
            entry["API"] = ["api/README.md", *_api.navigation()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API, and the pictures of results that pages show."""
    for path, text in _api.pages().items():
        files.append(File.generated(config, path, content=text))
    docs = Path(config.docs_dir)
    shown = {
        target
        for page in docs.rglob("*.md")
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if link.endswith(_PICTURES)
        and (target := _outside(page.relative_to(docs).as_posix(), link))
    }
    for target in sorted(shown):
        files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the lists of messages, and mend links that leave docs/."""
    here = page.file.src_uri

    def mended(found: re.Match[str]) -> str:
        target = _outside(here, found[1])
        if target is None:
            return found[1]
        if target.endswith(_PICTURES):
            return posixpath.relpath(target, posixpath.dirname(here) or ".")
        return SOURCE + target

    return _LINK.sub(mended, fill(markdown, _messages, SOURCE))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of names of the package between backticks, and of pages that docstrings cite."""
    own = page.file.src_uri.removeprefix("api/").removesuffix(".md")

    def linked(found: re.Match[str]) -> str:
        identifier = _api.identifier(found[1])
        if identifier is None or identifier == own:
            return found[0]
        return f'<autoref identifier="{identifier}" optional>{found[0]}</autoref>'

    def cited(found: re.Match[str]) -> str:
        place = posixpath.relpath(f"{found[1]}.html", posixpath.dirname(page.file.src_uri) or ".")
        return f'<a href="{place}{_anchor(found[1], found[2])}">{found[0]}</a>'

    html = _NAMED.sub(linked, html)
    return _CITED.sub(cited, html) if page.file.src_uri.startswith("api/") else html


def _anchor(page: str, section: str | None) -> str:
    """Anchor of a numbered section of a page below docs/."""
    if section is None:
        return ""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    [heading] = [h[0] for h in _SECTION.finditer(text) if h[1] == section]
    slug: str = slugify(case="lower")(heading.removeprefix("## "), "-")
    return "#" + slug


def _outside(page: str, link: str) -> str | None:
    """Path below the root that a link leads to, if it leaves docs/ for something that is there."""
    target = os.path.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if target.startswith("docs/") or not (ROOT / target).exists() else target
