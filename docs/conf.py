"""How Sphinx builds the documents and the API reference: sphinx-build -W docs build/docs."""

import sys
from pathlib import Path

from sphinx.errors import SphinxError

from pmwal import __version__

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import api_reference

project = "pmwal"
author = "the pmwal authors"
copyright = "MIT license"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # links to headings work as they do where the repository is shown

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "  # what is copied can be pasted: without prompts, and without the output
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"

html_theme = "furo"
html_title = f"pmwal {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
smartquotes = False  # most quoted text is code


SEARCHED = {"rotate": "troubleshooting", "rotation": "from-rotating", "corrupt": "troubleshooting", "salvage": "guide-operations"}
"""What readers type into the search, and a page that must be among the answers."""


def check_search(app, error):
    """Look the words up in the index that was just built, as the browser does."""
    if error is not None or app.builder.name != "html":
        return
    index = app.builder.indexer
    for word, page in SEARCHED.items():
        stem = index.lang.stem(word)
        found = index._mapping.get(stem, set()) | index._title_mapping.get(stem, set())
        if page not in found:
            raise SphinxError(f"a search for {word!r} does not find {page}.md, only {sorted(found)}")


def setup(app):
    """Let autodoc fill in the reference of the API."""
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, api_reference.directives(source[0])))
    app.connect("build-finished", check_search)
