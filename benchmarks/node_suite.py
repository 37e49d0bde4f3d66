"""Every model of onnx's node suite through `inspect` and the main command: a table by outcome.

    python -m benchmarks.node_suite [--output docs/reach.md] [--only PATTERN] [--details FILE]

Each of onnx's node tests is a model of one operator with data. It goes through three commands: `inspect`, the removal
of 30 % of its parameters, and the same once more with the operator inside a small network: its other inputs are weights
with the test's values, and a layer of weights stands before and behind it wherever its shapes allow that. The test's
own data is given to the latter two, if it is finite and a .npz can hold it; `inspect` never gets any. Whatever the
tool refuses is given to onnxruntime alone. Commands run in a worker process, so that one which dies is counted and not
the end.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.page import put
from onnxprune.data.inputs import entries_of
from tests.fuzz.commands import command, runs_alone, unlike
from tests.fuzz.workers import Answer, Worker

PRUNE = ("--ratio", "0.3", "--budget", "params", "--round-to", "1", "--samples", "8", "--fast", "--quiet")
TOLERANCE = 1e-4
DESCRIBED = "described"
PRUNED = "pruned, equal to the masked original"
NOTHING = "nothing to prune, or not so much"
NEITHER = "refused: onnxruntime does not run it either"
REFUSED = "refused although onnxruntime runs it"
FAULT = "killed the process, a defect, a hang or a wrong result"
OUTCOMES = (DESCRIBED, PRUNED, NOTHING, NEITHER, REFUSED, FAULT)
VERBS = ("inspect", "prune", "prune in a network")
_SECONDS = 60.0
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Case:
    """A model of the suite, and the inputs of its first data set."""

    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Any] | None


@dataclass(frozen=True)
class Result:
    """How one command on one case ended, and why."""

    case: str
    verb: str
    outcome: str
    why: str
    seconds: float


def cases() -> list[Case]:
    """The node tests of the installed onnx, in their order."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # its test data overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return [Case(c.name, c.model, feeds_of(c)) for c in found if c.model is not None]


def feeds_of(case: Any) -> dict[str, Any] | None:
    """The inputs of the first data set by name."""
    if not case.data_sets:
        return None
    return {v.name: x for v, x in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}


def run_case(case: Case, worker: Worker, folder: Path) -> Iterator[Result]:
    """All commands on one case."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        model, data = place / "model.onnx", place / "data.npz"
        onnx.save(case.model, model)
        stored = storable(case.feeds)
        if stored:
            np.savez(data, **stored)
        calib = ["--calib", str(data)] if stored else []
        yield judged(case.name, VERBS[0], ["inspect", str(model)], model, case.feeds, worker, place)
        yield pruned(case.name, VERBS[1], model, calib, case.feeds, worker, place)
        whole = in_a_network(case)
        if whole is not None:
            proto, feeds = whole
            inner, values = place / "network.onnx", place / "network.npz"
            onnx.save(proto, inner)
            np.savez(values, **feeds)
            yield pruned(case.name, VERBS[2], inner, ["--calib", str(values)], feeds, worker, place)


def pruned(
    case: str,
    verb: str,
    model: Path,
    calib: list[str],
    feeds: Mapping[str, Any] | None,
    worker: Worker,
    place: Path,
) -> Result:
    """The main command."""
    out, report = place / "out.onnx", place / "report.json"
    argv = [str(model), str(out), *PRUNE, *calib, "--report", str(report), "--overwrite"]
    found = judged(case, verb, argv, model, feeds, worker, place)
    if found.outcome != DESCRIBED:
        return found
    checks = json.loads(report.read_text(encoding="utf-8"))["checks"]
    wrong = worker.call(unlike, str(model), str(out))
    why = wrong.value if wrong.value is not None else wrong.died or wrong.error
    exact = checks["slice_against_oracle"] <= TOLERANCE
    out.unlink()
    report.unlink()
    return Result(case, verb, PRUNED if exact and not why else FAULT, why, found.seconds)


def judged(
    case: str, verb: str, argv: list[str], model: Path, feeds: Mapping[str, Any] | None, worker: Worker, place: Path
) -> Result:
    """Run a command and sort it; exit 0 is DESCRIBED."""
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    before = set(place.iterdir())
    answer = worker.call(command, argv, str(temporary), seconds=_SECONDS)
    why = fault(answer, argv)
    if answer.value != 0:
        # The report of a refusal says why.
        left = [p.name for p in (*(set(place.iterdir()) - before), *temporary.iterdir()) if p.name != "report.json"]
        why = why or (f"left {', '.join(left)}" if left else "")
    shutil.rmtree(temporary)
    if why:
        return Result(case, verb, FAULT, why, answer.seconds)
    line = answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else ""
    if answer.value == 0:
        return Result(case, verb, DESCRIBED, "", answer.seconds)
    if answer.value == 3:
        return Result(case, verb, NOTHING, reason(line, model), answer.seconds)
    alone = worker.call(runs_alone, str(model), feeds, seconds=_SECONDS)
    return Result(case, verb, REFUSED if alone.value else NEITHER, reason(line, model), answer.seconds)


def fault(answer: Answer, argv: list[str]) -> str:
    """What no command may do, whatever the model: empty where it did not."""
    if answer.died or answer.error:
        return answer.died or answer.error.strip().splitlines()[-1]
    if "defect" in answer.stderr or "Traceback" in answer.stderr or "please report" in answer.stderr:
        return answer.stderr.strip().splitlines()[-1]
    lines = [x for x in answer.stderr.strip().splitlines() if not x.startswith("onnxprune: warning:")]
    if len(lines) > (1 if answer.value else 0):
        return f"more than its own line on stderr: {lines[0]}"
    return "" if answer.value in (0, 1, 3, 4) else f"exit {answer.value}: {' '.join(argv[:1])}: {lines[-1:]}"


def reason(line: str, model: Path) -> str:
    """An error without names, paths and numbers, so that equal ones can be counted."""
    text = line.removeprefix("onnxprune: error: ").replace(str(model), "the model")
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "…", text)
    text = re.sub(r"Status Message:.*|/\S+", "", text)
    return re.sub(r"\d+", "N", text)[:120].strip()


def storable(feeds: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Feeds as a .npz holds them; None where numpy does not know a type, or where a value is not finite."""
    if not feeds or not all(v is None or isinstance(v, (np.ndarray, np.generic, list)) for v in feeds.values()):
        return None
    found = {k: a for name, v in feeds.items() for k, a in entries_of(name, v).items()}
    found = {k: v.astype(np.str_) if v.dtype.kind == "O" else v for k, v in found.items()}
    known = all(v.dtype.isbuiltin == 1 or v.dtype.kind in "US" for v in found.values())
    finite = known and all(np.isfinite(v).all() for v in found.values() if v.dtype.kind == "f")
    return found if finite else None


# the operator inside a network


def in_a_network(case: Case) -> tuple[onnx.ModelProto, dict[str, Any]] | None:
    """The model with a layer before its first input and behind its first output, its other inputs being weights.

    None where a layer fits on neither side, or the model is no plain graph of tensors.
    """
    if storable(case.feeds) is None or case.feeds is None or len(case.model.graph.input) != len(case.feeds):
        return None
    if not all(isinstance(v, (np.ndarray, np.generic)) for v in case.feeds.values()):
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    graph = proto.graph
    entry, *rest = graph.input
    first = entry.name
    value = np.asarray(case.feeds[first])
    if not value.ndim or not value.size:
        return None
    for v in rest:
        graph.initializer.append(numpy_helper.from_array(np.asarray(case.feeds[v.name]), v.name))
    del graph.input[1:]
    rng = np.random.default_rng(0)
    fits = value.dtype == np.float32 and value.ndim in (2, 3, 4)
    if fits:
        axis = 1 if value.ndim == 4 else value.ndim - 1
        graph.input[0].CopyFrom(helper.make_tensor_value_info("into", TensorProto.FLOAT, value.shape))
        count = len(graph.node)
        layer(graph, "into", first, value.shape[axis], value.shape[axis], value.ndim, rng)
        nodes = [*graph.node[count:], *graph.node[:count]]
        graph.ClearField("node")
        graph.node.extend(nodes)
    behind = behind_output(graph, rng)
    if not fits and not behind:
        return None
    proto.ir_version = max(proto.ir_version, 4)
    if all(o.domain not in ("", "ai.onnx") for o in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("", 13))
    return proto, {"into" if fits else first: value}


def behind_output(graph: onnx.GraphProto, rng: np.random.Generator) -> bool:
    """Put a layer behind the first output, where that is a float tensor of a known width."""
    out = graph.output[0]
    kind = out.type.tensor_type
    if not out.type.HasField("tensor_type") or kind.elem_type != TensorProto.FLOAT or not kind.HasField("shape"):
        return False
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if len(dims) not in (2, 3, 4):
        return False
    width = dims[1 if len(dims) == 4 else -1]
    if not width:
        return False
    name = out.name
    layer(graph, name, "out_of", width, 3, len(dims), rng)
    shown = [d if d is not None else f"d{i}" for i, d in enumerate(dims)]
    shown[1 if len(dims) == 4 else -1] = 3
    graph.output[0].CopyFrom(helper.make_tensor_value_info("out_of", TensorProto.FLOAT, shown))
    return True


def layer(
    graph: onnx.GraphProto, source: str, target: str, width: int, wider: int, rank: int, rng: np.random.Generator
) -> None:
    """Append a layer from `source` to `target`: a 1x1 convolution over images, else a product over the last axis."""
    shape = (wider, width, 1, 1) if rank == 4 else (width, wider)
    weight, bias = f"{target}_weight", f"{target}_bias"
    drawn = rng.standard_normal(shape) / np.sqrt(width)
    if wider == width:
        drawn = np.eye(width).reshape(shape)  # values stay where the operator is defined
    graph.initializer.append(numpy_helper.from_array(drawn.astype(np.float32), weight))
    graph.initializer.append(numpy_helper.from_array(np.zeros(wider, np.float32), bias))
    if rank == 4:
        graph.node.append(helper.make_node("Conv", [source, weight, bias], [target]))
        return
    graph.node.append(helper.make_node("MatMul", [source, weight], [f"{target}_product"]))
    graph.node.append(helper.make_node("Add", [f"{target}_product", bias], [target]))


# the table


def table(found: list[Result]) -> str:
    """Models by outcome and command, then the reasons of each outcome that is a refusal."""
    counts = Counter((r.verb, r.outcome) for r in found)
    lines = [f"| outcome | {' | '.join(VERBS)} |", "|---" * (len(VERBS) + 1) + "|"]
    for outcome in OUTCOMES:
        lines.append(f"| {outcome} | {' | '.join(str(counts[v, outcome]) for v in VERBS)} |")
    lines.append(f"| all | {' | '.join(str(sum(r.verb == v for r in found)) for v in VERBS)} |")
    by_reason: dict[str, Counter[str]] = defaultdict(Counter)
    for r in found:
        if r.outcome in (NOTHING, NEITHER, REFUSED, FAULT):
            by_reason[r.outcome][r.why] += 1
    for outcome in (NOTHING, NEITHER, REFUSED, FAULT):
        most = by_reason[outcome].most_common()
        if most:
            rest = sum(n for _, n in most[_SHOWN:])
            shown = "; ".join(f"{why.replace('|', '/')} ({n})" for why, n in most[:_SHOWN])
            lines += ["", f"*{outcome}*: {shown}" + (f"; others ({rest})" if rest else "") + "."]
    return "\n".join(lines)


def run(chosen: list[Case], core: int | None = None) -> list[Result]:
    """All commands on these cases, in one worker."""
    with Worker(core) as worker, tempfile.TemporaryDirectory() as folder:
        return [r for c in chosen for r in run_case(c, worker, Path(folder))]


def main() -> None:
    """Run the suite, then print the table or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a page whose block `node-suite` is replaced")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of the names of the tests")
    parser.add_argument("--details", type=Path, help="JSON with every result")
    args = parser.parse_args()
    found = run([c for c in cases() if fnmatch(c.name, args.only)])
    if args.details is not None:
        args.details.write_text(json.dumps([vars(r) for r in found], indent=1), encoding="utf-8")
    text = table(found)
    print(text)
    if args.output is not None:
        put(args.output, "table", "node-suite", text)


if __name__ == "__main__":
    main()
