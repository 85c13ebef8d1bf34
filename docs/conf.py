"""Configuration of the documentation: `python -m sphinx -W --keep-going docs docs/_build`."""

from pathlib import Path

import vsc_pyro

project = "vsc_pyro"
author = "The vsc_pyro authors"
release = version = vsc_pyro.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build", "results/**"]  # tables that pages include
default_role = "py:obj"
# Backticks mark arguments too, and `mean` is an attribute of several classes.
suppress_warnings = ["ref.python"]

autodoc_inherit_docstrings = False  # those of torch and Pyro describe other classes
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True  # an attribute that has both an annotation and a line under Attributes appears once
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build" / ".jupyter_cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "remove"

html_theme = "furo"
html_title = f"vsc_pyro {release}"
html_show_copyright = False
html_show_sphinx = False
