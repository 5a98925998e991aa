"""How Sphinx builds the documents and the API reference: sphinx-build -W docs build/docs."""

import sys
from pathlib import Path

from pmwal import __version__

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import cli_reference

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
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
smartquotes = False  # most quoted text is code


def setup(app):
    """Fill in the command line's reference. Its page is always read again, because it changes with the parsers."""
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, cli_reference.filled(source[0])))
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["cli"])
