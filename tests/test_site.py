"""The site: it builds without a warning, and what it makes of the sources is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import onnxprune
from scripts import commands, messages
from scripts.house import ROOT
from tests.pages import DOCS, page_id

PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
MISSING = [m for m in ("sphinx", "furo", "myst_parser", "sphinx_copybutton") if find_spec(m) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"the extra docs is not installed: {', '.join(MISSING)}")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Fails for a link between pages that leads nowhere, a page in no list, or a docstring that cannot be read."""
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    cli = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    errors = (tmp_path / "reference" / "errors.html").read_text(encoding="utf-8")
    assert "--exclude-after" in cli
    assert all(f'id="{error.lower()}"' in errors for error in messages.CLASSES)
    # No page asks another server for anything: neither scripts nor styles, fonts or pictures.
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text("utf-8")
        )
        assert loaded == [], page.name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_to_the_outside_are_well_formed(page: Path) -> None:
    """Fails for a link without a host, with a blank, or by plain HTTP. Nothing is fetched: CI has no network."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for url in re.findall(r"\]\(([a-z]+:[^)]*)\)|<(https?:[^>]*)>", text):
        parts = urlsplit("".join(url))
        assert parts.scheme == "https" and "." in (parts.hostname or "") and " " not in "".join(url), url


def test_every_command_is_on_the_page() -> None:
    """Fails where a subcommand or an option is missing from what the site shows."""
    text = commands.as_markdown()
    for words, command in commands.commands().items():
        assert f"## `{words}`" in text
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden:
                assert option.opts[-1] in text, option.opts


def test_text_of_a_help_stays_as_it_is() -> None:
    assert commands.escaped("tensorrt-* in `a_b*` [x] <y>") == r"tensorrt-\* in `a_b*` \[x\] \<y\>"


def test_messages_are_found_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").write_text(
        '"""Text."""\n_GONE = "the folder {} has gone away"\n'
        "def one(x):\n    raise UsageError(f'the value {x!r} is not a number')\n"
        "def two(x):\n    raise RunError(_GONE.format(x)) from None\n"
        "def three(bad):\n    '''Say a sentence that is no message.'''\n"
        "    why = [f'the output {b} is too large' for b in bad]\n    raise CheckFailed('; '.join(why))\n"
        "def four(x):\n    raise click.BadParameter('this is no size: ' + x if x else 'this is no number')\n"
        "def five():\n    raise ValueError('not one of ours at all')\n"
        "def six(x):\n    raise ModelError(_why(x))\n"
        "def _why(x):\n    return 'there is no graph in it' if x else f'{x} is no model'\n",
        encoding="utf-8",
    )
    found = {(m.error, m.room, m.text) for m in messages.collect(tmp_path)}
    assert found == {
        ("UsageError", "room", "the value … is not a number"),
        ("RunError", "room", "the folder … has gone away"),
        ("CheckFailed", "room", "the output … is too large"),
        ("UsageError", "room", "this is no size: …"),
        ("UsageError", "room", "this is no number"),
        ("ModelError", "room", "there is no graph in it"),
        ("ModelError", "room", "… is no model"),
    }


def test_advice_is_of_rooms_that_there_are() -> None:
    assert all(room == "" or (messages.PACKAGE / room).exists() for _, room in messages.ADVICE)
    assert {error for error, room in messages.ADVICE if room == ""} == set(messages.CLASSES)


def test_what_can_be_imported_is_on_the_page() -> None:
    """Fails where the package has a public name that the reference of the API leaves out."""
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto(?:function|class):: (\w+)$", page, re.MULTILINE))
    errors = {name for name in onnxprune.__all__ if _is_an_error(name)}
    assert shown == set(onnxprune.__all__) - errors - {"__version__"}


def _is_an_error(name: str) -> bool:
    value = getattr(onnxprune, name)
    return isinstance(value, type) and issubclass(value, onnxprune.OnnxPruneError)
