"""Options that several commands have."""

from __future__ import annotations

import click

from onnxprune.cli.options.section import flag, option


def report_option(name: str, help_: str) -> click.Option:
    """The option --report; name: of the parameter that it becomes."""
    return option("--report", name, multiple=True, metavar="FILE", show_default="not saved", help=help_)


ALLOW_LINKS = flag(
    "--allow-links",
    "Weights beside a model may be links to anywhere. Without it only to the folder in which the model's own file "
    "lies, as in the caches of model hubs.",
)
CUSTOM_OPS = option(
    "--custom-ops",
    multiple=True,
    metavar="LIBRARY",
    show_default="none",
    help="A shared library of operators, which onnxruntime registers in every session; it runs with all of your "
    "rights. Repeatable.",
)
STATE = option(
    "--state",
    multiple=True,
    metavar="OUT=IN",
    show_default="none",
    help="The output OUT is the input IN of the next step. Then the samples of one file are steps of a sequence, and "
    "data for IN, if any, are what it starts with (else zeros). Units behind it may go; their entries are zeros. "
    "'present.*=past.*' names all whose names fit. "
    "Repeatable.",
)
RESIZE_IO = option(
    "--resize-io",
    multiple=True,
    metavar="PATTERN",
    show_default="none",
    help="Inputs and outputs that this shell pattern matches may change their size with the units: caches with the "
    "heads of attention. The report names each that did. genai_config.json and config.json beside IN are written anew "
    "beside each result, and all caches keep equally many heads then. Repeatable.",
)
SINGLE_FILE = flag(
    "--single-file",
    "Weights go into the .onnx itself, also where the original has them beside it; without it they go where the "
    "original's are. Refused for a result of 2 GiB and more, which one file cannot hold.",
)
NO_PICTURES = flag(
    "--no-pictures", "Reports show none of the images that the model was calibrated on; without it, a few, small."
)
JSON = flag("--json", "Print JSON instead of tables.", "as_json")
REPORT = report_option(
    "report_files",
    "Save the result, also where a gate fails: by the suffix as .json (everything), .html (a page), .md "
    "(a summary) or .xml (JUnit, a case for each gate). Repeatable.",
)
OVERWRITE = flag(
    "--overwrite", "Replace --report files that exist; where the command fails, those alone that are earlier reports."
)
