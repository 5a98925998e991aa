"""How Sphinx builds the documents and the API reference: sphinx-build -W docs build/docs."""

from pmwal import __version__

project = "pmwal"
author = "the pmwal authors"
copyright = "MIT license"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
root_doc = "index"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # links to headings work as they do where the repository is shown

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"pmwal {__version__}"
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
smartquotes = False  # most quoted text is code
