"""docs/operators.md: what becomes of every operator of onnxruntime's own domains.

    python -m scripts.operators            # the page
    python -m scripts.operators --write    # docs/operators.md anew

It is made of the tables in the code; `tests/test_operators_page.py` holds the page to them, and them to the installed
onnxruntime.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from onnxprune.channels import foreign
from onnxprune.channels.rules import TABLE as RULES
from onnxprune.channels.rules import quantization
from onnxprune.normalise.unfused import TABLE as UNFUSED
from onnxprune.normalise.unfused.blocked import DOMAIN as BLOCKED

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
DOMAINS = (foreign.DOMAIN, BLOCKED)
# What becomes of an operator.
WRITTEN, FOLLOWED, REFUSED, LANGUAGE = "written in standard operators", "followed by a rule", "stays", "language models"
_INTEGER = "computes with integers"
_HEAD = """# Operators of onnxruntime's own

What becomes of every operator in the domains that onnxruntime adds to the standard: `com.microsoft`, and
`com.microsoft.nchwc` for channels in blocks. Made by `python -m scripts.operators --write` from the tables in the code;
a test holds that every operator that the installed onnxruntime registers has a row.

- *{written}*: before anything else, and in the result (`onnxprune/normalise/unfused/`), but for weights in packed codes
  (MatMulNBits, GatherBlockQuantized) and for mixtures of experts (MoE, QMoE), which are put back in the result with the
  weights that they have by then (`onnxprune/surgery/packed_codes.py`, `onnxprune/surgery/experts.py`). Whole experts go
  with `--drop-experts` (`onnxprune/surgery/mixtures.py`). Where
  a node is not in the form that its row expects, it stays, and a note says why. BiasAdd, BiasSplitGelu,
  FusedMatMulActivation, GemmFastGelu, GroupNorm, NhwcConv, NhwcFusedConv and SkipGroupNorm have no kernel on the CPU:
  a file with one of them is refused as long as onnxruntime does not load it there, since nothing could be held against
  it.
- *{followed}*: channels go through it (`onnxprune/channels/rules/`).
- *{refused}*: it keeps the channels that it touches, for the reason beside it, which the report repeats.
- *{language}*: the same, until the parts of language models are followed.

"""


@dataclass(frozen=True)
class Row:
    """One operator: its domain and name, what becomes of it, and why or where."""

    operator: str
    outcome: str
    detail: str


def rows() -> tuple[Row, ...]:
    """A row for each operator that the tables know, in the order of names."""
    found: list[Row] = []
    for operator, build in UNFUSED.items():
        if operator.startswith(foreign.DOMAIN):
            found.append(Row(operator, WRITTEN, _file_of(build)))
    written = {r.operator for r in found}
    for operator, rule in RULES.items():
        if not operator.startswith(foreign.DOMAIN) or operator in written:
            continue
        codes = rule is quantization.integer
        found.append(Row(operator, REFUSED if codes else FOLLOWED, _INTEGER if codes else _file_of(rule)))
    for table, outcome in ((foreign.REFUSED, REFUSED), (foreign.LANGUAGE, LANGUAGE)):
        for name, why in table.items():
            found.append(Row(f"{foreign.DOMAIN}.{name}", outcome, f"{why.text}; {why.remedy.value}"))
    return tuple(
        sorted(found, key=lambda r: (not r.operator.startswith(f"{foreign.DOMAIN}.nchwc"), r.operator.lower()))
    )


def page() -> str:
    """The page."""
    found = rows()
    counts = Counter(r.outcome for r in found)
    text = _HEAD.format(written=WRITTEN, followed=FOLLOWED, refused=REFUSED, language=LANGUAGE)
    text += ", ".join(f"{counts[o]} {o}" for o in (WRITTEN, FOLLOWED, REFUSED, LANGUAGE)) + ".\n\n"
    lines = ["| operator | what becomes of it | where, or why |", "| --- | --- | --- |"]
    lines += [f"| {r.operator} | {r.outcome} | {r.detail} |" for r in found]
    return text + "\n".join(lines) + "\n"


def _file_of(function: object) -> str:
    """The file of a table's function."""
    module = str(getattr(function, "__module__", ""))
    return f"`{module.replace('.', '/')}.py`"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="docs/operators.md anew")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
