"""The blocks of the pages, and what is needed to run them.

A fenced block in `sh` or `python` runs, in the order of its page, in a folder with the bundled `models/`. Comments in
the lines in front of it say more:

    <!-- needs: torch, gpu -->     it is left out where a module, or a GPU, is not there
    <!-- shown: WHY -->            it is only shown: it is a command of another system, say
    <!-- run: NAME -->             it is the block of README with this name, which .ci/run runs
    <!-- exit: 4 -->               it ends with this exit code
    <!-- before                    not shown: commands that make what the reader has already
    cp models/digits_resnet.onnx model.onnx
    -->
    <!-- stand-in: detector yolo.onnx yolo.npz -->    a network of that kind, and data: tests/stand_ins.py

The last two stand apart from blocks; `before python` holds Python.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scripts.house import ROOT

DOCS = ROOT / "docs"
# What runs: the pages that tell a reader to do something.
GUIDES = (
    ROOT / "README.md",
    DOCS / "index.md",
    DOCS / "data.md",
    *sorted(p for part in ("how-to", "reference") for p in (DOCS / part).glob("*.md")),
    *sorted(DOCS.glob("tutorial*.md")),
)
STAND_IN = "stand-in"
RUN = ("sh", "python", STAND_IN)
# Blocks that are read by a machine: their form is checked. Others are output, or hold the text of a file.
FORMS = ("yaml", "json", "toml")
# Needs that are no modules: the command that has to be there.
COMMANDS = {"gpu": "nvidia-smi"}
_BLOCK = re.compile(
    r"(?P<marks>(?:^<!-- (?:needs|shown|run|exit):[^\n]*-->\n)*)^```(?P<language>[\w{}-]*)\n(?P<body>.*?)^```$"
    r"|^<!-- before(?P<python> python)?\n(?P<before>.*?)^-->$"
    r"|^<!-- stand-in: (?P<stand_in>.*?) -->$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"^<!-- (\w+)(?:: (.*))? -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the comments in front of it say."""

    page: Path
    line: int
    language: str
    body: str
    needs: tuple[str, ...] = ()
    shown: str = ""
    exit_code: int = 0
    of_readme: str = ""

    @property
    def name(self) -> str:
        """Page and line, as an editor opens them."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def missing(self) -> tuple[str, ...]:
        """What it needs and is not here."""
        return tuple(n for n in self.needs if not _is_here(n))


@cache
def _is_here(need: str) -> bool:
    if need in COMMANDS:
        return shutil.which(COMMANDS[need]) is not None
    return importlib.util.find_spec(need) is not None


def blocks(page: Path) -> Iterator[Block]:
    """Each fenced block of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["before"] is not None:
            yield Block(page, line, "python" if match["python"] else "sh", match["before"])
            continue
        if match["stand_in"] is not None:
            yield Block(page, line, STAND_IN, match["stand_in"])
            continue
        marks = dict(_MARK.findall(match["marks"]))
        needs = tuple(n.strip() for n in marks.get("needs", "").split(",") if n.strip())
        code = int(marks.get("exit", "0"))
        line += match["marks"].count("\n")
        yield Block(
            page, line, match["language"], match["body"], needs, marks.get("shown", ""), code, marks.get("run", "")
        )


def page_id(page: Path) -> str:
    """A page's name in the list of tests."""
    return page.relative_to(ROOT).with_suffix("").as_posix()
