"""`onnxprune data`: what a model would be calibrated on."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli.options.prepared import PREPARED, SCRIPT, data_of
from onnxprune.cli.options.section import Grouped, Section, flag, option
from onnxprune.cli.options.shared import ALLOW_LINKS, CUSTOM_OPS, JSON, STATE
from onnxprune.cli.screen import screen_of, warn
from onnxprune.cli.start import start
from onnxprune.errors import UsageError
from onnxprune.process import streams


@click.command(
    "data",
    cls=Grouped,
    sections=(
        Section(
            "Data",
            option("--calib", metavar="PATH", help="The data, as --calib of prune."),
            SCRIPT,
            option("--samples", type=int, show_default="all", help="Use at most this many samples."),
            STATE,
        ),
        *PREPARED,
        Section("Where it runs", CUSTOM_OPS, ALLOW_LINKS),
        Section(
            "Output",
            option(
                "--sheet",
                metavar="FILE",
                show_default="not saved",
                help="Save some of the images side by side, as the model reads them.",
            ),
            flag("--overwrite", "Replace --sheet where it exists."),
            JSON,
        ),
    ),
)
@click.argument("model", metavar="MODEL")
def data_command(model: str, calib: str | None, as_json: bool, **options: Any) -> None:
    """Show what MODEL would be calibrated on: shapes, types, ranges, channels, and what looks wrong.

    The model runs on it once, as at the beginning of a run; nothing is pruned.
    """
    source = data_of(calib, "--calib", options)
    if source is None:
        raise UsageError("--calib is missing: the data to look at, as a path (or --data-script)")
    start()
    from onnxprune.pipeline import preview
    from onnxprune.report import terminal

    seen = preview(model, source, **options)
    for text in seen.warnings:
        warn(text)
    streams.show(seen.to_json() if as_json else terminal.preview(seen, screen_of()))
