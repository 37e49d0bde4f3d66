"""What helps where a file cannot be written: a full folder and a limit on the size of files are different troubles."""

from __future__ import annotations

import errno

_TOO_LARGE = "raise the limit on the size of files (ulimit -f), or write to a file system that takes larger ones"


def why_not(error: OSError, remedy: str = "") -> str:
    """The reason of the system, and what to do: `remedy`, or about the size of the file where that is the trouble."""
    advice = _TOO_LARGE if error.errno == errno.EFBIG else remedy
    return f"{error.strerror or error}" + (f"; {advice}" if advice else "")
