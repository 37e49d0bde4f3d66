"""Where the lines of the network's drawing run: a lane for each row that is still to be read, as few as there can be.

Rows stand one below the other, and a link runs down the lane of the row that it comes from. A lane is free again once
the last reader of its row has been reached, so a chain is one line, and a residual block two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Of the drawing, in units of which a row is ROW high; lanes stand closer where there are many.
ROW, WIDEST, NARROWEST, MARGIN, MOST = 32.0, 14.0, 3.0, 9.0, 200.0


@dataclass(frozen=True)
class Drawing:
    """lanes: of each row. paths: SVG path data of each link. width, height: of all."""

    lanes: tuple[int, ...]
    x: tuple[float, ...]
    paths: tuple[str, ...]
    width: float
    height: float


def drawn(sources: Sequence[Sequence[int]]) -> Drawing:
    """The drawing of rows that read these rows above them, each by its number."""
    lanes = lanes_of(sources)
    count = max(lanes, default=0) + 1
    step = min(WIDEST, max(NARROWEST, MOST / count))
    x = tuple(MARGIN + lane * step for lane in lanes)
    paths = tuple(_path(x[s], middle(s), x[i], middle(i)) for i, own in enumerate(sources) for s in own)
    return Drawing(lanes, x, paths, 2 * MARGIN + (count - 1) * step, ROW * len(sources))


def lanes_of(sources: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The lane of each row: that of its first source where it is the last to read it, else the first free one."""
    last = {s: i for i, own in enumerate(sources) for s in own}
    lanes: list[int] = []
    busy: dict[int, int] = {}  # lane → the row in which it is read last
    for i, own in enumerate(sources):
        busy = {lane: end for lane, end in busy.items() if end > i}
        free = [lanes[s] for s in own if lanes[s] not in busy]
        lane = free[0] if free else next(n for n in range(len(busy) + 1) if n not in busy)
        lanes.append(lane)
        if last.get(i, i) > i:
            busy[lane] = last[i]
    return tuple(lanes)


def middle(row: int) -> float:
    """How far down the middle of a row is."""
    return ROW * (row + 0.5)


def _path(x1: float, y1: float, x2: float, y2: float) -> str:
    """Straight down the lane of the source, and over to the reader's in the last row."""
    if x1 == x2:
        return f"M{x1:g} {y1:g}V{y2:g}"
    bend = y2 - ROW
    return f"M{x1:g} {y1:g}V{bend:g}C{x1:g} {y2 - ROW / 2:g} {x2:g} {y2 - ROW / 2:g} {x2:g} {y2:g}"
