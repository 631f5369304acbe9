"""Build the documentation with Sphinx, MyST and furo: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from notebook_page import write_notebook_page
from reference_pages import write_pages

from stssl import __version__

project = "stssl"
author = "the stssl developers"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "figures"]
root_doc = "index"
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings: list[str] = []

default_role = "code"  # docstrings write code in single backticks, as the pages do
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"stssl {release}"
html_static_path = ["_static"]
html_css_files = ["stssl.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
# furo loads no foreign font or script; formulas are drawn by the browser itself (MathML), so no page loads anything
# from another host. tests/docs/test_pages.py checks that.

DOCS = Path(__file__).parent
write_pages(DOCS / "generated")
write_notebook_page(DOCS / "tutorials" / "notebook.ipynb", DOCS / "generated")
