"""The report of `quantize`, as frozen data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.measures.gates import Gate
from onnxprune.report.document import Outcome, document_of, to_json
from onnxprune.report.notebook import line, notebook
from onnxprune.report.summary import FewerBitsRow


@dataclass(frozen=True, repr=False, kw_only=True)
class QuantizeReport:
    """Everything that a run of `quantize` has to say; its fields mean what those of `summary.Report` do.

    error: what there is to say of output_error. seconds: of the whole run.
    """

    model: str
    model_sha256: str
    output: str | None
    config: Mapping[str, Any]
    fewer_bits: FewerBitsRow
    checks: Mapping[str, Any]
    output_error: float | None
    agreement: float | None
    outputs: tuple[Mapping[str, Any], ...]
    error: Mapping[str, Any]
    verdict: Mapping[str, Any]
    calibration: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    latency: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    outcome: Outcome = field(default_factory=Outcome)
    command: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The report as plain data, by `docs/report-schema.json`."""
        data = asdict(self)
        outcome, command = data.pop("outcome"), data.pop("command")
        del data["files"]
        data["effort"] = {"stages": {}, "seconds": data.pop("seconds")}
        return document_of("quantize", data, Outcome(**outcome), command)

    def to_json(self) -> str:
        """The report as JSON text."""
        return to_json(self.document())

    def __repr__(self) -> str:
        """What matters most, in a line."""
        return line(self.document())

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return notebook(self.document())
