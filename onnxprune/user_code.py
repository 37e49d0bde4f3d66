"""What Python files that a user names have in common, whoever runs them: their functions, and where they went wrong."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import ModuleType

# What such code may raise in place of an answer: an exit is no answer either.
RAISED = (Exception, SystemExit)


def functions_in(module: ModuleType) -> list[str]:
    """The names that it offers to call."""
    return [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]


def line_of(error: BaseException | None, path: Path) -> int:
    """The last line of a file that an error came through, or that it could not be read for; 0 where there is none."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    own = path.resolve()
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    return next((f.lineno or 0 for f in reversed(frames) if Path(f.filename).resolve() == own), 0)
