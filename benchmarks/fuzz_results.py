"""What chunks of the fuzzer's cases came to: one line of JSON each, summed to one table that names the cases.

A chunk is a range of cases of one kind, run from its first to its last by one state of the code. No case counts twice:
chunks that overlap are refused. Cases that nobody ran are not in the table, which names the ranges that were run.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

_SHOWN = 20

_SAID = {
    "0": "exit 0: described, or pruned and verified",
    "1": "exit 1: refused, one line",
    "2": "exit 2: refused, one line: usage",
    "3": "exit 3: nothing can be removed, or not so much",
    "4": "exit 4: a check failed, nothing written",
}
_FAILURES = ("defect or traceback", "hang beyond 60 s", "more than 4 GiB", "killed by a signal", "file left", "other")


@dataclass(frozen=True)
class Chunk:
    """What the cases `first` to `last` of the kind `what` came to.

    codes: how many ended with each exit code and no failure. faults: by the number of the case. slowest, largest:
    seconds and bytes, with their cases. seconds: of all workers together. commits: of the code, before and after.
    """

    what: str
    first: int
    last: int
    codes: dict[str, int]
    faults: dict[str, str]
    slowest: tuple[float, int]
    largest: tuple[int, int]
    seconds: float
    commits: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many cases."""
        return self.last - self.first + 1


def read(file: Path) -> list[Chunk]:
    """Exits with one line where chunks of a kind overlap, or where one does not count each of its cases once."""
    if not file.exists():
        return []
    found = [_chunk(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    for chunk in found:
        if sum(chunk.codes.values()) + len(chunk.faults) != chunk.count:
            sys.exit(f"{file}: {_range(chunk.what, chunk.first, chunk.last)} do not add up to {chunk.count:,}")
    for a, b in pairwise(_sorted(found)):
        if a.what == b.what and b.first <= a.last:
            ranges = f"{_range(a.what, a.first, a.last)}, and {_range(b.what, b.first, b.last)}"
            sys.exit(f"{file}: {ranges} overlap: leave one of these lines out")
    return found


def _chunk(fields: dict[str, object]) -> Chunk:
    return Chunk(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})  # type: ignore[arg-type]


def append(file: Path, chunk: Chunk) -> None:
    """By one write, so that several runs can share the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as f:
        f.write(json.dumps(asdict(chunk)) + "\n")


def recorded(chunks: Iterable[Chunk], what: str, first: int, last: int) -> str:
    """Which of these cases are there already, in words; empty if none is."""
    found = [c for c in _sorted(chunks) if c.what == what and c.first <= last and first <= c.last]
    return ", ".join(_range(what, c.first, c.last) for c in found)


def table(chunks: Sequence[Chunk]) -> str:
    """One row per outcome, of chunks of one kind; then the failed cases, the slowest, the largest, and the code."""
    what = chunks[0].what
    codes: Counter[str] = Counter()
    for chunk in chunks:
        codes.update(chunk.codes)
    faults = sorted((int(case), text) for c in chunks for case, text in c.faults.items())
    failed = Counter(kind(text) for _, text in faults)
    rows = [(text, codes[code]) for code, text in _SAID.items()] + [(text, failed[text]) for text in _FAILURES]
    lines = [f"| {what}, cases {_ranges(chunks)} | cases |", "|---|---:|", *(f"| {t} | {n:,} |" for t, n in rows)]
    lines += [f"| all | {sum(c.count for c in chunks):,} |", ""]
    slowest, largest = max(c.slowest for c in chunks), max(c.largest for c in chunks)
    commits = list(dict.fromkeys(commit for c in chunks for commit in c.commits))
    if faults:
        shown = ", ".join(f"{case:,} ({kind(text)})" for case, text in faults[:_SHOWN])
        rest = len(faults) - _SHOWN
        lines.append(f"Failed: {shown}{f', and {rest} more' if rest > 0 else ''}.")
    lines.append(
        f"Slowest: case {slowest[1]:,}, {slowest[0]:.1f} s. Most memory: case {largest[1]:,}, "
        f"{largest[0] / 2**30:.2f} GiB. The code of {', '.join(commits)}; "
        f"{sum(c.seconds for c in chunks) / 3600:.1f} hours of one worker."
    )
    return "\n".join(lines)


def kind(fault: str) -> str:
    """The row that a failure counts in."""
    if fault == "hang":
        return _FAILURES[1]
    if fault == "memory":
        return _FAILURES[2]
    if fault.startswith(("signal", "exit ")):
        return _FAILURES[3]
    if fault.startswith("left"):
        return _FAILURES[4]
    return _FAILURES[0] if "defect" in fault or "Traceback" in fault or "please report" in fault else _FAILURES[5]


def _sorted(chunks: Iterable[Chunk]) -> list[Chunk]:
    return sorted(chunks, key=lambda c: (c.what, c.first))


def _range(what: str, first: int, last: int) -> str:
    return f"{what} {_numbers(first, last)}"


def _numbers(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _ranges(chunks: Iterable[Chunk]) -> str:
    """Neighbours joined: "0 to 999 and 2,000 to 2,999"."""
    joined: list[list[int]] = []
    for c in _sorted(chunks):
        if joined and c.first == joined[-1][1] + 1:
            joined[-1][1] = c.last
        else:
            joined.append([c.first, c.last])
    return " and ".join(_numbers(*j) for j in joined)
