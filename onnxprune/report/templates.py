"""Templates of reports: the only user of Jinja2.

What comes from a model or from a user is escaped wherever it is put into a page, in HTML by Jinja2 itself and in
Markdown by `markdown_text`; a template cannot forget to. A name that is not there is an error, not an empty place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxprune.report.visible import visible

# What Markdown, in tables too, reads as a mark: all of ASCII but these, and an underscore that is not inside a word.
_MARK = re.compile(r"[^ a-zA-Z0-9/,;%()=?'.:+_\-\u0080-\U0010ffff]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])")
# What GitHub makes a link of though it is none.
_ADDRESS = re.compile(r"www\.|://|:(?=[a-z0-9_+-]+:)")
# Inside <script> a parser of HTML looks for these, whatever they mean to JSON.
_IN_SCRIPT = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def markdown_text(value: object) -> str:
    """Any text as Markdown that shows it: marks are written as entities, line breaks and controls as Python does.

    Entities make no markup, end no cell of a table, and close no element.
    """
    text = _MARK.sub(lambda m: f"&#{ord(m[0])};", visible(str(value)))
    return _ADDRESS.sub(lambda m: m[0].replace(".", "&#46;").replace(":", "&#58;"), text)


def island(value: Any) -> Markup:
    """Data as JSON for a <script type="application/json">, in which no text can end the element."""
    return Markup(json.dumps(value, separators=(",", ":")).translate(_IN_SCRIPT))


@cache
def _environment(language: str) -> Environment:
    """Of Markdown every value passes `markdown_text`, of HTML Jinja2's own escaping."""
    environment = Environment(
        loader=PackageLoader("onnxprune.report", "templates"),
        undefined=StrictUndefined,
        autoescape=language == "html",
        finalize=_as_markdown if language == "md" else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["island"] = island
    return environment


def _as_markdown(value: object) -> object:
    return value if isinstance(value, Markup) else markdown_text(value)


def fill(name: str, context: Mapping[str, Any]) -> str:
    """The template of this name, filled: `name` ends in its language, .md or .html."""
    return _environment(name.rpartition(".")[2]).get_template(name).render(context)
