"""Make the small digit classifiers in this folder and the images to calibrate and test them.

Two convolutional networks are trained on scikit-learn's 8x8 handwritten digits and exported to ONNX:

* ``digits_resnet.onnx``: residual blocks, written by PyTorch's TorchScript exporter (opset 17);
* ``digits_mobilenet.onnx``: inverted residuals with depthwise convolutions and squeeze-excite,
  written by PyTorch's dynamo exporter (opset 18).

With them come ``digits_calib.npz`` and ``digits_test.npz``, and the records ``SHA256SUMS``,
``accuracy.json`` and the table in ``README.md``.

Make everything anew (about a minute on two CPU cores)::

    pip install torch==2.13.0 onnx onnxscript onnxruntime scikit-learn
    python models/make_digits.py

Check the files that are here, without training (needs numpy, onnx and onnxruntime only)::

    python models/make_digits.py --check

``--check`` exits 1 if a checksum, an accuracy or the table in the README does not match.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

if TYPE_CHECKING:
    import torch

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
CHECKSUMS = HERE / "SHA256SUMS"
ACCURACY = HERE / "accuracy.json"
CALIB = HERE / "digits_calib.npz"
TEST = HERE / "digits_test.npz"
RESNET = HERE / "digits_resnet.onnx"
MOBILENET = HERE / "digits_mobilenet.onnx"
MODELS = (RESNET, MOBILENET)
FILES = (RESNET, MOBILENET, CALIB, TEST)

SEED = 0
TEST_IMAGES = 500
CALIB_IMAGES = 256
PIXEL_MEAN = 4.9  # close to the mean of all pixels, which lie in 0..16
PIXEL_SCALE = 6.0  # close to their standard deviation
EPOCHS = 60
BATCH = 64
REQUIRED_TOP1 = 0.97
TOLERANCE = 1e-4  # largest allowed difference between the logits of onnxruntime and of torch

TABLE_BEGIN = "<!-- table: written by make_digits.py -->"
TABLE_END = "<!-- end of table -->"


class Split(NamedTuple):
    """Images, shape (N, 1, 8, 8), and their classes."""

    images: Floats
    labels: Ints


class Score(NamedTuple):
    """Number of test images classified correctly, and of all of them."""

    correct: int
    total: int


# ---------------------------------------------------------------------------------------------- data


def load_splits() -> tuple[Split, Split, Split]:
    """Return the training, calibration and test splits; calibration is a part of training."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = ((digits.images[:, None] - PIXEL_MEAN) / PIXEL_SCALE).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=SEED)
    calib, _ = train_test_split(train, train_size=CALIB_IMAGES, stratify=labels[train], random_state=SEED)
    return Split(images[train], labels[train]), Split(images[calib], labels[calib]), Split(images[test], labels[test])


def load_test() -> Split:
    """Return the stored test split."""
    with np.load(TEST) as stored:
        return Split(stored["input"], stored["label"])


# -------------------------------------------------------------------------------------------- models


def make_resnet() -> torch.nn.Module:
    """Return an untrained residual network: two blocks of 16 channels, then two of 32."""
    from torch import Tensor, nn

    class BasicBlock(nn.Module):
        """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU()
            self.shortcut: nn.Module = nn.Identity()
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.bn1(self.conv1(x)))
            result: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
            return result

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        BasicBlock(16, 16, 1),
        BasicBlock(16, 16, 1),
        BasicBlock(16, 32, 2),
        BasicBlock(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def make_mobilenet() -> torch.nn.Module:
    """Return an untrained network of five inverted residuals, two of them with squeeze-excite."""
    from torch import Tensor, nn

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]

    class SqueezeExcite(nn.Module):
        """Scale every channel by a factor computed from the means of all channels."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(channels, channels // 4, 1),
                nn.ReLU(),
                nn.Conv2d(channels // 4, channels, 1),
                nn.Sigmoid(),
            )

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = x * self.gate(x)
            return result

    class InvertedResidual(nn.Module):
        """Expand with a 1x1 convolution, filter each channel, project back; add the input where shapes allow."""

        def __init__(self, inputs: int, outputs: int, stride: int, expand: int, excite: bool) -> None:
            super().__init__()
            hidden = inputs * expand
            layers: list[nn.Module] = []
            if expand != 1:
                layers += [*conv(inputs, hidden, 1), nn.ReLU6()]
            layers += [*conv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
            if excite:
                layers.append(SqueezeExcite(hidden))
            layers += conv(hidden, outputs, 1)
            self.layers = nn.Sequential(*layers)
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers(x)
            return x + y if self.residual else y

    return nn.Sequential(
        *conv(1, 16, 3),
        nn.ReLU6(),
        InvertedResidual(16, 16, 1, expand=1, excite=False),
        InvertedResidual(16, 24, 2, expand=4, excite=False),
        InvertedResidual(24, 24, 1, expand=4, excite=True),
        InvertedResidual(24, 32, 2, expand=4, excite=False),
        InvertedResidual(32, 32, 1, expand=4, excite=True),
        *conv(32, 96, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def shift(images: torch.Tensor) -> torch.Tensor:
    """Move every image by -1, 0 or 1 pixel along each axis, at random, filling with the background."""
    import torch

    count, _, height, width = images.shape
    background = -PIXEL_MEAN / PIXEL_SCALE
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=background)
    rows = torch.randint(0, 3, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 3, (count, 1)) + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(model: torch.nn.Module, data: Split) -> None:
    """Train the model in place for a fixed number of epochs; nothing is chosen by looking at test images."""
    import torch

    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    steps = EPOCHS * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels))
        for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            loss_of(model(shift(images[batch])), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


# -------------------------------------------------------------------------------------------- export


def export(model: torch.nn.Module, path: Path) -> None:
    """Write the model as ONNX with a dynamic batch and no trace of the machine that made it."""
    import torch

    example = torch.zeros(2, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the TorchScript exporter is used on purpose
        if path == RESNET:
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=False,
                opset_version=17,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            )
        else:
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=True,
                external_data=False,
                opset_version=18,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    proto = onnx.load(path)
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    written = path.read_bytes()
    for trace in (f"{HERE.parent}/", f"{Path.home()}/", f"{sys.prefix}/", "site-packages", "stack_trace"):
        if trace.encode() in written:
            raise RuntimeError(f"{path.name} contains {trace!r}")


def strip(proto: onnx.ModelProto) -> None:
    """Remove documentation strings and exporter metadata, such as stack traces, from a model."""
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    for function in proto.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        strip_nodes(function.node)
    strip_graph(proto.graph)


def strip_graph(graph: onnx.GraphProto) -> None:
    """Do the same for a graph."""
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    strip_nodes(graph.node)


def strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    """Do the same for nodes and the graphs inside them."""
    for node in nodes:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.type == onnx.AttributeProto.GRAPH:
                strip_graph(attribute.g)
            for graph in attribute.graphs:
                strip_graph(graph)


# ------------------------------------------------------------------------------------------ measures


def logits_of(path: Path, images: Floats) -> Floats:
    """Run an ONNX model with onnxruntime on the CPU."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": images})[0], dtype=np.float32)


def score_of(path: Path, test: Split) -> Score:
    """Return the top-1 score of an ONNX model."""
    correct = np.count_nonzero(logits_of(path, test.images).argmax(axis=1) == test.labels)
    return Score(int(correct), len(test.labels))


def compare_with_torch(model: torch.nn.Module, path: Path, test: Split) -> float:
    """Return the largest difference between the logits of torch and onnxruntime; raise if above the tolerance."""
    import torch

    with torch.inference_mode():
        expected = model(torch.from_numpy(test.images)).numpy()
    difference = float(np.abs(logits_of(path, test.images) - expected).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{path.name}: onnxruntime differs from torch by {difference:.3g}, more than {TOLERANCE}")
    return difference


def parameters_of(path: Path) -> int:
    """Count the numbers in an ONNX model's floating-point initializers, scalars apart."""
    initializers = onnx.load(path).graph.initializer
    return sum(int(np.prod(t.dims)) for t in initializers if t.data_type == onnx.TensorProto.FLOAT and len(t.dims))


def sha256_of(path: Path) -> str:
    """Return a file's checksum."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------- records


def table_of(scores: dict[str, Score]) -> str:
    """Return the table of all files, as Markdown."""
    lines = ["| file | top-1 | parameters | bytes | sha256 |", "|---|---|---|---|---|"]
    for path in FILES:
        top1, parameters = "", ""
        if path.name in scores:
            correct, total = scores[path.name]
            top1, parameters = f"{correct / total:.2%} ({correct}/{total})", f"{parameters_of(path)}"
        lines.append(f"| `{path.name}` | {top1} | {parameters} | {path.stat().st_size} | `{sha256_of(path)}` |")
    return "\n".join(lines)


def make() -> None:
    """Train, export, verify and write every file of this folder."""
    import torch

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of sums, and so the result, depends on the number of threads
    training, calib, test = load_splits()
    np.savez_compressed(CALIB, input=calib.images)
    np.savez_compressed(TEST, input=test.images, label=test.labels)

    scores: dict[str, Score] = {}
    for path, factory in ((RESNET, make_resnet), (MOBILENET, make_mobilenet)):
        torch.manual_seed(SEED)
        model = factory()
        train(model, training)
        export(model, path)
        difference = compare_with_torch(model, path, test)
        score = scores[path.name] = score_of(path, test)
        print(f"{path.name}: onnxruntime and torch differ by {difference:.2g} at most")
        if score.correct < REQUIRED_TOP1 * score.total:
            raise RuntimeError(f"{path.name}: top-1 {score.correct}/{score.total} is below {REQUIRED_TOP1:.0%}")

    CHECKSUMS.write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in FILES))
    ACCURACY.write_text(json.dumps({name: score._asdict() for name, score in scores.items()}, indent=2) + "\n")
    table = table_of(scores)
    before, rest = README.read_text().split(TABLE_BEGIN)
    after = rest.split(TABLE_END)[1]
    README.write_text(f"{before}{TABLE_BEGIN}\n{table}\n{TABLE_END}{after}")
    print(table)


def check() -> list[str]:
    """Return what does not match between the files of this folder and their records."""
    problems = []
    recorded = {name: digest for digest, name in map(str.split, CHECKSUMS.read_text().splitlines())}
    if set(recorded) != {path.name for path in FILES}:
        problems.append(f"{CHECKSUMS.name} lists {sorted(recorded)}")
    for path in FILES:
        if not path.is_file():
            problems.append(f"{path.name} is missing")
        elif recorded.get(path.name) != sha256_of(path):
            problems.append(f"{path.name} has another sha256 than {CHECKSUMS.name} says")
    if problems:
        return problems

    test = load_test()
    scores = {path.name: score_of(path, test) for path in MODELS}
    expected = {name: Score(**score) for name, score in json.loads(ACCURACY.read_text()).items()}
    if scores != expected:
        problems.append(f"{ACCURACY.name} says {expected}, measured {scores}")
    table = table_of(scores)
    if table not in README.read_text():
        problems.append(f"{README.name} does not hold the table below")
    print(table)
    return problems


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the digit classifiers in this folder, or check them.")
    parser.add_argument("--check", action="store_true", help="check the existing files; train nothing")
    if not parser.parse_args().check:
        make()
        return 0
    problems = check()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
