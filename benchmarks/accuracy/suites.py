"""Named sets of runs, and any set by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import product
from typing import Any

from benchmarks.accuracy.bars import BARS
from benchmarks.accuracy.kits import Kit
from benchmarks.accuracy.runs import DEFAULT, OURS, OWN, Run


@dataclass(frozen=True)
class Choice:
    """What narrows a suite: patterns of models, one export of a network or "all", seeds (None: as the suite wants)."""

    models: Sequence[str] = ("*",)
    exports: str = "one"
    seeds: int | None = None

    def of(self, kit: Kit, pattern: str, but: str = "") -> list[str]:
        """Models that match a suite's pattern, and are wanted."""
        return [n for n in kit.models([pattern], exports=self.exports) if self.wants(n) and not fnmatch(n, but)]

    def wants(self, model: str) -> bool:
        """Whether one of the patterns matches."""
        return any(fnmatch(model, p) for p in self.models)


BAR_SEEDS = 3
# Name → options of PruneConfig.
FAST: Mapping[str, Any] = {"fast": True}
VARIANTS: Mapping[str, Mapping[str, Any]] = {"default": {}, "fast": FAST}

METHODS = ("gfs", "local", "global", "combined", "obs", "taylor", "magnitude")
REFITS = ("none", "scale", "least-squares", "lockstep")
# (pattern, ratios, samples)
METHOD_POINTS = (("cifar10_resnet56_*", (0.3, 0.5), 1024), ("imagenet_mobilenet_v2_1.0_224", (0.2,), 384))

SIZES = tuple(2**k for k in range(4, 12))
CALIBRATION_SEEDS = 3
SOURCE_SAMPLES = 1024
# (pattern, ratio, data that the model never saw)
CALIBRATION_POINTS = (
    ("cifar10_resnet56_*", 0.5, ("imagenet", "mnist", "noise", "random")),
    ("cifar10_resnet20_*", 0.4, ("imagenet", "mnist", "noise", "random")),
    ("mnist_vggbn_*", 0.5, ("imagenet", "cifar10", "noise", "random")),
    ("mnist_resnext_*", 0.5, ("imagenet", "cifar10", "noise", "random")),
)

# (tool, methods, refits)
PEERS = (
    (OURS, (DEFAULT,), (DEFAULT,)),
    ("torch-pruning", ("magnitude", "taylor", "hessian"), ("none", "batchnorm")),
    ("torch-pruning", ("magnitude-inside", "taylor-inside", "hessian-inside"), ("none", "batchnorm")),
    ("onnxsim", ("magnitude", "wanda"), ("none", "ridge")),
)
# Tools that only ask what activations are like (benchmarks/accuracy/peers_statistics.py).
STATISTICS = ("flap", "vbp")
TRANSFORMER_PEERS = (
    (OURS, (DEFAULT,), (DEFAULT,)),
    *((tool, ("variance",), ("bias",)) for tool in STATISTICS),
    ("onnxsim", ("magnitude", "wanda"), ("none", "ridge")),
    ("onnxsim", ("magnitude",), ("blocks",)),
)
# (pattern, pattern left out, ratio, samples)
TRANSFORMER_POINTS = (("minilm", "", 0.3, 512), ("vit", "", 0.3, 512))
PEER_POINTS = (
    ("cifar10_resnet56_*", "", 0.5, 1024),
    ("cifar10_resnet56_*", "", 0.65, 1024),
    ("cifar10_resnet20_*", "", 0.4, 1024),
    ("mnist_*", "mnist_mlp_*", 0.5, 1024),
    ("imagenet_mobilenet_v2_1.0_224", "", 0.2, 384),
    ("imagenet_mobilenet_v1_0.5_160", "", 0.2, 384),
)


def bars(kit: Kit, choice: Choice) -> Iterator[Run]:
    """The points of BARS, with each one's variants; the first seed of everything first."""
    for seed, bar in product(range(choice.seeds or BAR_SEEDS), BARS):
        for options, model in product(VARIANTS.values(), choice.of(kit, bar.pattern, bar.but)):
            yield Run(model, bar.ratio, seed=seed, samples=bar.samples, options=options)


def methods(kit: Kit, choice: Choice) -> Iterator[Run]:
    """Every selection with every refit, and nothing after it."""
    for pattern, ratios, samples in METHOD_POINTS:
        for model, ratio in product(choice.of(kit, pattern), ratios):
            for seed, method, refit in product(range(choice.seeds or 1), METHODS, REFITS):
                yield Run(model, ratio, method=method, refit=refit, seed=seed, samples=samples, options=FAST)


def calibration(kit: Kit, choice: Choice) -> Iterator[Run]:
    """From few to many samples, and data of other kinds, with every variant."""
    seeds = range(choice.seeds or CALIBRATION_SEEDS)
    for (pattern, ratio, others), options in product(CALIBRATION_POINTS, VARIANTS.values()):
        for model in choice.of(kit, pattern):
            for seed, samples in product(seeds, SIZES):
                yield Run(model, ratio, seed=seed, samples=samples, options=options)
            for seed, source in product(seeds, others):
                yield Run(model, ratio, seed=seed, samples=SOURCE_SAMPLES, source=source, options=options)


def peers(kit: Kit, choice: Choice) -> Iterator[Run]:
    """The library and its peers on the same weights and images."""
    for points, tools in ((PEER_POINTS, PEERS), (TRANSFORMER_POINTS, TRANSFORMER_PEERS)):
        for pattern, but, ratio, samples in points:
            for model, seed in product(choice.of(kit, pattern, but), range(choice.seeds or 1)):
                for tool, named, refits in tools:
                    for method, refit in product(named, refits):
                        yield Run(model, ratio, tool, method, refit, seed=seed, samples=samples)


SUITES: Mapping[str, Callable[[Kit, Choice], Iterator[Run]]] = {
    "bars": bars,
    "methods": methods,
    "calibration": calibration,
    "peers": peers,
}


@dataclass(frozen=True)
class Grid:
    """All combinations of these."""

    tools: Sequence[str] = (OURS,)
    methods: Sequence[str] = (DEFAULT,)
    refits: Sequence[str] = (DEFAULT,)
    ratios: Sequence[float] = (0.5,)
    samples: Sequence[int] = (1024,)
    sources: Sequence[str] = (OWN,)
    options: Mapping[str, Any] = field(default_factory=dict)

    def runs(self, kit: Kit, choice: Choice) -> Iterator[Run]:
        """For every wanted model of the kit, all its exports."""
        for model in kit.models(choice.models):
            every = product(self.ratios, self.tools, self.methods, self.refits, self.samples, self.sources)
            for ratio, tool, method, refit, samples, source in every:
                for seed in range(choice.seeds or 1):
                    yield Run(model, ratio, tool, method, refit, seed, samples, source, self.options)
