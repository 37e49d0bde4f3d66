"""The house: which room of the package may import which, and a picture of it.

    python -m scripts.house            # the numbers
    python -m scripts.house --draw     # docs/house.svg anew

A room is a folder of `onnxprune/`, or a module at its root. FLOORS lists them from the top down: imports point to a
lower floor, never up and never to a neighbour. `tests/test_architecture.py` holds the code to that, and the picture to
the code.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "house.svg"
# Each floor with the rooms on it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli", "__init__"),
    ("pipeline",),
    ("sentence",),
    ("stages",),
    ("latency",),
    ("allocation",),
    ("refit", "recovery", "report", "quantization"),
    ("calibration", "verification", "benchmark", "evaluation", "output", "handover"),
    ("objective", "surgery", "intake", "tasks"),
    ("gradients", "normalise", "measures", "jobs", "plan"),
    ("runtime", "cost", "config"),
    ("channels", "data", "targets"),
    ("graph", "selection"),
    ("numerics", "process", "options", "regular_files", "user_code"),
    ("errors", "methods", "threads", "version"),
)
_WIDTH, _BOX, _GAP, _ROW = 960, 132, 24, 58


def modules(package: str = "onnxprune") -> dict[str, Path]:
    """Every module of a package of the repository by its dotted name, packages by that of their folder."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Absolute names that a file imports anywhere, inside functions too; `from a import b` gives a.b.

    Raises ValueError for a relative import. A file is read once.
    """
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{path} imports relatively")
            found += (f"{node.module}.{a.name}" for a in node.names)
    return tuple(found)


def needs(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module → the modules among `known` that it imports."""
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        own = {n if n in known else n.rpartition(".")[0] for n in imports(path)}
        found[name] = {n for n in own if n in known and n != name}
    return found


def room_of(module: str) -> str:
    """The room that a module of the package is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def arrows(package: Mapping[str, set[str]]) -> Counter[tuple[str, str]]:
    """(room, room that it imports) → by how many pairs of modules."""
    pairs = ((room_of(a), room_of(b)) for a, own in package.items() for b in own)
    return Counter((a, b) for a, b in pairs if a != b)


def floor_of() -> dict[str, int]:
    """Room → its floor, counted from the ground."""
    return {room: len(FLOORS) - 1 - i for i, rooms in enumerate(FLOORS) for room in rooms}


def upward(found: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The arrows that do not point down."""
    floor = floor_of()
    return sorted(pair for pair in found if floor[pair[0]] <= floor[pair[1]])


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that need each other, in a circle; none where there is no such circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


def drawn() -> str:
    """The picture, as SVG: a row for each floor, a box for each room, a line for each arrow."""
    known = modules()
    found = arrows(needs(known))
    sizes = Counter(room_of(m) for m in known)
    at: dict[str, tuple[float, float]] = {}
    for i, rooms in enumerate(FLOORS):
        left = (_WIDTH - len(rooms) * _BOX - (len(rooms) - 1) * _GAP) / 2
        at.update({room: (left + k * (_BOX + _GAP), 30 + i * _ROW) for k, room in enumerate(rooms)})
    height = 30 + len(FLOORS) * _ROW + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="18" font-size="12" fill="#444444">{escape(summary())}</text>',
    ]
    for (a, b), count in sorted(found.items()):
        (x1, y1), (x2, y2) = at[a], at[b]
        out.append(
            f'<line x1="{x1 + _BOX / 2:g}" y1="{y1 + 30:g}" x2="{x2 + _BOX / 2:g}" y2="{y2:g}" '
            f'stroke="#4477aa" stroke-opacity="0.25" stroke-width="{min(0.6 + count / 12, 3):.1f}"/>'
        )
    for room, (x, y) in at.items():
        folder = (ROOT / "onnxprune" / room).is_dir()
        text = f"{room}/ ({sizes[room]})" if folder else f"{room}.py"
        out += [
            f'<rect x="{x:g}" y="{y:g}" width="{_BOX}" height="30" rx="4" '
            f'fill="{"#eaf1f8" if folder else "#f4f4f4"}" stroke="#4477aa"/>',
            f'<text x="{x + _BOX / 2:g}" y="{y + 20:g}" font-size="13" text-anchor="middle">{escape(text)}</text>',
        ]
    return "\n".join([*out, "</svg>"]) + "\n"


def summary() -> str:
    """Rooms, arrows, and what breaks the rules, in one line."""
    package = needs(modules())
    found = arrows(package)
    rooms = {room_of(m) for m in package}
    circles = "no circle" if not circle(package) else "a circle"
    return (
        f"{len(rooms)} rooms on {len(FLOORS)} floors, {len(found)} arrows ({sum(found.values())} imports), "
        f"{len(upward(found))} upward, {circles}"
    )


def main() -> None:
    """Print the numbers, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="write docs/house.svg")
    args = parser.parse_args()
    print(summary())
    if args.draw:
        PICTURE.write_text(drawn(), encoding="utf-8")


if __name__ == "__main__":
    main()
