"""Measured layers on disk: one small JSON file for each signature, below a folder for each kind of machine.

The folder is $ONNXPRUNE_CACHE, else $XDG_CACHE_HOME/onnxprune, else ~/.cache/onnxprune. Files appear whole, so several
processes may use one folder. What cannot be read or written is measured again; a note says so, and nothing fails.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from onnxprune.errors import InputError, RunError
from onnxprune.latency.table import Sample
from onnxprune.output.commit import write_atomically
from onnxprune.regular_files import content

_FORMAT = 1
_MOST_BYTES = 16 << 20
# How a file that holds something else shows it; an OverflowError comes from an integer that is no float.
_BROKEN = (OSError, InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_ELSEWHERE = "ONNXPRUNE_CACHE names another folder"


def default_folder() -> Path | None:
    """Where measurements are kept; None for a user without a folder."""
    own = os.environ.get("ONNXPRUNE_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared) / "onnxprune"
    try:
        return Path.home() / ".cache" / "onnxprune"
    except RuntimeError:  # neither HOME nor the list of users knows
        return None


@dataclass(frozen=True)
class Cache:
    """The measurements that hold for one machine.

    folder: None keeps nothing. notes: what could not be read or written.
    """

    folder: Path | None
    machine: Mapping[str, str]
    notes: list[str] = field(default_factory=list)

    def path(self, signature: str) -> Path | None:
        """The file of a signature."""
        if self.folder is None:
            return None
        machine = json.dumps(dict(self.machine), sort_keys=True)
        return self.folder / "latency" / _digest(machine) / f"{_digest(signature)}.json"

    def load(self, signature: str, axes: int) -> tuple[Sample, ...]:
        """What is known of a signature, which has so many lengths; empty where that is nothing."""
        path = self.path(signature)
        try:
            if path is None or not path.exists():
                return ()
            data = json.loads(content(path, InputError, _MOST_BYTES))
            if (data["format"], data["machine"], data["signature"]) != (_FORMAT, dict(self.machine), signature):
                raise ValueError("it is about something else")
            samples = tuple(Sample(tuple(map(float, x)), float(t)) for x, t in data["samples"])
            if any(not (isfinite(v) and v >= 0.0) for s in samples for v in (*s.lengths, s.seconds)):
                raise ValueError("it holds what is no time")
            if any(len(s.lengths) != axes for s in samples):
                raise ValueError("its lengths do not fit")
        except (
            OSError,
            InputError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as e:
            self._note(f"the measurements in {path} cannot be read and are made again ({type(e).__name__})")
            return ()
        return samples

    def store(self, signature: str, samples: Sequence[Sample]) -> None:
        """Keep these, in place of what is there."""
        path = self.path(signature)
        if path is None:
            self._note(f"measurements cannot be kept for the next run: the user has no folder; {_ELSEWHERE}")
            return
        rows = [[list(s.lengths), s.seconds] for s in samples]
        data = {"format": _FORMAT, "machine": dict(self.machine), "signature": signature, "samples": rows}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(data) + "\n").encode())
        except (OSError, RunError) as e:
            self._note(f"measurements cannot be kept for the next run: {e}; {_ELSEWHERE}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
