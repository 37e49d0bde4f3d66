"""Which state of the code a result is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Pages and results are not among them: they change while something is measured.
_CODE = ("onnxprune", "tests", "benchmarks", "experiments", "scripts", "models", "pyproject.toml")


def commit() -> str:
    """Of the code that runs, with `-dirty` where it differs from that commit; "an unknown commit" outside of git."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--", *_CODE)
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return f"{head}-dirty" if changed else head


def _git(*given: str) -> str:
    done = subprocess.run(["git", *given], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
