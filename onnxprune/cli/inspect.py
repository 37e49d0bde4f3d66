"""`onnxprune inspect`: what of a model can be pruned."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli.options.names import DEFAULTS
from onnxprune.cli.options.prepared import PREPARED, SCRIPT, data_of
from onnxprune.cli.options.section import Grouped, Section, files, option, with_default
from onnxprune.cli.options.shared import ALLOW_LINKS, CUSTOM_OPS, JSON, RESIZE_IO, STATE
from onnxprune.cli.screen import screen_of
from onnxprune.cli.start import start
from onnxprune.cli.values import Choice
from onnxprune.config import ATTENTIONS
from onnxprune.process import streams
from onnxprune.targets.alignment import TARGETS


@click.command(
    "inspect",
    cls=Grouped,
    sections=(
        Section(
            "Data",
            option(
                "--calib",
                metavar="PATH",
                show_default="random inputs",
                help="Data that fixes the sizes of symbolic dimensions, where random inputs do not fit.",
            ),
            SCRIPT,
            STATE,
        ),
        *PREPARED,
        Section(
            "What could go",
            option(
                "--attention",
                type=Choice(ATTENTIONS),
                **with_default(DEFAULTS.attention),
                help="What would go in attention: whole heads, or the same positions of every head (rank: turned). "
                "auto: what prune would choose with calibration data.",
            ),
            RESIZE_IO,
        ),
        Section(
            "Where it runs",
            option(
                "--target",
                type=Choice(tuple(TARGETS)),
                **with_default(DEFAULTS.target),
                help="For tensorrt-*: also say what TensorRT's ONNX parser refuses.",
            ),
            CUSTOM_OPS,
            ALLOW_LINKS,
        ),
        Section("Output", JSON),
    ),
)
@click.argument("model", metavar="MODEL", shell_complete=files)
def inspect_command(
    model: str,
    calib: str | None,
    attention: str,
    target: str,
    state: tuple[str, ...],
    resize_io: tuple[str, ...],
    allow_links: bool,
    custom_ops: tuple[str, ...],
    as_json: bool,
    **prepared: Any,
) -> None:
    """Show what of MODEL can be pruned, and why the rest cannot.

    Groups of channels that stand or fall together, with the layers that produce and read them, and every axis of a
    weight that stays, with the operator and the reason.
    """
    source = data_of(calib, "--calib", prepared)
    start()
    from onnxprune.pipeline import inspect
    from onnxprune.report import terminal

    description = inspect(
        model,
        source,
        attention=attention,
        target=target,
        state=state,
        resize_io=resize_io,
        allow_links=allow_links,
        custom_ops=custom_ops,
    )
    streams.show(description.to_json() if as_json else terminal.inspection(description, screen_of()))
