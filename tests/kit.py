"""Where the local test material lies, and its files as test parameters.

The material is no part of the repository: ONNXPRUNE_KIT names its folder, else `../shared/kit` beside the checkout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import sampled

# Inputs whose sizes a model does not declare but demands: a voice detector's window, state and sampling rate.
_DEMANDED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "silero_vad_op18_ifless": {"input": (-1, 512), "state": (2, -1, 128), "sr": ()}
}
_SAMPLING_RATE = 16000
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


def one_export_each(models: list[Any]) -> list[Any]:
    """Of each network among these parameters one export, exporters taking turns; all where ONNXPRUNE_EXAMPLES is set.

    For what depends on operators and sizes, which the exports of one network share; what the exporters write
    differently has tests on every file (`test_kit_exact.py`).
    """
    if sampled.ALL:
        return models
    exports: dict[str, list[Any]] = {}
    for p in models:
        exports.setdefault(re.sub(r"(_legacy|_dynamo|_bn|_folded)+$", "", str(p.id)), []).append(p)
    return [own[i % len(own)] for i, own in enumerate(exports.values())]


def kit_feeds(path: Path, proto: onnx.ModelProto, batch: int) -> dict[str, Any]:
    """Random inputs: the first symbolic axis is the batch, the others 16 positions."""
    weights = {t.name for t in proto.graph.initializer}
    demanded = _DEMANDED.get(path.stem, {})
    rng = np.random.default_rng(batch)
    feeds: dict[str, Any] = {}
    for v in proto.graph.input:
        if v.name in weights:
            continue
        dims = v.type.tensor_type.shape.dim
        shape = [d.dim_value or (batch if i == 0 else 16) for i, d in enumerate(dims)]
        if v.name in demanded:
            shape = [batch if s == -1 else s for s in demanded[v.name]]
        kind = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        if np.issubdtype(kind, np.floating):
            feeds[v.name] = rng.standard_normal(shape).astype(kind)
        else:
            feeds[v.name] = np.full(shape, _SAMPLING_RATE if v.name == "sr" else 1, kind)
    return feeds


def has_batch(proto: onnx.ModelProto) -> bool:
    """Whether the first input takes any number of samples."""
    weights = {t.name for t in proto.graph.initializer}
    first = next(v for v in proto.graph.input if v.name not in weights)
    return not first.type.tensor_type.shape.dim[0].HasField("dim_value")
