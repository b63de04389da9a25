"""Sphinx's settings for the documentation as a site: `make docs`."""

from hpt_trl import __version__

project = "hpt-trl"
version = release = __version__
copyright = "the hpt-trl authors"

extensions = ["myst_parser", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"hpt-trl {version}"
html_show_copyright = False

# Headings have the anchors that GitHub gives them, so that a link works there and on the site.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
# Dollars of prices are no formulas.
myst_dmath_allow_space = False
myst_dmath_allow_digits = False

copybutton_prompt_text = "$ "
