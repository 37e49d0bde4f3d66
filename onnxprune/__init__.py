"""Make an ONNX model slimmer by removing whole channels: no training framework, no labels, no training code.

    from onnxprune import prune
    result = prune("in.onnx", "out.onnx", "calib.npz", ratio=0.5)

Everything is loaded on first use, so that the import itself is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__

if TYPE_CHECKING:
    from onnxprune.benchmark.measure import Bench, bench
    from onnxprune.channels.describe import Description
    from onnxprune.config import PruneConfig
    from onnxprune.data.images import Images
    from onnxprune.data.scripts import Script
    from onnxprune.data.texts import Texts
    from onnxprune.errors import (
        BudgetUnreachable,
        CalibrationError,
        CheckFailed,
        InputError,
        ModelError,
        NothingPrunable,
        OnnxPruneError,
        RunError,
        UsageError,
    )
    from onnxprune.evaluation import Evaluation, evaluate
    from onnxprune.handover.document import Handover
    from onnxprune.intake.preview import Preview
    from onnxprune.pipeline import inspect, preview, prune
    from onnxprune.report.progress import Progress
    from onnxprune.report.sweep import Sweep
    from onnxprune.sentence.export_plan import export_plan
    from onnxprune.sentence.quantize import QuantizeResult, quantize
    from onnxprune.sentence.recording import Recording, record_layers
    from onnxprune.sentence.sweep import sweep
    from onnxprune.stages.save import PruneResult

__all__ = [
    "Bench",
    "BudgetUnreachable",
    "CalibrationError",
    "CheckFailed",
    "Description",
    "Evaluation",
    "Handover",
    "Images",
    "InputError",
    "ModelError",
    "NothingPrunable",
    "OnnxPruneError",
    "Preview",
    "Progress",
    "PruneConfig",
    "PruneResult",
    "QuantizeResult",
    "Recording",
    "RunError",
    "Script",
    "Sweep",
    "Texts",
    "UsageError",
    "__version__",
    "bench",
    "evaluate",
    "export_plan",
    "inspect",
    "preview",
    "prune",
    "quantize",
    "record_layers",
    "sweep",
]

_HOMES = {
    "Bench": "onnxprune.benchmark.measure",
    "Description": "onnxprune.channels.describe",
    "Evaluation": "onnxprune.evaluation",
    "Handover": "onnxprune.handover.document",
    "Images": "onnxprune.data.images",
    "Script": "onnxprune.data.scripts",
    "Texts": "onnxprune.data.texts",
    "Preview": "onnxprune.intake.preview",
    "Progress": "onnxprune.report.progress",
    "PruneConfig": "onnxprune.config",
    "PruneResult": "onnxprune.stages.save",
    "QuantizeResult": "onnxprune.sentence.quantize",
    "Recording": "onnxprune.sentence.recording",
    "Sweep": "onnxprune.report.sweep",
    "bench": "onnxprune.benchmark.measure",
    "evaluate": "onnxprune.evaluation",
    "export_plan": "onnxprune.sentence.export_plan",
    "inspect": "onnxprune.pipeline",
    "preview": "onnxprune.pipeline",
    "prune": "onnxprune.pipeline",
    "quantize": "onnxprune.sentence.quantize",
    "record_layers": "onnxprune.sentence.recording",
    "sweep": "onnxprune.sentence.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "onnxprune.errors")), name)
