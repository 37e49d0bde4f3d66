"""What a command does before it loads a runtime."""

from __future__ import annotations

from onnxprune.cli.screen import warn
from onnxprune.runtime import child
from onnxprune.runtime.builds import Builds


def start() -> None:
    """See that there is one onnxruntime, and start the process that tries models. To be called once options are fine.

    Raises RunError where there is none.
    """
    builds = Builds.found()
    builds.check()
    if doubt := builds.doubt():
        warn(doubt)
    child.warm()
