"""`onnxprune report`: further forms of a report, made of its JSON."""

from __future__ import annotations

import click

from onnxprune.cli.options.section import Grouped, Section, flag
from onnxprune.errors import InputError, UsageError


@click.command(
    "report", cls=Grouped, sections=(Section("Output", flag("--overwrite", "Replace FILE where it exists.")),)
)
@click.argument("source", metavar="REPORT.json")
@click.argument("targets", metavar="FILE...", nargs=-1)
def report_command(source: str, targets: tuple[str, ...], overwrite: bool) -> None:
    """Make other forms of the report that --report REPORT.json saved: .html, .md or .xml, by the suffix of FILE.

    Nothing is run again: a page says what the run has found.
    """
    from onnxprune.output.destination import check_outputs
    from onnxprune.regular_files import content
    from onnxprune.report import document
    from onnxprune.report.files import Reports

    if not targets:
        raise UsageError("name the file to make, such as report.html")
    reports = Reports.of(targets, overwrite=overwrite)
    check_outputs((None, *reports.paths), (None, source), overwrite)
    data = document.read(content(source, InputError, document.MOST_BYTES), source)
    try:
        reports.save(data)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as e:
        raise InputError(f"{source} is not by the schema of reports ({type(e).__name__}: {e})") from e
