"""Where the local test material lies, and its files as test parameters.

The material is no part of the repository: ONNXPRUNE_KIT names its folder, else `../shared/kit` beside the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

NO_KIT = "the kit of real models is not here: set ONNXPRUNE_KIT to its folder"


def kit_folder() -> Path:
    """The folder, which need not exist."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "kit"
    return Path(os.environ.get("ONNXPRUNE_KIT", beside))


def kit_models(*folders: str) -> list[Any]:
    """One parameter for each ONNX file of these folders; a single skipped one where the kit is missing."""
    root = kit_folder()
    found = sorted(f for folder in folders for f in (root / folder).glob("*.onnx"))
    if not found:
        return [pytest.param(root, id="no-kit", marks=pytest.mark.skip(reason=NO_KIT))]
    return [pytest.param(f, id=f"{f.parent.name}/{f.stem}") for f in found]
