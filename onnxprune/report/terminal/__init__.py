"""Reports as text for a terminal or a log: a file for each kind of report, and a few for what they share."""

from onnxprune.report.terminal.evaluated import evaluation
from onnxprune.report.terminal.fewer_bits import quantize_report
from onnxprune.report.terminal.inspected import inspection
from onnxprune.report.terminal.previewed import preview
from onnxprune.report.terminal.pruned import prune_report
from onnxprune.report.terminal.recorded import recording
from onnxprune.report.terminal.screen import PLAIN_WIDTH, Screen
from onnxprune.report.terminal.swept import sweep
from onnxprune.report.terminal.timed import benchmark

__all__ = [
    "PLAIN_WIDTH",
    "Screen",
    "benchmark",
    "evaluation",
    "inspection",
    "preview",
    "prune_report",
    "quantize_report",
    "recording",
    "sweep",
]
