"""The files of a run: stored under temporary names, then named at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import onnx

from onnxprune import plan
from onnxprune.graph import external
from onnxprune.graph.external import Placement
from onnxprune.numerics.arrays import Masks
from onnxprune.output.commit import Stage
from onnxprune.output.model_files import commit, put_model, too_large
from onnxprune.report.files import Reports
from onnxprune.report.summary import Report
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded


@dataclass(frozen=True, repr=False)
class PruneResult:
    """The pruned model (None after a dry run), the plan and the report, as which a notebook shows it."""

    model: onnx.ModelProto | None
    plan: plan.Plan
    report: Report

    def __repr__(self) -> str:
        """In a line: a model in words fills screens."""
        return f"PruneResult(report={self.report!r})"

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return self.report._repr_html_()


def foreseen_size(loaded: Loaded, coupled: Coupled, masks: Masks) -> tuple[str, ...]:
    """That the result will be too large for the one file that was asked for, before it is made: by its parameters."""
    if loaded.source.placement is not Placement.INSIDE:
        return ()
    kept = [int(masks[g.index].sum()) if g.index in masks else g.size for g in coupled.channels.groups]
    share = coupled.costs["stored"].at(kept) / max(coupled.stored_parameters, 1)
    return tuple(filter(None, [too_large(round(loaded.source.size * share), "about ")]))


def stored(
    stage: Stage,
    result: PruneResult,
    placement: Placement,
    output: str | os.PathLike[str] | None,
    plan_file: str | os.PathLike[str] | None,
    reports: Reports,
    more: Mapping[Path, bytes] = MappingProxyType({}),
) -> PruneResult:
    """Store what was asked for, the model last: where it is, all is. The result without references to temporary files,
    its report with the names of all. more: what goes beside the model.

    Raises RunError.
    """
    if plan_file is not None:
        stage.put(Path(plan_file), result.plan.to_json().encode())
    if reports.paths:
        reports.put(stage, result.report.document())
    model = result.model
    if model is not None:
        if output is None:
            model = external.embedded(model)
        else:
            for path, blob in more.items():
                stage.put(path, blob)
            model = put_model(stage, model, Path(output), placement=placement)
    files = tuple(map(str, stage.targets))
    if output is not None:
        files = (files[-1], *files[:-1])
    return replace(result, model=model, report=replace(result.report, files=files))


def named(stage: Stage, output: str | os.PathLike[str] | None) -> None:
    """Give everything its name, or nothing and RunError."""
    if output is None:
        stage.commit()
    else:
        commit(stage, Path(output))
