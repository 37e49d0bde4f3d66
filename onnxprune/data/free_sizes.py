"""Sizes for the free axes of inputs where there is no data: what the weights demand, else what is tried in turn.

An axis has the size of its symbol, wherever that stands; one without a name has a size of its own. A symbol that is a
sum or a product of others (`past + sequence`) follows from them.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx

from onnxprune.data.inputs import InputSpec

# Usual sizes of images, frames and sequences, the likeliest first; then those that single architectures ask for.
USUAL = (64, 224, 32, 16, 128, 512)
_FURTHER = (48, 1, 8, 256, 320, 100, 2, 4, 384, 640, 1024, 80, 16000)
# An axis may be as long as two others, or longer by one.
_BASE = (16, 64)
_MOST = 60
_OPERATIONS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_LONGEST_SYMBOL = 200
_NAMELESS = ("", "?")

# A free axis by what has the same size, and the place of it.
Key = str
Axes = Mapping[tuple[str, int], Key]


def axes_of(proto: onnx.ModelProto, specs: Sequence[InputSpec]) -> dict[tuple[str, int], Key]:
    """What names the size of every free axis, by input and axis; sample axes are among them."""
    symbols = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    found: dict[tuple[str, int], Key] = {}
    for s in specs:
        named = symbols.get(s.name, [])
        for axis, size in enumerate(s.dims):
            if size is None:
                symbol = named[axis] if axis < len(named) else ""
                found[s.name, axis] = f"{s.name}[{axis}]" if symbol in _NAMELESS else symbol
    return found


def assignments(keys: Iterable[Key], forced: Mapping[Key, int], fixed: Iterable[int]) -> Iterator[dict[Key, int]]:
    """Sizes for all symbols, the likeliest first; each at most once.

    forced: what weights demand. fixed: sizes of other axes, which a symbol may be longer than.
    """
    every = list(dict.fromkeys(keys))
    free = [k for k in every if k not in forced and _of_others(k, every) is None]
    seen: set[tuple[int, ...]] = set()
    for count, sizes in enumerate(_proposals(free, sorted({d for d in fixed if d > 1})[:3])):
        whole = dict(forced) | sizes
        for k in every:
            expression = None if k in forced else _of_others(k, every)
            if expression is not None:
                whole[k] = max(_evaluated(expression, whole), 0)
        mark = tuple(whole[k] for k in every)
        if mark not in seen:
            seen.add(mark)
            yield {k: whole[k] for k in every}
        if count >= _MOST:
            return


def distinct(keys: Iterable[Key], forced: Mapping[Key, int]) -> dict[Key, int]:
    """Another size for each symbol, so that no two are taken for one."""
    return {k: forced.get(k, _BASE[0] + 8 * i) for i, k in enumerate(dict.fromkeys(keys))}


def usual(keys: Iterable[Key], forced: Mapping[Key, int]) -> int:
    """How many of the `assignments` come first as all free symbols have one size."""
    return len(USUAL) if any(k not in forced for k in keys) else 1


def _proposals(free: Sequence[Key], fixed: Sequence[int]) -> Iterator[dict[Key, int]]:
    for size in USUAL:
        yield dict.fromkeys(free, size)
    if not free:
        return
    if len(free) == 1:
        yield from ({free[0]: size} for size in (*_FURTHER, *(d + n for d in fixed for n in (0, 1, *_BASE))))
        return
    for base in _BASE:
        for special in (2 * base, 1, base + 1, 0):
            for k in free:
                yield dict.fromkeys(free, base) | {k: special}
        for d in fixed:
            for k in free:
                yield dict.fromkeys(free, base) | {k: base + d}
        yield dict.fromkeys(free, 1) | {free[0]: base}
    for size in _FURTHER:
        yield dict.fromkeys(free, size)
        for k in free:
            yield dict.fromkeys(free, _BASE[1]) | {k: size}


# symbols that are computed from others


def _of_others(symbol: Key, known: Sequence[Key]) -> ast.expr | None:
    """The expression that a symbol is; None where it is a name, or names what is not known."""
    if symbol.isidentifier() or len(symbol) > _LONGEST_SYMBOL:
        return None
    try:
        tree = ast.parse(symbol.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    plain = all(isinstance(n, ast.BinOp | ast.Name | ast.Constant | ast.operator | ast.Load) for n in ast.walk(tree))
    plain = plain and all(type(n.op) in _OPERATIONS for n in ast.walk(tree) if isinstance(n, ast.BinOp))
    whole = all(isinstance(n.value, int) for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return tree if plain and whole and names and names <= {*known} - {symbol} else None


def _evaluated(tree: Any, sizes: Mapping[Key, int]) -> int:
    if isinstance(tree, ast.Constant):
        return int(tree.value)  # type: ignore[arg-type]
    if isinstance(tree, ast.Name):
        return sizes.get(tree.id, 1)
    left, right = _evaluated(tree.left, sizes), _evaluated(tree.right, sizes)
    if isinstance(tree.op, ast.FloorDiv) and right == 0:
        return 0
    return min(_OPERATIONS[type(tree.op)](left, right), 1 << 40)
