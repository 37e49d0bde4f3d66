"""The command line: the only user of click, one file per command."""

from onnxprune.cli.program import main

__all__ = ["main"]
