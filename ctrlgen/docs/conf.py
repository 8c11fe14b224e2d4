"""Settings of the documentation site: `python -m sphinx -W -n -b html ctrlgen/docs <where>`.

The site fetches nothing when it is opened, from a file or from a server: formulas become MathML when it is built, the
fonts are the reader's, and the search runs on an index that lies beside the pages.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

import ctrlgen  # noqa: E402

project = "ctrlgen"
author = "The ctrlgen developers"
project_copyright = "the ctrlgen developers, MIT licence"
version = release = ctrlgen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "mathml",
    "api",
    "gallery",
    "pictures",
    "trust",
    "models",
]
exclude_patterns = ["_build", "_generated/fragments"]
templates_path = []
nitpicky = True
smartquotes = False  # "--quick" stays what one types
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes, units and meaning, which "ArrayLike" does not
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = ["Reference", "References"]
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
add_module_names = False

gallery_scripts = str(DOCS.parents[1] / "analysis")
gallery_results = str(DOCS.parents[1] / "analysis" / "results")

html_theme = "furo"
html_title = "ctrlgen"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # summaries are fetched, which browsers refuse to pages that are opened from a file
html_last_updated_fmt = ""
pygments_style = "tango"
pygments_dark_style = "monokai"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#005a8c",
        "color-brand-content": "#005a8c",
        "font-stack": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif",
        "font-stack--monospace": "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace",
    },
    "dark_css_variables": {"color-brand-primary": "#7cc4f0", "color-brand-content": "#7cc4f0"},
    "top_of_page_buttons": [],
}
