"""What all texts for a terminal are made of: the only user of rich but for the bars of `report/live.py`.

Everything is rendered to a string, so that the caller decides where it goes and what a closed pipe means.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Part = RenderableType
PLAIN_WIDTH = 100
_PROSE = "reason"
_SHORTEST = 12
_UNLIMITED = 100_000
_HEIGHT = 25
_ASCII = str.maketrans({"→": "->", "×": "x", "·": "-", "≤": "<=", "…": "..."})


@dataclass(frozen=True)
class Screen:
    """Where text goes: columns, whether colours are wanted, and whether the encoding knows more than ASCII.

    piped: nobody's window limits it, so tables are as wide as their names; else names are shortened to the width.
    """

    width: int = PLAIN_WIDTH
    colour: bool = False
    unicode: bool = True
    piped: bool = False

    def render(self, parts: Iterable[Part]) -> str:
        """The parts as text, without trailing spaces; control codes only with `colour`."""
        console = Console(
            file=io.StringIO(),
            width=_UNLIMITED if self.piped else self.width,
            height=_HEIGHT,  # without one, rich takes a dumb terminal for one of 80 columns
            force_terminal=self.colour,
            force_interactive=False,
            legacy_windows=False,
            safe_box=not self.unicode,
            emoji=False,
            highlight=False,
            markup=False,
        )
        with console.capture() as capture:
            for part in parts:
                console.print(part, width=None if isinstance(part, Grid) else self._room(part))
        text = capture.get() if self.unicode else capture.get().translate(_ASCII)
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def _room(self, part: Part) -> int:
        """The columns that a text may take: the screen's, and where nobody's window ends those of its longest word."""
        if not self.piped:
            return self.width
        rows = part.rows if isinstance(part, Facts) else (("", part.plain),) if isinstance(part, Text) else ()
        front = max((len(name) + 1 for name, _ in rows if name), default=0)
        words = (len(word) for _, value in rows for word in value.split())
        return max(self.width, front + max(words, default=0))

    def table(self, *columns: str, title: str = "") -> Grid:
        """An empty table whose columns after the first are numbers, aligned right, unless they start with a space."""
        return Grid(self, columns, title)


class Grid:
    """A table with a line for each row: where the screen is too narrow, names lose their middle and reasons fold."""

    def __init__(self, screen: Screen, columns: Sequence[str], title: str) -> None:
        self._screen, self._columns, self._title = screen, columns, title
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """One cell for each column."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """rich's way to ask for what is drawn."""
        rows, widest = self._rows, self._built(self._rows)
        named = [i for i in range(len(self._columns)) if self._named(i)]
        least = {i: max(_SHORTEST, len(self._columns[i].strip())) for i in named}
        while (over := widest.__rich_measure__(console, options).maximum - options.max_width) > 0:
            lengths = {i: max((len(r[i]) for r in rows), default=0) for i in named}
            lengths = {i: n for i, n in lengths.items() if n > least[i]}
            if not lengths:
                break
            longest = max(lengths, key=lengths.__getitem__)
            others = [n for i, n in lengths.items() if i != longest]
            most = max(lengths[longest] - over, max(others, default=0) - 1, least[longest])
            rows = [tuple(shortened(c, most) if i == longest else c for i, c in enumerate(r)) for r in rows]
            widest = self._built(rows)
        yield widest

    def _named(self, column: int) -> bool:
        """Whether a column holds names, and neither numbers nor prose."""
        name = self._columns[column]
        return (column == 0 or name.startswith(" ")) and name.strip() != _PROSE

    def _built(self, rows: Sequence[Sequence[str]]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD if self._screen.unicode else box.ASCII_DOUBLE_HEAD,
            title=self._title or None,
            title_justify="left",
            title_style="bold",
            header_style="bold",
            show_header=any(c.strip() for c in self._columns),
            pad_edge=False,
        )
        for i, name in enumerate(self._columns):
            left = i == 0 or name.startswith(" ")
            table.add_column(name.strip(), justify="left" if left else "right", overflow="fold")
        for r in rows:
            table.add_row(*r)
        return table


def shortened(name: str, most: int) -> str:
    """A name without its middle, where it has more letters: its ends tell names apart."""
    front = (most - 1) // 2
    return name if len(name) <= most else f"{name[:front]}…{name[len(name) - (most - 1 - front) :]}"


class Facts:
    """(name, value) rows without a frame; long values fold. space: empty lines behind them."""

    def __init__(self, rows: Iterable[tuple[str, str]], space: int) -> None:
        self.rows: tuple[tuple[str, str], ...] = tuple(rows)
        self.space: int = space

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Padding]:
        """rich's way to ask for what is drawn."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self.rows:
            table.add_row(name, value)
        yield Padding(table, (0, 0, self.space, 0))


def listed(rows: Iterable[tuple[str, str]], space: int = 1) -> Part:
    """(name, value) rows without a frame; long values fold between words, on a screen also within them.

    space: empty lines behind them; a table begins with one of its own.
    """
    return Facts(rows, space)


def line(text: str = "", style: str = "") -> Part:
    """A paragraph, in one of rich's styles."""
    return Text(text, style)


def note(text: str) -> Part:
    """A note, as every report shows it."""
    return line(f"note: {text}", "yellow")
