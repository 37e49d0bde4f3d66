"""What the results of a run depend on, so that a later run knows whether those in a folder are its own."""

from __future__ import annotations

from typing import Any

from onnxprune.config import PruneConfig
from onnxprune.report.environment import versions
from onnxprune.stages.load import Loaded

# Results of another machine differ by rounding, as those of another number of cores.
_ANY = {"blas", "processor", "python"}


def identity(loaded: Loaded, settings: PruneConfig) -> dict[str, Any]:
    """Model, data, options and versions, as JSON."""
    used = {k: v for k, v in versions().items() if k not in _ANY}
    return {
        "model": loaded.source.sha256,
        "data": loaded.inputs_sha256,
        "options": settings.as_dict(),
        "versions": used,
    }
