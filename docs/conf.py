"""The documentation site, for Sphinx: `make docs` builds it into build/site, offline, and stops at a broken link.

The pages are Markdown that GitHub shows as well. What they link to outside this folder becomes a file to download, or,
where it is a folder, its path. The built pages ask nothing of any server: `check_pages` looks.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.errors import SphinxError

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import diffseg  # noqa: E402

project = "diffseg"
author = "The diffseg authors"
copyright = "2026, the diffseg authors. MIT licence"
version = release = diffseg.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
myst_heading_anchors = 3
myst_url_schemes = ("http", "https", "mailto")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"diffseg {version}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


# --- sources ----------------------------------------------------------------------------------------------------------


def links_outside(app, name: str, source: list[str]) -> None:
    """Links to files outside the pages become downloads, those to folders their paths: a site has no page for them."""
    page = Path(app.env.doc2path(name))

    def shown(match: re.Match) -> str:
        target = (page.parent / match["path"]).resolve()
        if target.is_relative_to(DOCS) or not target.exists():
            return match[0]
        if target.is_file():
            return f"[{match['text']}](path:{match['path']})"
        path = target.relative_to(ROOT).as_posix()
        return match["text"] if path in match["text"] else f"{match['text']} (`{path}`)"

    source[0] = re.sub(r"(?<!!)\[(?P<text>[^]]*)\]\((?P<path>\.\./[^)#]*)\)", shown, source[0])


def one_a_line(lines: list[str]) -> list[str]:
    """Arguments and errors that share a line in a docstring, each on a line of its own."""
    split, section = [], None
    for line in lines:
        if line and not line.startswith(" "):
            section = line if line in ("Args:", "Raises:") else None
        name = r"[A-Z]\w*Error" if section == "Raises:" else r"[a-z_]\w*(?:, [a-z_]\w*)*"
        split += re.sub(rf"(?<=\.) (?={name}: )", "\n    ", line).split("\n") if section else [line]
    return split


def plain_docstring(app, what, name, it, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code` in backticks; reStructuredText would see more in them."""
    lines[:] = one_a_line(lines)
    for i, line in enumerate(lines):
        if line.lstrip().startswith(">>>"):
            continue
        parts = line.split("`")
        if len(parts) % 2:
            parts[::2] = [re.sub(r"([*|\\])|(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
            lines[i] = "``".join(parts)


# --- built pages ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a built page links to, what it loads, and the places in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Sorts a tag's addresses: links wait for a click, all else is loaded."""
        for key, value in attributes:
            if key in ("id", "name") and value:
                self.places.add(value)
            elif key in ("href", "src", "srcset", "data", "poster", "action") and value:
                (self.links if tag == "a" else self.loads).append(value)


def check_pages(app, error: Exception | None) -> None:
    """Every link of the built pages leads to a file and a place in it, and no page loads anything from elsewhere.

    Raises:
        SphinxError: one does.
    """
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    pages = {file: Page(file.read_text()) for file in sorted(out.rglob("*.html"))}
    wrong = []
    for file, page in pages.items():
        for address in page.links + page.loads:
            where = urlsplit(address)
            if where.scheme or where.netloc:
                outside = address in page.loads and where.scheme != "data"
                wrong += [f"{file.relative_to(out)} loads {address}"] * outside
                continue
            target = (file.parent / unquote(where.path)).resolve() if where.path else file
            if not target.is_file():
                wrong.append(f"{file.relative_to(out)} leads to {address}, which is not there")
            elif where.fragment and target in pages and unquote(where.fragment) not in pages[target].places:
                wrong.append(f"{file.relative_to(out)} leads to {address}: there is no such place in it")
    for file in out.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^)\"']+)", file.read_text())
        wrong += [f"{file.relative_to(out)} loads {address}" for address in found]
    if wrong:
        raise SphinxError("\n".join(sorted(set(wrong))))


def setup(app) -> None:
    """What Sphinx calls."""
    app.connect("source-read", links_outside)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
    app.connect("build-finished", check_pages)
