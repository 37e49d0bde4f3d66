"""Pieces of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

# Longer names first: one may begin with another.
NAMES = {
    "cifar10_resnet56_legacy_folded": "ResNet-56",
    "cifar10_resnet56_legacy_bn": "ResNet-56 with nodes of BatchNormalization",
    "cifar10_resnet56": "ResNet-56",
    "cifar10_resnet20_legacy_folded": "ResNet-20",
    "imagenet_mobilenet_v2_1.0_224": "MobileNetV2",
    "mnist_vggbn_legacy": "MNIST VGG",
    "mnist_vggbn": "MNIST VGG",
    "mnist_mlp_legacy": "MNIST MLP",
    "mnist_bottleneck_resnet_legacy": "MNIST bottleneck ResNet",
    "mnist_bottleneck_resnet": "MNIST bottleneck ResNet",
    "mnist_mobilenetv2_legacy": "MNIST MobileNetV2",
    "mobilenetv3_small": "MobileNetV3-Small",
    "dgcnn": "DGCNN",
    "digits_resnet": "digits ResNet",
    "digits_mobilenet": "digits MobileNet",
}
_WRAP = {"break_long_words": False, "break_on_hyphens": False}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers are shown by `number`."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" for _ in head) + "|"]
    lines += ["| " + " | ".join(c if isinstance(c, str) else number(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def number(x: object) -> str:
    """Three significant digits, with an exponent where it is far from 1; "" for what was not measured."""
    if x is None:
        return ""
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return str(x)
    if isinstance(x, int):
        return f"{x:,}"
    if x == 0:
        return "0"
    return f"{x:.3g}" if 1e-3 <= abs(x) < 1e4 else f"{x:.1e}"


def span(values: Sequence[float]) -> str:
    """The least to the most; one where they are equal."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def percent(x: float | None) -> str:
    """With one decimal, as 500 to 1,000 test images allow."""
    return "" if x is None else f"{x:.1f}"


def count(n: int, of: int, what: str) -> str:
    """How many of how many."""
    return f"all {of} {what}" if n == of else f"none of {of} {what}" if n == 0 else f"{n} of {of} {what}"


def missing(section: str) -> str:
    """What stands where nothing was measured yet."""
    return f"*Not measured yet: `python -m experiments.paper KIT --only {section} --output docs`.*"


def short(name: str) -> str:
    """A model's file name, or a key that starts with one, as a reader would call it."""
    for file, said in NAMES.items():
        name = name.replace(file, said)
    return name


def wrapped(block: str, width: int = 120) -> str:
    """Running text and items of a list in lines of at most so many characters; tables and all else as they are."""
    if block[:1] in ("|", "#", "!"):
        return block
    items = [
        textwrap.fill(line, width, subsequent_indent="  " * line.startswith("- "), **_WRAP)
        for line in block.split("\n")
    ]
    return "\n".join(items)


def called(method: str) -> str:
    """What the page calls a method or a walk of the results."""
    return {"local, no removal": "local, γ ≥ 0"}.get(method, method)
