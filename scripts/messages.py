"""Every message that onnxprune gives on purpose, read out of its sources, for the site's page of errors.

A message is what a `raise` of one of the classes of `onnxprune/errors.py` is given. What it fills in is shown as …;
where it is put together elsewhere, the sentences of the function around it stand for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.house import ROOT

PACKAGE = ROOT / "onnxprune"
MARK = "<!-- messages -->"
FILLED = "…"
# click's refusal of a value is a usage error as well.
CLASSES = {
    "UsageError": ("UsageError", "BadParameter"),
    "ModelError": ("ModelError", "InputError"),
    "CalibrationError": ("CalibrationError",),
    "RunError": ("RunError",),
    "NothingPrunable": ("NothingPrunable",),
    "BudgetUnreachable": ("BudgetUnreachable",),
    "CheckFailed": ("CheckFailed",),
}
# What helps, by the class of the error and the room that it comes from; "" stands for all other rooms.
ADVICE: dict[tuple[str, str], str] = {
    (
        "UsageError",
        "",
    ): "Change the option that the message names; `onnxprune --help` has all of them. Nothing was run yet.",
    (
        "UsageError",
        "plan.py",
    ): "Make the plan anew with `--plan`, or give the model and the data that it was made with.",
    ("UsageError", "output"): "Choose another path, or `--overwrite`.",
    (
        "ModelError",
        "",
    ): "Load the model in onnxruntime first. If it runs there, the refusal is ours: please report it with the "
    "model. If not, export it anew.",
    (
        "ModelError",
        "graph",
    ): "Weights beside a model belong in its folder, under the names that the model has for them; for "
    "links there is `--allow-links`.",
    (
        "ModelError",
        "intake",
    ): "The file is damaged, or asks for more than a model of its size should. Load it in onnxruntime: if "
    "it runs there and only takes long, `ONNXPRUNE_PATIENCE=10` gives it ten times as long.",
    (
        "CalibrationError",
        "",
    ): "`onnxprune inspect MODEL --json` names the inputs with their types and shapes. The data want "
    "one array per input, under its name, preprocessed as in use.",
    (
        "RunError",
        "",
    ): "onnxruntime, a process or the disk did not do what was asked. Run the command that failed by itself, "
    "and read the line that follows.",
    (
        "RunError",
        "output",
    ): "Free space, or rights to write in the folder, are missing; or another run wrote the file first.",
    ("RunError", "jobs"): "Run without `--jobs` or `--scheduler`; the result is the same, and the cause shows itself.",
    (
        "RunError",
        "benchmark",
    ): "Name a provider that `python -c 'import onnxruntime; print(onnxruntime.get_available_providers())'` "
    "lists; for TensorRT install the extra, on a machine with an NVIDIA GPU.",
    ("RunError", "process"): "TMPDIR is full, or not to be written to: name another folder in it.",
    ("NothingPrunable", ""): "`onnxprune inspect MODEL` names each axis that stays, why, and what would free it. See "
    "[nothing was pruned: why?](../how-to/nothing-pruned.md)",
    ("BudgetUnreachable", ""): "Ask for less, or free more: a smaller `--round-to`, fewer `--exclude`, a smaller "
    "`--min-channels`, `--drop-branches`.",
    (
        "CheckFailed",
        "",
    ): "Nothing was written. After a gate (`--max-error`, `--max-drop`, `--min-agreement`): remove less, "
    "give more samples, or leave `--fast` out. After a check on the slice: please report it, with the model.",
}
# What holds statements.
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


@dataclass(frozen=True, order=True)
class Message:
    """What is said, by which class of error, and where: a file of the package."""

    error: str
    file: str
    text: str

    @property
    def room(self) -> str:
        """The folder, or the file itself where it stands beside the folders."""
        return self.file.split("/")[0]


def collect(package: Path = PACKAGE) -> list[Message]:
    """All messages, each once for a file, in the order of the files."""
    classes = {name: error for error, names in CLASSES.items() for name in names}
    found: dict[Message, None] = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = dict(_named(tree))
        for function, raised in _raises(tree):
            called = raised.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if name in classes and raised.args:
                for text in _texts(raised.args[0], named) or _sentences(function):
                    found[Message(classes[name], path.relative_to(package).as_posix(), text)] = None
    return list(found)


def _raises(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Each call that is raised, with the function around it."""
    around: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    while around:
        function, node = around.pop()
        inner = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield inner, node.exc
        parts = [c for c in ast.iter_child_nodes(node) if isinstance(c, _STATEMENTS)]
        around.extend((inner, child) for child in reversed(parts))


def _named(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Constants and functions of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node


def _texts(value: ast.expr, named: Mapping[str, ast.AST]) -> list[str]:
    """What a value may say: none where that is not written here. named: constants and functions of the module."""
    match value:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            text = "".join(str(v.value) if isinstance(v, ast.Constant) else FILLED for v in parts)
            return [text] if _says_something(text) else []
        case ast.Name(id=name) if isinstance(constant := named.get(name), ast.expr):
            return _texts(constant, {})
        case ast.IfExp(body=one, orelse=other):
            return _texts(one, named) + _texts(other, named)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            ends = _texts(right, named) or [FILLED]
            return [a + b for a in _texts(left, named) or [FILLED] for b in ends if _says_something(a + b)]
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            return [_unfilled(t) for t in _texts(template, named)]
        case ast.Call(func=ast.Name(id=name)) if isinstance(function := named.get(name), ast.FunctionDef):
            return _sentences(function)
    return []


def _unfilled(text: str) -> str:
    """A string for `format`, with what it fills in shown as …"""
    parts = text.replace("{{", "\0").split("{")
    return "".join([parts[0], *(FILLED + p.partition("}")[2] for p in parts[1:])]).replace("\0", "{")


def _says_something(text: str) -> bool:
    """Whether there are three words or more beside what is filled in."""
    return sum(any(c.isalpha() for c in word) for word in text.split()) >= 3


def _sentences(function: ast.AST) -> list[str]:
    """The sentences in a function, its docstring excepted, for messages that it puts together."""
    body = getattr(function, "body", [])
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    inside = {id(v) for n in ast.walk(function) if isinstance(n, ast.JoinedStr) for v in ast.walk(n) if v is not n}
    nodes = (n for n in ast.walk(function) if n is not first and id(n) not in inside and isinstance(n, ast.expr))
    found = (t for n in nodes if isinstance(n, ast.Constant | ast.JoinedStr) for t in _texts(n, {}))
    return [t for t in dict.fromkeys(found) if _says_something(t)]


def advice(error: str, room: str) -> str:
    """What to do about an error of that class from that room."""
    return ADVICE.get((error, room), ADVICE[error, ""])


def as_markdown() -> str:
    """A section per class of errors, in it the messages by what helps."""
    every = collect()
    lines: list[str] = []
    for error in CLASSES:
        own = [m for m in every if m.error == error]
        lines += [f"## {error}", ""]
        for helps in dict.fromkeys(advice(error, m.room) for m in sorted(own)):
            lines += [helps, ""]
            lines += [f"- {_code(m.text)}" for m in own if advice(error, m.room) == helps]
            lines.append("")
    return "\n".join(lines)


def _code(text: str) -> str:
    """A message as code, whatever backticks it holds itself."""
    flat = " ".join(text.split())
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"
