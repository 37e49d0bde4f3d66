"""`onnxprune eval`: a model on test data, and a gate for CI."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from onnxprune.cli.group import Surroundings
from onnxprune.cli.options.prepared import PREPARED, SCRIPT, data_of
from onnxprune.cli.options.section import Grouped, Section, files, option
from onnxprune.cli.options.shared import ALLOW_LINKS, CUSTOM_OPS, JSON, OVERWRITE, REPORT, STATE
from onnxprune.cli.screen import screen_of
from onnxprune.cli.start import start
from onnxprune.cli.values import ERROR_LIMIT, METRIC_LIMIT, SHARE, Choice, parse_once
from onnxprune.errors import UsageError
from onnxprune.process import streams
from onnxprune.tasks.names import NAMES


@click.command(
    "eval",
    cls=Grouped,
    sections=(
        Section(
            "Data",
            option("--data", metavar="PATH", help="Test data, as --calib of prune."),
            SCRIPT,
            option("--labels", metavar="KEY", show_default="none", help="Key of the labels in the data."),
            option("--samples", type=int, show_default="all", help="Use at most this many, a seeded choice."),
            STATE,
        ),
        *PREPARED,
        Section(
            "What the outputs mean",
            option(
                "--task",
                type=Choice(NAMES),
                show_default="what the outputs look like",
                help="Whose metric is taken, by labels and against ORIGINAL.",
            ),
            option(
                "--metric",
                metavar="SCORE|FILE.py:FUNCTION",
                show_default="none",
                help="In place of a task one of its scores, as perplexity, or a function of yours, of (outputs, "
                "ORIGINAL's outputs, labels), which are arrays by name, that gives a number, or numbers by name. It "
                "runs with all of your rights.",
            ),
        ),
        Section(
            "Comparison, and gates: exit code 4 where one does not hold",
            option("--against", metavar="ORIGINAL", show_default="none", help="The original model to compare with."),
            option(
                "--min-agreement",
                type=SHARE,
                metavar="SHARE",
                show_default="no limit",
                help="Fail where fewer samples get ORIGINAL's class, or fewer of what the task has for these: 0.99 or "
                "99%.",
            ),
            option(
                "--max-drop",
                type=float,
                metavar="POINTS",
                show_default="no limit",
                help="Fail where top-1, or what the task has for it, is more percentage points below ORIGINAL's. Needs "
                "--labels.",
            ),
            option(
                "--max-error",
                type=ERROR_LIMIT,
                multiple=True,
                metavar="[OUT:]ERROR",
                show_default="no limit",
                help="Fail where an output, or a part of one, differs from ORIGINAL's by more, or where that cannot be "
                "measured: squared error over spread, 0.05 or 5%; of the output OUT alone boxes:5%, which holds in "
                "place of the one for all. Repeatable.",
            ),
            option(
                "--min-metric",
                type=METRIC_LIMIT,
                multiple=True,
                metavar="NAME=X",
                show_default="no limit",
                help="Fail where a score that eval shows is below X: miou=70%, OUT:cosine=0.99. Repeatable.",
            ),
            option(
                "--max-metric",
                type=METRIC_LIMIT,
                multiple=True,
                metavar="NAME=X",
                show_default="no limit",
                help="Fail where one is above X: perplexity-ratio=1.05, largest-difference=0.1. Repeatable.",
            ),
        ),
        Section("Where it runs", CUSTOM_OPS, ALLOW_LINKS),
        Section("Output", JSON, REPORT, OVERWRITE),
    ),
)
@click.argument("model", metavar="MODEL", shell_complete=files)
@click.pass_obj
def eval_command(
    surroundings: Surroundings,
    /,
    model: str,
    data: str | None,
    against: str | None,
    labels: str | None,
    min_agreement: float | None,
    max_drop: float | None,
    max_error: tuple[tuple[str, float], ...],
    min_metric: tuple[tuple[str, float], ...],
    max_metric: tuple[tuple[str, float], ...],
    task: str | None,
    metric: str | None,
    state: tuple[str, ...],
    allow_links: bool,
    custom_ops: tuple[str, ...],
    report_files: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    samples: int | None,
    **prepared: Any,
) -> None:
    """Measure MODEL on test data: top-1 with labels, and every output against the original's.

    Each output gets its error, its largest difference, the cosine of what both models give for a sample, and, where it
    holds classes, how many stay the same. What the outputs mean is said by --task, or told by what they look like, and
    has scores of its own, by labels and against ORIGINAL.

    The verdict follows the worse of the two: doubtful from an error of 20% on or where fewer than 90% keep their class,
    bad from 50% on or where fewer than half do.

    With --min-agreement, --max-drop, --max-error, --min-metric or --max-metric this is a gate for CI.
    """
    source = data_of(data, "--data", prepared)
    if source is None:
        raise UsageError("--data is missing: the samples to judge by, as a path (or --data-script)")
    if min_agreement is not None and against is None:
        raise UsageError("--min-agreement needs --against")
    if max_error and against is None:
        raise UsageError("--max-error needs --against")
    if max_drop is not None and (against is None or labels is None):
        raise UsageError("--max-drop needs --against and --labels")
    if max_drop is not None and not 0.0 <= max_drop <= 100.0:
        raise UsageError(f"--max-drop is {max_drop}; it is a number of points, from 0 to 100")
    if task is not None and metric is not None:
        raise UsageError("--task and --metric both say what is measured; leave out one of them")
    if against is None and labels is None and metric is None and task != "sequence":
        raise UsageError("there is nothing to compare with: give --against ORIGINAL, or --labels KEY")
    limits = parse_once(max_error, "--max-error")
    least, most = parse_once(min_metric, "--min-metric"), parse_once(max_metric, "--max-metric")
    start()
    from onnxprune.data.sources import files_of
    from onnxprune.evaluation import evaluate, gates_of
    from onnxprune.measures.gates import Gate, demand_all
    from onnxprune.output.destination import check_outputs
    from onnxprune.report import terminal
    from onnxprune.report.environment import versions
    from onnxprune.report.files import Reports, keeping

    reports = Reports.of(report_files, overwrite=overwrite)
    check_outputs((None, *reports.paths), (model, *files_of(source), against), overwrite)
    subject = {"model": model, "against": against, "versions": versions()}
    with keeping(reports, "eval", subject, surroundings.command) as tell:
        result = evaluate(
            model,
            source,
            against=against,
            labels=labels,
            task=task,
            metric=metric,
            state=state,
            samples=samples,
            allow_links=allow_links,
            custom_ops=custom_ops,
        )
        tell(result.as_dict())
        gates: tuple[Gate, ...] = ()
        try:
            gates = gates_of(
                result,
                min_agreement=min_agreement,
                max_drop=max_drop,
                max_error=limits,
                min_metric=least,
                max_metric=most,
            )
        finally:  # what was measured is shown also where a limit is of something else
            streams.show(result.to_json(gates) if as_json else terminal.evaluation(result, screen_of(), gates))
        tell({"gates": [asdict(g) for g in gates]})
        demand_all(gates)
