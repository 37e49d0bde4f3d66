"""A report as a document: plain data for JSON, with the version of its schema, what made it, and how that ended.

`docs/report-schema.json` describes it. Every other form of a report, a page or a list of test cases, is made of this
document alone, so that it can be made later, from the JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from onnxprune.errors import InputError, OnnxPruneError

Document = Mapping[str, Any]
SCHEMA = "onnxprune-report"
# Fields are added within a first number; it changes where one goes, or means something else.
SCHEMA_VERSION = "1.5"
DONE, REFUSED, FAILED = "done", "refused", "failed"
MOST_BYTES = 64 << 20  # of a file that is read
_REFUSALS = (3, 4)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    status: "done"; "refused", where the model, the budget or a gate stood against it (exit codes 3 and 4); "failed",
    where something could not be read, run or written, or options did not fit. reason: the line of the error.
    """

    status: str = DONE
    reason: str | None = None
    exit_code: int = 0

    @classmethod
    def of(cls, error: OnnxPruneError) -> Outcome:
        """What an error means for the run that it ended."""
        return cls(REFUSED if error.exit_code in _REFUSALS else FAILED, str(error), error.exit_code)


def document_of(kind: str, data: Mapping[str, Any], outcome: Outcome, command: Sequence[str] = ()) -> dict[str, Any]:
    """The document of a run.

    kind: "prune", "sweep", "quantize", "eval" or "bench". command: what was typed, () where the run was called from
    Python.
    """
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "status": outcome.status,
        "reason": outcome.reason,
        "exit_code": outcome.exit_code,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
    }
    head.update(plain(data))
    return head


def plain(value: Any) -> Any:
    """Plain data, as JSON has it: it knows no infinity, which becomes null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def to_json(document: Document) -> str:
    """The document as JSON text."""
    return json.dumps(document, indent=1) + "\n"


def read(text: str | bytes, name: str) -> dict[str, Any]:
    """The document in a JSON file called `name`. Raises InputError where it is none, or of another first number."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{name} is not JSON: {e}") from e
    if isinstance(document, dict) and document.get("schema") == 1 and "points" in document:
        document = _swept_before(document)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{name} is no report of onnxprune: its field schema is not {SCHEMA!r}")
    version = str(document.get("schema_version"))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise InputError(f"{name} has version {version} of the schema; this onnxprune reads {SCHEMA_VERSION}")
    return document


def _swept_before(document: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep.json of version 0.4.0, which had a form of its own, as one of today."""
    stages = document.get("seconds") or {}
    head = document_of("sweep", {}, Outcome()) | {"created": ""}
    effort = {"stages": stages, "seconds": sum(stages.values())}
    return {**document, **head, "effort": effort}
