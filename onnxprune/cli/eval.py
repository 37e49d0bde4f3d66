"""`onnxprune eval`: a model on test data, and a gate for CI."""

from __future__ import annotations

from dataclasses import asdict

import click

from onnxprune.cli.group import Surroundings
from onnxprune.cli.options.section import Grouped, Section, option
from onnxprune.cli.options.shared import ALLOW_LINKS, CUSTOM_OPS, JSON, OVERWRITE, REPORT, STATE
from onnxprune.cli.screen import screen_of
from onnxprune.cli.values import ERROR, SHARE
from onnxprune.errors import UsageError
from onnxprune.process import streams
from onnxprune.runtime import child


@click.command(
    "eval",
    cls=Grouped,
    sections=(
        Section(
            "Data",
            option("--data", metavar="PATH", required=True, help="Test data: a .npz, a .npy, or a folder of these."),
            option("--labels", metavar="KEY", show_default="none", help="Key of the samples' classes in the data."),
            STATE,
        ),
        Section(
            "Comparison, and gates: exit code 4 where one does not hold",
            option("--against", metavar="ORIGINAL", show_default="none", help="The original model to compare with."),
            option(
                "--min-agreement",
                type=SHARE,
                metavar="SHARE",
                show_default="no limit",
                help="Fail where fewer samples get ORIGINAL's class: 0.99 or 99%.",
            ),
            option(
                "--max-drop",
                type=float,
                metavar="POINTS",
                show_default="no limit",
                help="Fail where top-1 is more percentage points below ORIGINAL's. Needs --labels.",
            ),
            option(
                "--max-error",
                type=ERROR,
                metavar="ERROR",
                show_default="no limit",
                help="Fail where an output, or a part of one, differs from ORIGINAL's by more, or where that cannot be "
                "measured: squared error over spread, 0.05 or 5%.",
            ),
        ),
        Section("Where it runs", CUSTOM_OPS, ALLOW_LINKS),
        Section("Output", JSON, REPORT, OVERWRITE),
    ),
)
@click.argument("model", metavar="MODEL")
@click.pass_obj
def eval_command(
    surroundings: Surroundings,
    /,
    model: str,
    data: str,
    against: str | None,
    labels: str | None,
    min_agreement: float | None,
    max_drop: float | None,
    max_error: float | None,
    state: tuple[str, ...],
    allow_links: bool,
    custom_ops: tuple[str, ...],
    report_files: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure MODEL on test data: top-1, and agreement and output error against the original.

    The verdict follows the worse of the two: doubtful from an error of 20% on or where fewer than 90% keep their class,
    bad from 50% on or where fewer than half do.

    With --min-agreement, --max-drop or --max-error this is a gate for CI.
    """
    if min_agreement is not None and against is None:
        raise UsageError("--min-agreement needs --against")
    if max_error is not None and against is None:
        raise UsageError("--max-error needs --against")
    if max_drop is not None and (against is None or labels is None):
        raise UsageError("--max-drop needs --against and --labels")
    if max_drop is not None and not 0.0 <= max_drop <= 100.0:
        raise UsageError(f"--max-drop is {max_drop}; it is a number of points, from 0 to 100")
    child.warm()
    from onnxprune.evaluation import evaluate, gates_of
    from onnxprune.measures.gates import demand_all
    from onnxprune.output.destination import check_outputs
    from onnxprune.report import terminal
    from onnxprune.report.environment import versions
    from onnxprune.report.files import Reports, keeping

    reports = Reports.of(report_files, overwrite=overwrite)
    check_outputs((None, *reports.paths), (model, data, against), overwrite)
    subject = {"model": model, "against": against, "versions": versions()}
    with keeping(reports, "eval", subject, surroundings.command) as tell:
        result = evaluate(
            model, data, against=against, labels=labels, state=state, allow_links=allow_links, custom_ops=custom_ops
        )
        tell(result.as_dict())
        streams.show(result.to_json() if as_json else terminal.evaluation(result, screen_of()))
        gates = gates_of(result, min_agreement=min_agreement, max_drop=max_drop, max_error=max_error)
        tell({"gates": [asdict(g) for g in gates]})
        demand_all(gates)
