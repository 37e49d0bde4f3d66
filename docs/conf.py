"""The site: Sphinx with MyST, so that the pages are the Markdown that GitHub shows too. `scripts/docs` builds it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from onnxprune.version import __version__  # noqa: E402
from scripts import commands, messages  # noqa: E402

REPOSITORY = "https://github.com/onnxprune/onnxprune/blob/main"

project = "onnxprune"
author = "The authors of onnxprune"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# Anchors as GitHub makes them, down to the third level.
myst_heading_anchors = 3
# Docstrings quote code in single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = f"onnxprune {__version__}"
html_theme_options = {
    "source_repository": "https://github.com/onnxprune/onnxprune/",
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_prompt_text = "$ "


def read_page(app: Sphinx, name: str, content: list[str]) -> None:
    """Links that lead out of docs/ go to the repository; what is made of the sources comes where its mark stands."""
    folder = (HERE / name).parent

    def outside(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match[1]))
        if target.is_relative_to(HERE):
            return match[0]
        return f"]({REPOSITORY}/{target.relative_to(ROOT).as_posix()}{match[2]})"

    text = re.sub(r"\]\((\.\./[^)#\s]*)((?:#[^)\s]*)?)\)", outside, content[0])
    for made in (commands, messages):
        if made.MARK in text:
            text = text.replace(made.MARK, made.as_markdown())
    content[0] = text


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", read_page)
