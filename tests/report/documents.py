"""Documents of reports for tests: of a run, with everything that a page can show, and with hostile names."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from typing import Any

from onnxprune import sweep
from tests import digits
from tests.digits import pruned

# What a model may be called to break out of whatever a report is written in.
HOSTILE = "</script><img src=x onerror=alert(1)>|`*_[a](http://b)\n\x1b[31m\x00]]>&amp;\u202e@me #1 www.c.d :tada:"
GATE = {"name": "--max-error", "limit": 0.1, "held": False, "text": "logits"}
QUICK: dict[str, Any] = {"ratio": 0.5, "method": "magnitude", "refit": "none"}
QUICK_SWEEP: dict[str, Any] = {"method": "magnitude", "refit": "none"}


@cache
def _text() -> str:
    return pruned("resnet", **QUICK).report.to_json()


def done() -> dict[str, Any]:
    """The document of a run on the bundled network."""
    document: dict[str, Any] = json.loads(_text())
    return document


def older() -> dict[str, Any]:
    """The same as version 1.0 of the schema had it: without curves, and with less of each group."""
    document = done() | {"schema_version": "1.0"}
    del document["curves"], document["calibration"]["pictures"]
    for g in document["groups"]:
        for added in ("units", "head", "shared", "macs", "parameters"):
            del g[added]
    return document


def charted() -> dict[str, Any]:
    """The document of a run with another curve for every group."""
    document = done()
    document["curves"] = [
        {
            "group": i,
            "method": "obs",
            "channels": list(range(2, g["channels_before"] + 1, 2)),
            "errors": [0.3 * (1 - n / g["channels_before"]) ** 2 for n in range(2, g["channels_before"] + 1, 2)],
            "tried": [g["channels_before"] // 2],
        }
        for i, g in enumerate(document["groups"])
    ]
    return document


@cache
def _swept() -> str:
    return sweep(digits.path("resnet"), None, digits.CALIB, ratios="0.1:0.7:0.1", samples=64, **QUICK_SWEEP).to_json()


def swept() -> dict[str, Any]:
    """The document of a sweep over seven ratios of the bundled network, the last of which is not on the front."""
    document: dict[str, Any] = json.loads(_swept())
    for p, error in zip(document["points"], (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.05), strict=True):
        p |= {"error": error, "interval": [0.8 * error, 1.3 * error], "front": error != 0.05, "best": error == 0.02}
    return document


def hostile(value: Any) -> Any:
    """The document with every text that may come from outside replaced."""
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


def evil(document: dict[str, Any]) -> dict[str, Any]:
    """The document with hostile texts where texts are not fixed by the schema, and with all that may stand in one."""
    keep = ("schema", "schema_version", "kind", "status", "created")
    made = hostile(deepcopy(document)) | {k: document[k] for k in keep}
    for row, own in zip(made.get("layers", ()), document.get("layers", ()), strict=True):
        row["kind"] = own["kind"]
    return made | {"gates": hostile([GATE]), "warnings": [HOSTILE], "notes": [HOSTILE]}


def large(rows: int) -> dict[str, Any]:
    """The document of a network of so many layers, each with a group, a curve and a link past it."""
    document = charted()
    layer = next(x for x in document["layers"] if x["group"] is not None)
    names = [f"/backbone/stage/block.{i}/conv/Conv" for i in range(rows)]
    sources = [[s for s in (i - 1, i - 9) if s >= 0] for i in range(rows)]
    document["layers"] = [layer | {"name": n, "group": i, "sources": sources[i]} for i, n in enumerate(names)]
    document["groups"] = [document["groups"][0] | {"name": n} for n in names]
    document["curves"] = [document["curves"][0] | {"group": i} for i in range(rows)]
    return document
