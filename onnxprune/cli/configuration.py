"""Options that stand in a file: `onnxprune.toml`, or the table `tool.onnxprune` of `pyproject.toml`.

    ratio = 0.4                     # at the top: options of prune
    exclude = ["/head/*"]
    [eval]                          # in a table: those of another command
    min-agreement = "99%"
    [settings.edge]                 # laid over the rest by --settings edge
    target = "tensorrt-fp16"
    [settings.edge.bench]
    provider = "tensorrt"

Keys are the long names of options, without their dashes in front; values are what the command line takes, with lists
for what is repeatable and true or false for switches. A file in the working folder is taken by itself; --config names
another one, and is the only way to name code that shall run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.options.section import MAIN
from onnxprune.errors import InputError, UsageError
from onnxprune.options import nearest, shown
from onnxprune.regular_files import content

FILE, PROJECT = "onnxprune.toml", "pyproject.toml"
NAMED = "settings"
# Options that run what they name, or follow it anywhere: a file that merely lies there may not choose that.
TRUSTED = frozenset(("custom_ops", "data_script", "allow_links"))
_TRUSTED_OF = frozenset((("eval", "metric"),))
_BYTES = 1 << 20


@dataclass(frozen=True)
class Configuration:
    """What files say of one command: its parameters' values by name, and where each of these stands."""

    values: Mapping[str, Any]
    places: Mapping[str, str]


def configuration(
    command: click.Command, commands: Mapping[str, click.Command], file: str | None, chosen: str | None
) -> Configuration:
    """What a file says of a command; of none where there is no file.

    commands: all of them by name, as every table is checked. file: None for the one in the working folder. chosen: the
    named settings that are laid over the rest. Raises UsageError for a name or a value that does not fit.
    """
    name = file or _found()
    if name is None:
        if chosen is not None:
            raise UsageError(f"--settings {chosen} is of a file, and there is neither {FILE} nor a table in {PROJECT}")
        return Configuration({}, {})
    table = _table(name)
    if table is None:
        raise UsageError(f"{name} has no table [tool.onnxprune]")
    named = table.pop(NAMED, {})
    if not isinstance(named, dict) or not all(isinstance(t, dict) for t in named.values()):
        raise UsageError(f"{name}: {NAMED} holds tables, such as [{NAMED}.edge]")
    if chosen is not None and chosen not in named:
        raise UsageError(f"{name} has no [{NAMED}.{chosen}]; {_hint(chosen, named)}")
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for label, part in ((None, table), *named.items()):
        place = name if label is None else f"{name} [{NAMED}.{label}]"
        for owner, key, value in _entries(part, commands, place):
            option = _option(commands, owner, key, place)
            taken = _value(option, key, value, place)
            trusted = option.name in TRUSTED or (owner, option.name) in _TRUSTED_OF
            if trusted and file is None:
                raise UsageError(
                    f"{place}: {key} is taken of a file that --config names alone, as it says what may run"
                )
            if commands[owner] is command and label in (None, chosen):
                values[str(option.name)] = taken
                places[str(option.name)] = place
    return Configuration(values, places)


def _found() -> str | None:
    """The file of the working folder that has something to say, if any."""
    try:
        if Path(FILE).is_file():
            return FILE
        if Path(PROJECT).is_file() and _table(PROJECT) is not None:
            return PROJECT
    except OSError:
        pass
    return None


def _table(name: str) -> dict[str, Any] | None:
    """The table of a file: all of it, or of a pyproject.toml what stands under tool.onnxprune, None for nothing.

    Raises UsageError for one that cannot be read.
    """
    try:
        table = tomllib.loads(content(name, InputError, _BYTES).decode("utf-8"))
    except InputError as e:
        raise UsageError(str(e)) from e
    except (ValueError, RecursionError) as e:  # no TOML, or no UTF-8
        raise UsageError(f"{name} is no TOML: {e}") from e
    if Path(name).name != PROJECT:
        return table
    tools = table.get("tool")
    own = tools.get("onnxprune") if isinstance(tools, dict) else None
    return own if isinstance(own, dict) else None


def _entries(
    table: Mapping[str, Any], commands: Mapping[str, click.Command], place: str
) -> Iterator[tuple[str, str, Any]]:
    """(command, key, value) of a table and of the tables of commands in it."""
    for key, value in table.items():
        if isinstance(value, dict):
            if key not in commands:
                raise UsageError(f"{place}: there is no command {key!r}; {_hint(key, (*commands, NAMED))}")
            yield from ((key, k, v) for k, v in value.items())
        else:
            yield MAIN, key, value


def _options(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by what they may be called in a file."""
    return {o: p for p in command.params if isinstance(p, click.Option) for o in _keys(p)}


def _option(commands: Mapping[str, click.Command], owner: str, key: str, place: str) -> click.Option:
    options = _options(commands[owner])
    wanted = key.replace("_", "-")
    if wanted not in options:
        raise UsageError(f"{place}: {owner} has no option {key!r}; {_hint_of_option(wanted, options, owner, commands)}")
    return options[wanted]


def _hint_of_option(wanted: str, options: Mapping[str, Any], owner: str, commands: Mapping[str, click.Command]) -> str:
    """The nearest option, else where there is one of that name, else where all are listed: dozens are no hint."""
    within = [o for o in options if wanted in o or o in wanted][:3] if len(wanted) > 2 else []
    near = nearest(wanted, options) or " or ".join(within)
    if near:
        return f"did you mean {near}?"
    others = [c for c, command in commands.items() if c != owner and wanted in _options(command)]
    if others:
        sections = " or ".join(f"[{c}]" for c in others)
        return f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} it: write it under {sections}"
    return f"onnxprune {owner} --help lists them"


def _keys(option: click.Option) -> list[str]:
    """What an option may be called in a file: its long names; those that are about files and the command alone none."""
    if option.name in ("config", "settings", "version", "help"):
        return []
    return [o.removeprefix("--") for o in option.opts if o.startswith("--")]


def _hint(name: str, known: Any) -> str:
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"it may be one of {', '.join(known)}" if known else "there is none"


def _value(option: click.Option, key: str, value: Any, place: str) -> Any:
    """The value as click takes it. Raises UsageError for one of another kind."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{place}: {key} is {shown(value)}; write true or false")
        return value
    many = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not option.multiple:
        raise UsageError(f"{place}: {key} is a list; it takes one value")
    if not all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in many):
        raise UsageError(f"{place}: {key} is {shown(value)}; write a text or a number")
    texts = [str(v) for v in many]
    return texts if option.multiple else texts[0]
