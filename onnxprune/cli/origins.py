"""Where the value of an option comes from, and which of two that contradict each other gives way.

The command line is above the environment, that above a file. What stands in a file is said once for many runs, so a
run that says otherwise is no contradiction: `--uniform 0.3` beside `ratio = 0.5` in a file is a uniform cut. Of two
from one place neither gives way, and the command refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from onnxprune.cli.options.names import DECIDED, flag_of
from onnxprune.config import GOALS, READ_BY

PLACES = "onnxprune.places"  # the key of `Context.meta` under which a command finds where a file's values stand
_RANKS = {ParameterSource.DEFAULT_MAP: 1, ParameterSource.ENVIRONMENT: 2, ParameterSource.COMMANDLINE: 3}
_COMMAND_LINE = 3
# Of each row one counts.
_ALTERNATIVES = (
    GOALS,
    ("calib", "data_script"),
    ("fast", "recover", "effort"),
    ("jobs", "scheduler"),
    ("dry_run", "bench", "max_error"),
)
_OFF = {"jobs": 1, "fast": False, "bench": False, "budget": "macs", "timing": (), "timing_target": ()}


@dataclass(frozen=True)
class Origins:
    """Rank of the place that each option comes from, 0 for its default, and that place in words."""

    ranks: Mapping[str, int]
    places: Mapping[str, str]

    @classmethod
    def of(cls, ctx: click.Context) -> Origins:
        """Those of a command's options."""
        names = [str(p.name) for p in ctx.command.params if isinstance(p, click.Option)]
        ranks = {k: _RANKS.get(s, 0) if (s := ctx.get_parameter_source(k)) is not None else 0 for k in names}
        files = ctx.meta.get(PLACES, {})
        variables = {str(p.name): _variable(p, ctx) for p in ctx.command.params}
        places = {k: files.get(k, "") if rank == 1 else variables[k] for k, rank in ranks.items() if rank in (1, 2)}
        return cls(ranks, places)

    def settle(self, given: dict[str, Any]) -> Origins:
        """Without those that give way, which `given` then has as if they had not been given."""
        ranks = dict(self.ranks)

        def drop(name: str) -> None:
            given[name], ranks[name] = _OFF.get(name), 0

        for row in _ALTERNATIVES:
            top = max((ranks[k] for k in row), default=0)
            for k in row:
                if 0 < ranks[k] < top:
                    drop(k)
        above: list[tuple[str, tuple[str, ...]]] = []
        if given["from_plan"] is not None:
            above.append(("from_plan", DECIDED))
        elif goal := next((k for k in GOALS[1:] if given[k] is not None), None):
            above.append((goal, ("budget", "batch", "threads", "timing", "timing_target")))
        for name, others in above:
            for k in others:
                if 0 < ranks.get(k, 0) < ranks[name]:
                    drop(k)
        # What would do nothing is a slip on the command line alone.
        idle = [k for k, methods in READ_BY.items() if given["method"] not in methods]
        idle += (
            ["batch", "threads", "timing", "timing_target"]
            if given["from_plan"] is None and given["budget"] != "latency"
            else []
        )
        for k in idle:
            if 0 < ranks[k] < _COMMAND_LINE:
                drop(k)
        return Origins(ranks, {k: v for k, v in self.places.items() if ranks[k] and k in given})

    def explicit(self) -> set[str]:
        """The options that were given anywhere."""
        return {k for k, rank in self.ranks.items() if rank}

    def told(self) -> dict[str, str]:
        """Place → the options that come from it, for the report; nothing of the command line."""
        found: dict[str, list[str]] = {}
        for name, place in self.places.items():
            found.setdefault(place, []).append(flag_of(name.removesuffix("_file")))
        return {place: ", ".join(names) for place, names in found.items()}


def _variable(p: click.Parameter, ctx: click.Context) -> str:
    """The environment variable of an option."""
    return str(p.envvar) if p.envvar else f"{ctx.auto_envvar_prefix}_{str(p.name).upper()}"
