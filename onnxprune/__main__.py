"""The command: `onnxprune`, and `python -m onnxprune`."""

from __future__ import annotations

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until the command listens itself, Ctrl-C ends it without a traceback of what it was importing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from onnxprune.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
