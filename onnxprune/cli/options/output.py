"""What is written and shown."""

from __future__ import annotations

from onnxprune.cli.options.names import DECIDED, flag_of
from onnxprune.cli.options.section import Section, flag, option, with_default
from onnxprune.cli.options.shared import NO_PICTURES, SINGLE_FILE, report_option
from onnxprune.cli.values import Choice

OUTPUT = Section(
    "Output",
    flag("--dry-run", "Stop after the plan: no model is written, OUT is optional."),
    option(
        "--plan",
        "plan_file",
        metavar="FILE",
        show_default="not saved",
        help="Save the plan (which channels stay) as JSON; also with --dry-run.",
    ),
    option(
        "--from-plan",
        metavar="FILE",
        show_default="none",
        help="Replay a saved plan: same model, data and seed give the same bytes, on the same processor, with the same "
        "versions and --jobs; without the data, or with other data, it is refused unless --force. The plan has decided "
        f"what stays, so {', '.join(map(flag_of, DECIDED[:-1]))} and {flag_of(DECIDED[-1])} are refused beside it. "
        "--target, --refit, --recover, --effort, --fast, --seed, --samples and --memory come from the plan unless "
        "given here; --calib, --force, --jobs, --scheduler, --provider, --allow-links and --custom-ops never do.",
    ),
    report_option(
        "report_file",
        "Save the report, of a run that is refused too: by the suffix as .json (everything), .html (a page), "
        ".md (a summary) or .xml (JUnit). Repeatable.",
    ),
    NO_PICTURES,
    flag(
        "--bench",
        "Also time IN and OUT in turns, one sample at a time, for the report; `onnxprune bench` measures anything "
        "else.",
    ),
    SINGLE_FILE,
    flag("--overwrite", "Replace OUT, --plan and --report files that exist."),
    flag("--quiet", "No report, no progress; warnings and errors stay.", "-q"),
    flag("--verbose", "Also stages and their parts where stderr is no terminal, and groups that stay whole.", "-v"),
    option(
        "--progress",
        type=Choice(("auto", "lines", "none")),
        **with_default("auto"),
        help="What stderr shows while the command runs: a bar on a terminal and nothing elsewhere (auto), a line for "
        "each stage, or nothing.",
    ),
    option(
        "--log-file",
        metavar="FILE",
        show_default="none",
        help="Append to this file what is shown, line by line with the time; also with --quiet.",
    ),
    option(
        "--on-interrupt",
        type=Choice(("discard", "keep")),
        **with_default("discard"),
        help="What Ctrl-C does during recovery: end the run, with exit code 130 and nothing written, or go on with the "
        "best state so far, which is checked like any other. A second Ctrl-C ends the run.",
    ),
)
