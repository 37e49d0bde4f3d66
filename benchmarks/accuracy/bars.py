"""What must be kept, as data: with a share of the MACs removed, bounds on some measures, by the mean over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

from benchmarks.accuracy.runs import Row


@dataclass(frozen=True)
class Measure:
    """One figure of a row. title: with its unit; value: raises KeyError where a row has none; more: more is better.

    before: the same figure of the original, or None.
    """

    title: str
    value: Callable[[Row], float]
    more: bool = False
    before: Callable[[Row], float] | None = None


MEASURES: Mapping[str, Measure] = {
    "points": Measure(
        "points of top-1 lost", lambda r: float(r["top1_before"] - r["top1_after"]), before=lambda r: r["top1_before"]
    ),
    "error": Measure("output error, %", lambda r: 100 * float(r["output_error"])),
    "nearest10": Measure("of 10 nearest neighbours kept, %", lambda r: float(r["nearest10"]), more=True),
    "perplexity": Measure(
        "more perplexity, %",
        lambda r: 100 * (r["perplexity_after"] / r["perplexity_before"] - 1),
        before=lambda r: r["perplexity_before"],
    ),
    "lines": Measure(
        "points of lines read right lost",
        lambda r: float(r["read_before"] - r["read_after"]),
        before=lambda r: r["read_before"],
    ),
    "passes": Measure("plain passes", lambda r: float(r["passes"])),
}


@dataclass(frozen=True)
class Bound:
    """Of one of MEASURES the most, or the least where more is better, that is allowed; None: it is measured alone."""

    measure: str
    allowed: float | None = None

    def met(self, value: float) -> bool:
        """Whether a figure keeps within it. Only with a bound."""
        assert self.allowed is not None
        return value >= self.allowed if MEASURES[self.measure].more else value <= self.allowed

    def shown(self) -> str:
        """As a sign and a number; "none" without a bound."""
        if self.allowed is None:
            return "none"
        return f"{'≥' if MEASURES[self.measure].more else '≤'} {self.allowed:g}"


@dataclass(frozen=True)
class Bar:
    """At `ratio` with `samples`, these bounds.

    but: models left out; pooled: the mean over models; wanted: the samples that the bar was set for, where there are
    no more than `samples`.
    """

    pattern: str
    ratio: float
    samples: int
    bounds: tuple[Bound, ...]
    but: str = ""
    pooled: bool = False
    wanted: int | None = None

    def fits(self, model: str) -> bool:
        """Whether it speaks of this model."""
        return fnmatch(model, self.pattern) and not fnmatch(model, self.but)


def _points(most: float) -> tuple[Bound, ...]:
    return (Bound("points", most),)


def _sentences(least: float, most: float) -> tuple[Bound, ...]:
    return (Bound("nearest10", least), Bound("error", most))


BARS = (
    Bar("minilm", 0.2, 512, _sentences(85, 2.5)),
    Bar("minilm", 0.3, 512, _sentences(78, 5)),
    Bar("minilm", 0.3, 1024, _sentences(83, 4), wanted=2048),
    Bar("vit", 0.3, 512, _points(1)),
    Bar("decoder", 0.3, 512, (Bound("perplexity", 10),)),
    Bar("ocr", 0.3, 256, (Bound("lines"), Bound("error"))),
    Bar("cifar10_resnet56_*", 0.5, 1024, (Bound("points", 0.3), Bound("passes", 40))),
    Bar("cifar10_resnet56_*", 0.65, 1024, _points(2)),
    Bar("cifar10_resnet56_*", 0.75, 1024, _points(5)),
    Bar("cifar10_resnet20_*", 0.4, 1024, _points(3)),
    Bar("imagenet_mobilenet_v2_1.0_224", 0.2, 384, _points(1.5)),
    Bar("imagenet_mobilenet_v2_1.0_224", 0.3, 384, _points(4)),
    Bar("imagenet_mobilenet_v1_0.5_160", 0.2, 384, _points(3)),
    Bar("kws_mlperftiny_dscnn", 0.3, 400, _points(2)),
    Bar("mnist_*", 0.5, 1024, _points(1), but="mnist_mlp_*", pooled=True),
)
