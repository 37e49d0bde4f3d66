"""`onnxprune export-plan`: a plan and its result as parameters of the network that the model was exported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.options.prepared import PREPARED, SCRIPT, data_of
from onnxprune.cli.options.section import Grouped, Section, files, flag, option
from onnxprune.cli.options.shared import ALLOW_LINKS, CUSTOM_OPS
from onnxprune.cli.screen import warn
from onnxprune.cli.start import start
from onnxprune.cli.values import Choice
from onnxprune.process import streams
from onnxprune.report.visible import visible


@click.command(
    "export-plan",
    cls=Grouped,
    sections=(
        Section(
            "Weights and names",
            option(
                "--to",
                type=Choice(("torch",)),
                default="torch",
                show_default=True,
                help="Whose names the parameters get.",
            ),
            option(
                "--slim",
                metavar="MODEL",
                show_default="the original's weights, cut",
                help="The model that the plan was made into: its refitted weights are handed over.",
            ),
            option(
                "--state-dict",
                metavar="FILE",
                show_default="names alone",
                help="The network's own parameters before pruning, as safetensors. Names are then found by values too, "
                "and a BatchNorm that the exporter folded into a layer is taken out again.",
            ),
            flag(
                "--partial",
                "Write what was found where parameters are missing; without it that is exit code 4, and nothing is "
                "written.",
            ),
        ),
        Section(
            "Data",
            option(
                "--calib",
                metavar="PATH",
                show_default="random inputs",
                help="Data that fixes the sizes of symbolic dimensions, where random inputs do not fit.",
            ),
            SCRIPT,
        ),
        *PREPARED,
        Section("Where it runs", CUSTOM_OPS, ALLOW_LINKS),
        Section("Output", flag("--overwrite", "Replace OUT, and the JSON beside it, where they exist.")),
    ),
)
@click.argument("planned", metavar="PLAN", shell_complete=files)
@click.argument("model", metavar="MODEL", shell_complete=files)
@click.argument("output", metavar="[OUT]", required=False)
def export_plan_command(
    planned: str,
    model: str,
    output: str | None,
    to: str,
    slim: str | None,
    state_dict: str | None,
    partial: bool,
    calib: str | None,
    allow_links: bool,
    custom_ops: tuple[str, ...],
    overwrite: bool,
    **prepared: Any,
) -> None:
    """Give a pruned model back to the network that MODEL was exported from, for training to go on.

    PLAN is what --plan saved, MODEL the original. OUT gets the weights by the network's own names, as safetensors, and
    a JSON of the same name says which positions of each axis stay. Without OUT they are called like PLAN.
    """
    source = data_of(calib, "--calib", prepared)
    start()
    from onnxprune.sentence.export_plan import export_plan

    target = Path(output) if output is not None else Path(planned).with_suffix(".safetensors")
    result = export_plan(
        planned,
        model,
        target,
        slim,
        to=to,
        state_dict=state_dict,
        calibration=source,
        partial=partial,
        overwrite=overwrite,
        allow_links=allow_links,
        custom_ops=custom_ops,
        warn=warn,
    )
    found, described = result.parameters, target.with_suffix(".json")
    counted = f"{len(found.values)} parameters, {len(found.kept)} of them narrower"
    streams.show(f"{visible(str(target))}: {counted}; {visible(described.name)} says which positions stay\n")
