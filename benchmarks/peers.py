"""The same share of channels from every layer of well-known networks, by onnxprune and by its peers.

    python -m benchmarks.peers WORK [--models resnet18 …] [--tools onnxprune …] [--again] [--table docs/peers.md]

Exports torchvision's definitions with random weights into the folder WORK, lets every tool remove half of the channels
there, and writes a table of what is left. Every model and tool runs in a process of its own with limits of time and
memory, so that a crash or a hang of one is one cell of the table. Results are lines of WORK/results.jsonl; what is
there already is not run again without --again. Needs the extra `peers` of pyproject.toml, and Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.torch_imports import without_torchvision_operators
from onnxprune.stages import couple, load

RATIO = 0.5
NEAR = 0.03
ROUND_TO = 8
SIZE = 224
SECONDS, GIBIBYTES = 1200, 6
MODELS = (
    "resnet18 resnet50 vgg16_bn alexnet mobilenet_v2 mobilenet_v3_large densenet121 squeezenet1_1 efficientnet_b0 "
    "mnasnet1_0 resnext50_32x4d regnet_y_400mf convnext_tiny vit_b_32 deeplabv3_resnet50 googlenet shufflenet_v2_x1_0 "
    "swin_t"
).split()
# What a network is built with: no pretrained backbone, and no heads that only training uses.
# GELU and linear layers are one node each only in what the newer exporter writes; onnxsim knows them in no other form.
DYNAMO = ("convnext_tiny", "vit_b_32", "swin_t")
BUILD: Mapping[str, Mapping[str, Any]] = {
    "deeplabv3_resnet50": {"weights_backbone": None},
    "googlenet": {"aux_logits": False, "init_weights": True},
}


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS), metavar="TOOL")
    parser.add_argument("--again", action="store_true", help="run what has a result, too")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of every model and tool")
    parser.add_argument("--memory", type=float, default=GIBIBYTES, help="limit of every model and tool, in GiB")
    parser.add_argument("--table", type=Path, help="write the table to this file too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        resource.setrlimit(resource.RLIMIT_DATA, (int(args.memory * 2**30),) * 2)
        print(json.dumps(one(args.models[0], args.tools[0], args.work)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    results = args.work / "results.jsonl"
    done = {} if args.again else read(results)
    for model in args.models:
        for tool in args.tools:
            if (model, tool) in done:
                continue
            found = {"model": model, "tool": tool} | apart(model, tool, args.work, args.seconds, args.memory)
            with results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)
    text = document(read(results))
    if args.table is not None:
        args.table.write_text(text, encoding="utf-8")
    print(text)


def read(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last result of every model and tool."""
    if not results.exists():
        return {}
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {(r["model"], r["tool"]): r for r in rows}


def apart(model: str, tool: str, work: Path, seconds: float, memory: float) -> dict[str, Any]:
    """`one` in a process of its own; a failure in words where it crashes or does not end."""
    command = [sys.executable, "-m", "benchmarks.peers", str(work), "--here", "--memory", str(memory)]
    command += ["--models", model, "--tools", tool]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"did not finish in {seconds:.0f} s"}
    if ran.returncode < 0:
        return {"failure": f"crashed ({signal.Signals(-ran.returncode).name})"}
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or not lines:
        return {"failure": (ran.stderr.strip().splitlines() or ["no answer"])[-1]}
    return dict(json.loads(lines[-1]))


def one(model: str, tool: str, work: Path) -> dict[str, Any]:
    """Run a tool on a model, here: shares kept, seconds and whether the result runs; or the failure in words."""
    graph, out = work / f"{model}.onnx", work / "out.onnx"
    if not graph.exists():
        export(*build(model)[:2], graph, dynamo=model in DYNAMO)
    try:
        found = TOOLS[tool](Case(model, graph, out))
        out.unlink(missing_ok=True)
        return found
    except MemoryError:
        return {
            "failure": f"ran out of memory, limited to {resource.getrlimit(resource.RLIMIT_DATA)[0] / 2**30:.0f} GiB"
        }
    except Exception as e:  # noqa: BLE001  whatever a tool raises is its result
        return {"failure": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}


# networks


def build(model: str) -> tuple[Any, Any, Callable[[Any], Any]]:
    """(module with random weights, example input, how to get the tensor out of what the module returns)."""
    import torch

    with without_torchvision_operators():
        from torchvision.models import get_model
    torch.manual_seed(0)
    network = get_model(model, weights=None, **BUILD.get(model, {})).eval()
    with torch.no_grad():
        for values in (*network.parameters(), *network.buffers()):
            # A fresh network has many equal biases, which the exporter would make one, and ViT's head is zero, which
            # would hide every error before it; a trained one has neither.
            if values.is_floating_point() and (values.dim() == 1 or not values.any()):
                values += 0.01 * torch.rand_like(values)
    example = torch.randn(1, 3, SIZE, SIZE)
    return network, example, lambda y: y["out"] if isinstance(y, dict) else y


def export(network: Any, example: Any, path: Path, *, dynamo: bool) -> None:
    """Write the network as ONNX; nothing at `path` unless that succeeded.

    The older exporter is given a dynamic batch. The newer one is not: it would write ConvNeXt's pooling as a Gather by
    indices that are computed from the batch at run time.
    """
    import torch

    part = path.with_suffix(".part")
    options: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"], "dynamo": dynamo}
    if dynamo:
        options |= {"external_data": False, "verbose": False, "opset_version": 20}
    else:
        options |= {"dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}}, "opset_version": 17}
    torch.onnx.export(network, (example,), str(part), **options)
    part.replace(path)


@dataclass(frozen=True)
class Case:
    """A network to prune: its name, for tools that want the module, and its ONNX file; a pruned graph goes to `out`."""

    model: str
    graph: Path
    out: Path


# tools


def with_onnxprune(case: Case) -> dict[str, Any]:
    """Half of every group by weight magnitude; nothing refitted, as the widths are all that is compared."""
    import onnxprune

    start = time.perf_counter()
    result = onnxprune.prune(
        case.graph,
        case.out,
        uniform=RATIO,
        round_to=ROUND_TO,
        method="magnitude",
        refit="none",
        samples=2,
        overwrite=True,
    )
    seconds = time.perf_counter() - start
    pinned = sorted({f"{p.operator}: {p.reason}" for p in result.report.pinned})
    macs = result.report.after.macs / result.report.before.macs
    return compared(case.graph, case.out) | {"macs": macs, "seconds": seconds, "pinned": pinned}


def with_torch_pruning(case: Case) -> dict[str, Any]:
    """Its MagnitudeImportance on the module, local, with the layer that gives the classes ignored."""
    import torch
    import torch_pruning as tp

    network, example, read_output = build(case.model)
    macs, parameters = tp.utils.count_ops_and_params(network, example)
    with torch.no_grad():
        expected = read_output(network(example)).shape
    ignored = [
        m
        for m in network.modules()
        if (isinstance(m, torch.nn.Linear) and m.out_features == expected[1])
        or (isinstance(m, torch.nn.Conv2d) and m.out_channels == expected[1] and m.kernel_size == (1, 1))
    ][-1:]
    start = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        network,
        example,
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=RATIO,
        global_pruning=False,
        round_to=ROUND_TO,
        ignored_layers=ignored,
        output_transform=lambda y: read_output(y).sum(),
    )
    pruner.step()
    seconds = time.perf_counter() - start
    left = sum(p.numel() for p in network.parameters())
    found: dict[str, Any] = {"params": left / parameters, "seconds": seconds}
    try:
        with torch.no_grad():
            shape = read_output(network(example)).shape
        found["runs"] = "yes" if shape == expected else f"no: its output is {tuple(shape)}"
        found["macs"] = tp.utils.count_ops_and_params(network, example)[0] / macs
    except Exception as e:  # noqa: BLE001  that the pruned module does not run is the result
        found["runs"] = f"no: {type(e).__name__}: {' '.join(str(e).split())[:120]}"
    return found


def with_onnxsim(case: Case) -> dict[str, Any]:
    """Its structured pruning; without its simplification, behind which it finds no more and in ConvNeXt nothing."""
    import onnx
    import onnxsim

    start = time.perf_counter()
    onnx.save(onnxsim.apply_structured_pruning(str(case.graph), sparsity=RATIO), case.out)
    seconds = time.perf_counter() - start
    found = compared(case.graph, case.out) | {"seconds": seconds}
    return found | ({"macs": macs_of(case.out) / macs_of(case.graph)} if not found["runs"].startswith("no:") else {})


TOOLS: Mapping[str, Callable[[Case], dict[str, Any]]] = {
    "onnxprune": with_onnxprune,
    "torch-pruning": with_torch_pruning,
    "onnxsim": with_onnxsim,
}


def compared(before: Path, after: Path) -> dict[str, Any]:
    """The share of the parameters that `after` has kept, and whether it is valid and runs."""
    import onnx

    from onnxprune.graph import protobuf

    old, new = onnx.load(before), onnx.load(after)
    found: dict[str, Any] = {"params": protobuf.parameters(new) / protobuf.parameters(old)}
    try:
        shapes = [outputs_of(p) for p in (before, after)]
        found["runs"] = "yes" if shapes[0] == shapes[1] else f"no: its outputs are {shapes[1]}"
        onnx.checker.check_model(new, full_check=True)
    except Exception as e:  # noqa: BLE001  that the pruned graph does not run, or is not valid, is the result
        verdict = "not valid" if found.get("runs") == "yes" else "no"
        found["runs"] = f"{verdict}: {type(e).__name__}: {' '.join(str(e).split())[:120]}"
    return found


def outputs_of(path: Path) -> list[tuple[int, ...]]:
    """Shapes of what onnxruntime computes from random numbers, a batch of two where the graph allows it."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()[0]
    batch = wanted.shape[0] if isinstance(wanted.shape[0], int) else 2
    x = np.random.default_rng(0).standard_normal((batch, 3, SIZE, SIZE), np.float32)
    outputs = session.run(None, {wanted.name: x})
    if not all(np.isfinite(y).all() for y in outputs):
        raise ArithmeticError("the outputs are not finite")
    return [y.shape for y in outputs]


def macs_of(path: Path) -> float:
    """Multiply-accumulates of a graph, as onnxprune counts them."""
    from onnxprune import PruneConfig, cost

    channels = couple.trace(load.load(path, None, PruneConfig(samples=1)))
    return cost.macs(channels).at([g.size for g in channels.groups])


# the document

_HEAD = """# Beside its peers

The same half of the channels of every layer, taken by three tools from the same networks: what is left of the
parameters and of the MACs. A tool that leaves a layer alone, because it does not follow the graph there, is left with
more. The networks are torchvision's definitions with random weights (widths do not depend on them), one input of
3 x 224 x 224; the graphs are exported with `torch.onnx.export`, batch normalization folded, opset 17 (ConvNeXt, ViT and
Swin with the newer exporter, `dynamo=True`, opset 20, in whose form onnxsim finds more).

- **onnxprune** {onnxprune}: `onnxprune IN OUT --uniform 0.5 --round-to 8` on the graph, with `--method magnitude
  --refit none`, as only widths are compared here; every result has passed the check against the masked original.
- **Torch-Pruning** {torch-pruning}: on the PyTorch module, `MagnitudePruner` with `MagnitudeImportance`,
  `pruning_ratio=0.5`, `round_to=8`, `global_pruning=False`, the last classifier layer ignored, as in its examples.
- **onnxsim** {onnxsim}: `apply_structured_pruning` at 0.5 on the graph. It has no rounding of widths.

*Params* and *MACs* are the shares kept: less is better. *Runs*: onnxruntime gives outputs of the same shape from the
pruned graph (*not valid*: it does, but ONNX's checker with shape inference refuses the graph), or the pruned module's
forward does. MACs of graphs are counted by onnxprune, those of modules by Torch-Pruning.
With torch {torch}, torchvision {torchvision} and onnxruntime {onnxruntime}.
The auxiliary heads of GoogLeNet, which only training uses, are left out.

Made by `python -m benchmarks.peers WORK --table docs/peers.md`.

"""


def document(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The results as a page in markdown."""
    return _HEAD.format(**versions()) + table(results) + gaps(results) + failures(results)


def versions() -> dict[str, str]:
    """Of everything that the figures depend on."""
    names = ("onnxprune", "torch-pruning", "onnxsim", "torch", "torchvision")
    import onnxruntime

    # A build's local suffix, such as +cpu, says nothing about widths.
    return {n: version(n).partition("+")[0] for n in names} | {"onnxruntime": onnxruntime.__version__}


def table(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """One line per network, three columns per tool."""
    titles = {"onnxprune": "onnxprune", "torch-pruning": "Torch-Pruning", "onnxsim": "onnxsim"}
    head = ["network", *(f"{titles[t]} {c}" for t in TOOLS for c in ("params", "MACs", "runs"))]
    rows = [[m, *(cell for t in TOOLS for cell in cells(results.get((m, t))))] for m in MODELS]
    return "".join(_line(r) for r in (head, ["---"] * len(head), *rows))


def cells(result: Mapping[str, Any] | None) -> Sequence[str]:
    """(share of parameters, share of MACs, runs)."""
    if result is None:
        return ("", "", "")
    if "failure" in result:
        return ("fails", "", "no")
    shares = [f"{result[k]:.3f}" if k in result else "" for k in ("params", "macs")]
    return (*shares, result["runs"].partition(":")[0])


def gaps(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Where onnxprune is left with more than Torch-Pruning by over NEAR, and what `inspect` says of what stays."""
    said: list[str] = []
    for model in MODELS:
        ours, theirs = (results.get((model, tool), {}) for tool in ("onnxprune", "torch-pruning"))
        if ours.get("params", 0.0) <= theirs.get("params", 1.0) + NEAR:
            continue
        # Which tensor it is differs from layer to layer; the reason does not.
        reasons = {
            re.sub(r"'[^']*'( \([^)]*\))?", "another tensor", r) for r in ours["pinned"] if "the graph " not in r
        }
        said.append(f"- {model}: {'; '.join(sorted(reasons))}\n")
    if not said:
        return ""
    return (
        f"\nWhere onnxprune keeps over {NEAR} more than Torch-Pruning, and what it says of what stays:\n\n"
        + "".join(said)
    )


def failures(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Every failure in the words of the tool."""
    said = [
        f"- {model}, {tool}: {found.get('failure') or found['runs'].partition(': ')[2]}\n"
        for model in MODELS
        for tool in TOOLS
        for found in [results.get((model, tool), {"runs": "yes"})]
        if found.get("runs") != "yes"
    ]
    return "\nWhat failed, in the words of the tools or of the checks:\n\n" + "".join(said) if said else ""


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |\n"


if __name__ == "__main__":
    main()
