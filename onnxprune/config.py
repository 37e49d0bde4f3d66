"""The options of one run, frozen and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

from onnxprune import methods
from onnxprune.errors import UsageError
from onnxprune.methods import BUDGETS, METHODS, REFITS
from onnxprune.options import MOST, MOST_NUMBER, check_most, experts_by_pattern, shares_by_pattern, shown, typed
from onnxprune.targets.alignment import AUTO, DEFAULT, TARGETS
from onnxprune.targets.precision import FLOAT_SHARE, FP16, PRECISIONS, RANGES, REDUCE_RANGE

# Options that other methods never look at.
READ_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "metric": tuple(k for k, row in METHODS.items() if row.gradients and row.sequential),
        "coefficients": methods.with_best_steps(),
        "probes": methods.reading_labels(),
    }
)
# What says how much goes: one of them.
GOALS = ("ratio", "uniform", "tolerance", "layer_tolerance")
METRICS = ("gates", "kronecker", "exact")
COEFFICIENTS = ("free", "convex")
ATTENTIONS = (AUTO, "heads", "head-dim", "rank")
UNTRIED = ("keep", "cut")
ROTATIONS = ("off", "auto")
PROVIDERS = ("cpu", "cuda")
RATIO = 0.5
RECOVER = 16
# What an epoch of recovery takes, in plain passes over the samples: 4 to 12 where it was measured.
EPOCH_PASSES = 6
# What says how long recovery takes, and that it does not.
_LENGTHS: Mapping[str, Any] = MappingProxyType({"recover": None, "effort": None, "fast": False})
_LONGEST_PATTERN = 1000
# What says how channels go, or which branches a budget may choose, and what stands for nothing said.
_OF_A_SHARE: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "budget": ("macs",),
        "drop_branches": (None, False),
        "max_ratio": (None,),
        "ratio_of": ((),),
        "rotate": ("off",),
        "attention": (AUTO, "heads", "head-dim"),
    }
)


def names_all_that_goes(given: Mapping[str, Any]) -> bool:
    """Whether options, by the names of PruneConfig, ask for experts, tokens or layers by name, and for nothing that a
    share of the channels would have to be known for."""
    named = bool(given["drop_experts"] or given["keep_tokens"] or given["drop_layers"])
    free = AUTO in given["drop_layers"] or any(given[k] not in idle for k, idle in _OF_A_SHARE.items())
    return named and not free


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What to remove and how.

    ratio: share of the budget to remove, in (0, 1), or 0 where nothing goes but what is named: experts, rows of tokens,
    layers, shares of groups. Without it, `uniform` and tolerances it is 0 where no more than the first three of these
    is asked for (`names_all_that_goes`), else 0.5. budget: what `ratio` counts: "macs",
    "params" or "latency", the measured time of a run of `batch` samples on `threads` threads of onnxruntime (0: its own
    choice). uniform: instead of a ratio, the share of its channels that every group loses, in (0, 1).
    tolerance: instead of either, the discrepancy of the network's outputs that the cuts may cause, above 0: as much
    goes as that allows. It is relative to the spread of the original's outputs, on held-out samples.
    layer_tolerance: instead of any of these, the same for each group by itself, in (0, 1): it keeps the fewest units
    whose discrepancy, as the method measures it on the uncut network, is at most this share of what removing them all
    would cause.
    method: selection: "obs" (block OBS); greedy imitation (Ye, Wu & Liu 2020) of the layer's output ("local"), of the
    network's ("global"), or by layer the better of both ("combined"); the same by fixed steps ("gfs", "gfs-outputs":
    Ye et al. 2020); "taylor" (Molchanov et al. 2019); "magnitude", "random".
    metric: how "global" and "combined" measure the outputs: Gauss-Newton in the channels ("gates"), Kronecker-factored
    ("kronecker"), or the network itself for the best few candidates of each step ("exact").
    coefficients: those of "local", "global" and "combined" sum up to whatever serves best, up to the number of channels
    ("free"), or to that number after every step ("convex", the letter of the paper).
    probes: random projections of the outputs per sample that are differentiated.
    refit: "lockstep", "least-squares", "scale", "greedy" (the coefficients that a greedy method found) or "none".
    recover: passes over the samples in which the refitted model learns from the original, 0 for none; None stands for
    RECOVER after "lockstep" and none after another refit. effort: instead, how much that may take, in plain passes of
    the original over the samples: one in which it learns counts as EPOCH_PASSES of them. fast: none, and the last
    points of accuracy with them.
    target: where the result will run, a name in `targets.alignment`; for TensorRT's the model is held against what its
    ONNX parser accepts. round_to: widths are multiples of this, or unchanged; "auto" takes the alignment of the target,
    and less of it where a group is narrow or the budget demands it.
    attention: what goes in attention: whole "heads", or the same positions of every head ("head-dim"; "rank": turned
    first to the directions that say most); "auto": "rank" where all attention of the model can be turned, directions
    serve (there is data, weights are refitted) and no whole layer may go, else "heads". The scale that the model
    applies to its scores stays as it is.
    untried_branches: what is done with the channels that a branch of an If reads or writes which no sample takes:
    "keep" or "cut".
    rotate: whether streams that linear layers alone write and read are turned to the directions that tell their readers
    most, before channels are selected: "off", or "auto": where data and method tell them, and the target does not
    compute with codes of eight bits.
    ratio_of: pairs PATTERN=SHARE: groups whose producers match lose that share of their channels, the nearest width to
    it that the alignment allows, whatever the goal says of the others; the last pattern that matches counts. max_ratio:
    the share of its channels, in (0, 1), that any other group loses at most. same_widths: patterns; the groups that one
    matches, which have equally many channels, keep equally many.
    min_channels: no width goes below. drop_branches: whether a branch may go as a whole, with all its channels; None
    leaves that to the budget. drop_layers: whole layers of a transformer (attention and feed-forward block) that go, by
    number or by a pattern of their names; "auto" lets the budget choose, where that harms less than narrowing does.
    drop_experts: how many experts go from each mixture (MoE, QMoE) before anything else goes, those that give least on
    the samples; or PATTERN=3,5, the numbers of those that go from mixtures whose node matches.
    then: "int8" to store the pruned model in 8-bit integers, as `target` wants it, "fp16" in half precision; None to
    leave it in float. ranges: how the ranges of its activations are found: by "auto", of the three others the one that
    leaves the least error, "min-max", "entropy" or "percentile". reduce_range: whether weights have 7 bits: "yes",
    "no", or "auto", where this processor's kernels need that. keep_float: patterns on names of layers that stay in
    float; float_share: the share of the multiplications that further ones may take, where they cost more than they
    give.
    keep_fused: operators that onnxruntime had fused are written as they were, where what
    stands for them is still there. include, exclude: shell patterns on node or tensor names; an excluded layer keeps
    its outputs *and* its inputs. exclude_after: patterns on names of tensors; all layers behind these stay whole.
    state: pairs OUT=IN, an output that is an input of the next step; the samples of one file are then steps of a
    sequence, and units behind it may go. resize_io: patterns on names of inputs and outputs that may change their size
    with the units, as caches do with heads. keep_tokens: ids of tokens, of which alone embeddings and logits keep their
    rows before anything else goes (`data.token_lists.tokens_of` reads a file of them); the first one's row is read by
    ids that are not among them. Empty: all stay.
    seed: of every random choice. samples: use at most this many calibration samples.
    labels: the key of the calibration data that holds the labels, for methods that look at gradients; None without any.
    memory: bytes that cached activations of one model may take; more lie in files. force: write even where a check
    failed.
    Raises UsageError for a value out of range.
    """

    ratio: float | None = None
    budget: str = "macs"
    batch: int = 1
    threads: int = 0
    uniform: float | None = None
    tolerance: float | None = None
    layer_tolerance: float | None = None
    method: str = "obs"
    metric: str = "gates"
    coefficients: str = "free"
    probes: int = 1
    refit: str = "lockstep"
    recover: int | None = None
    effort: int | None = None
    fast: bool = False
    round_to: int | str = AUTO
    target: str = DEFAULT
    attention: str = AUTO
    untried_branches: str = "keep"
    rotate: str = "off"
    ratio_of: tuple[str, ...] = ()
    max_ratio: float | None = None
    same_widths: tuple[str, ...] = ()
    min_channels: int = 1
    drop_branches: bool | None = None
    drop_layers: tuple[str, ...] = ()
    drop_experts: tuple[str, ...] = ()
    then: str | None = None
    ranges: str = "auto"
    reduce_range: str = "auto"
    keep_float: tuple[str, ...] = ()
    float_share: float = FLOAT_SHARE
    keep_fused: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    resize_io: tuple[str, ...] = ()
    keep_tokens: tuple[int, ...] = ()
    exclude_after: tuple[str, ...] = ()
    seed: int = 0
    samples: int | None = None
    labels: str | None = None
    memory: int = 128 << 20
    force: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, typed(f.name, getattr(self, f.name), str(f.type)))
        goals = [getattr(self, name) for name in GOALS]
        if sum(v is not None for v in goals) > 1:
            raise UsageError(
                "ratio, uniform, tolerance and layer_tolerance exclude each other: a share of the budget, the same of "
                "every group, whatever the outputs allow, or whatever each layer allows"
            )
        if all(v is None for v in goals):
            object.__setattr__(self, "ratio", 0.0 if names_all_that_goes(vars(self)) else RATIO)
        if self.tolerance is not None and not 0.0 < self.tolerance < float("inf"):
            raise UsageError(
                f"tolerance is {self.tolerance}; it is a finite number above 0: a squared error over the outputs' "
                "spread, such as 0.01"
            )
        for name, share, meaning in (
            ("ratio", self.ratio, f"the share of the {self.counted} to remove"),
            ("uniform", self.uniform, "the share of its channels that every group loses"),
            (
                "layer_tolerance",
                self.layer_tolerance,
                "the error of each layer's own output that its cut may cause, over that of removing all",
            ),
            ("max_ratio", self.max_ratio, "the share of its channels that a group may lose"),
        ):
            if share is not None and not 0.0 < share < 1.0 and (name, share) != ("ratio", 0.0):
                raise UsageError(f"{name} {share} is outside (0, 1): it is {meaning}")
        for name, value, allowed in (
            ("budget", self.budget, tuple(BUDGETS)),
            ("method", self.method, tuple(METHODS)),
            ("metric", self.metric, METRICS),
            ("coefficients", self.coefficients, COEFFICIENTS),
            ("refit", self.refit, tuple(REFITS)),
            ("attention", self.attention, ATTENTIONS),
            ("untried_branches", self.untried_branches, UNTRIED),
            ("rotate", self.rotate, ROTATIONS),
            ("target", self.target, tuple(TARGETS)),
            ("then", self.then, (None, *PRECISIONS)),
            ("ranges", self.ranges, RANGES),
            ("reduce_range", self.reduce_range, REDUCE_RANGE),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value!r} is unknown; choose one of {', '.join(filter(None, allowed))}")
        if isinstance(self.round_to, str) and self.round_to != AUTO:
            raise UsageError(f"round_to {self.round_to!r} is unknown; give a number of channels, or {AUTO!r}")
        if self.budget == "latency" and self.ratio is None:
            raise UsageError(f"budget 'latency' is a share of the time, given by ratio; leave out {self.goal}")
        if self.budget != "latency" and (self.batch, self.threads) != (1, 0):
            raise UsageError("batch and threads say what budget 'latency' measures; leave them out, or choose it")
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}; it is a number of threads, 0 for onnxruntime's own choice")
        for name in ("batch", "round_to", "min_channels", "memory", "probes"):
            number = getattr(self, name)
            if number != AUTO and number < 1:
                raise UsageError(f"{name} is {number}; it must be at least 1")
        for f in fields(self):
            check_most(f.name, getattr(self, f.name), MOST.get(f.name, MOST_NUMBER))
        shares = self.shares_of
        if self.max_ratio is not None and any(share > self.max_ratio for _, share in shares):
            raise UsageError(
                f"ratio_of asks for more than max_ratio {self.max_ratio:g} allows; raise that, or lower it"
            )
        if self.tolerance is not None and (shares or self.same_widths):
            raise UsageError(
                "tolerance decides each width by itself: leave out ratio_of and same_widths, or give ratio"
            )
        patterns = (
            *self.include,
            *self.exclude,
            *self.exclude_after,
            *self.same_widths,
            *self.resize_io,
            *self.drop_layers,
            *self.keep_float,
            *(p for p, _ in shares),
            *(p for p, _ in self.experts_named),
        )
        for pattern in patterns:
            if len(pattern) > _LONGEST_PATTERN:  # to compile one takes time with the square of its length
                raise UsageError(f"the pattern {shown(pattern)} has {len(pattern)} letters; at most {_LONGEST_PATTERN}")
        self._check_dropped()
        self._check_nothing_free()
        if REFITS[self.refit].scales and not METHODS[self.method].scales:
            greedy = ", ".join(methods.with_scales())
            raise UsageError(f"refit {self.refit!r} needs a greedy method: one of {greedy}")
        if self.metric == "exact" and METHODS[self.method].fixed:
            raise UsageError(
                f"metric 'exact' searches for the best step, and those of method {self.method!r} are fixed"
            )
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples is {self.samples}; it must be at least 1")
        readers = methods.reading_labels()
        if self.labels is not None and self.method not in readers:
            raise UsageError(
                f"method {self.method!r} reads no labels, only {', '.join(readers)} do; leave labels out, or change it"
            )
        self._check_recovery()
        self._check_fewer_bits()
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must not be negative")

    def _check_recovery(self) -> None:
        """Raises UsageError where it is said wrongly, or twice, how long recovery takes."""
        if self.recover is not None and self.recover < 0:
            raise UsageError(f"recover is {self.recover}; it is a number of passes over the data, 0 for none")
        if self.recover and self.fast:
            raise UsageError("fast leaves recovery out; leave out one of fast and recover")
        if self.effort is None:
            return
        if self.recover is not None:
            raise UsageError("effort and recover both say how long recovery takes; leave out one of them")
        if self.fast:
            raise UsageError("fast leaves recovery out; leave out one of fast and effort")
        if self.effort < EPOCH_PASSES:
            raise UsageError(
                f"effort is {self.effort}; learning from the samples once takes about {EPOCH_PASSES} plain passes, so "
                f"give at least {EPOCH_PASSES}, or fast for no recovery"
            )

    def _check_fewer_bits(self) -> None:
        """Raises UsageError for what says nothing of how the result is stored, or stands against it."""
        if not 0.0 <= self.float_share < 1.0:
            raise UsageError(
                f"float_share is {self.float_share}; it is the share of the multiplications that may stay in float, in "
                "[0, 1)"
            )
        ours = (self.ranges, self.reduce_range, self.float_share)
        if self.then == FP16 and ours != (RANGES[0], REDUCE_RANGE[0], FLOAT_SHARE):
            raise UsageError("ranges, reduce_range and float_share are about 8-bit integers: leave them out with fp16")

    def _check_dropped(self) -> None:
        """Raises UsageError where nothing could tell which whole branches and layers go."""
        if self.drop_branches and self.uniform is not None:
            raise UsageError("uniform takes the same share of every group, and drops no branch; leave out one of them")
        if self.drop_layers and self.tolerance is not None:
            raise UsageError(
                "tolerance cuts group by group, and drops no whole layer; leave out drop_layers, or give ratio"
            )
        if AUTO in self.drop_layers and self.ratio is None:
            raise UsageError(
                f"drop_layers 'auto' leaves the choice to a budget, and there is none with {self.goal}; name the "
                "layers, or give ratio"
            )

    def _check_nothing_free(self) -> None:
        """Raises UsageError where a ratio of 0 leaves nothing to go, or what chooses what goes without a budget."""
        if self.ratio != 0.0:
            return
        if not (self.cuts_channels or self.drop_experts or self.keep_tokens):
            raise UsageError(
                f"--ratio 0 is outside (0, 1): it is the share of the {self.counted} to remove, and 0 only where all "
                "that goes is named by --drop-experts, --keep-tokens, --drop-layers or --ratio-of"
            )
        if self.drop_branches or AUTO in self.drop_layers:
            name = "--drop-branches" if self.drop_branches else "--drop-layers auto"
            raise UsageError(
                f"{name} leaves the choice to a budget, and a ratio of 0 asks for nothing: give --ratio, or name "
                "layers by --drop-layers"
            )
        if self.budget == "latency":
            raise UsageError("--budget latency is met by a --ratio above 0; give that, or leave --budget out")
        for name in ("rotate", "attention"):
            if not self.cuts_channels and getattr(self, name) not in _OF_A_SHARE[name]:
                raise UsageError(
                    f"--{name} {getattr(self, name)} is about channels that go, and with a ratio of 0 none do: leave "
                    "it out, or give --ratio"
                )

    @property
    def cuts_channels(self) -> bool:
        """Whether any channels are to go: not where experts and rows of tokens alone are asked for."""
        return self.ratio != 0.0 or bool(self.drop_layers) or any(share for _, share in self.shares_of)

    @property
    def counted(self) -> str:
        """What `ratio` is a share of, in words."""
        return BUDGETS.get(self.budget, "budget")

    @property
    def goal(self) -> str:
        """The name of the goal, of `GOALS`, that was chosen."""
        return next(name for name in GOALS if getattr(self, name) is not None)

    @property
    def option(self) -> str:
        """The option of the command line that stands for the goal."""
        return f"--{self.goal.replace('_', '-')}"

    @property
    def lowered(self) -> str:
        """The option of which less was better for the outputs; "" where none is a number."""
        if self.ratio != 0.0:
            return self.option
        return "--drop-experts" if self.fewer_experts else ""

    @property
    def share(self) -> float | None:
        """`ratio` or `uniform`, whichever was chosen; None with either tolerance."""
        return self.ratio if self.uniform is None else self.uniform

    @property
    def shares_of(self) -> tuple[tuple[str, float], ...]:
        """The pairs of `ratio_of`, taken apart. Raises UsageError for one that is none."""
        return shares_by_pattern("ratio_of", self.ratio_of)

    @property
    def experts_named(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The pairs of `drop_experts`, taken apart. Raises UsageError for one that is none."""
        return experts_by_pattern("drop_experts", self.drop_experts)[1]

    @property
    def fewer_experts(self) -> int:
        """How many experts go from each mixture that is not named."""
        return experts_by_pattern("drop_experts", self.drop_experts)[0]

    @property
    def epochs(self) -> int:
        """Passes over the samples in which the refitted model learns from the original."""
        if not self.cuts_channels:
            return 0
        if self.effort is not None:
            return self.effort // EPOCH_PASSES
        if self.recover is not None:
            return self.recover
        return RECOVER if self.walks and not self.fast else 0

    @property
    def walks(self) -> bool:
        """Whether the refit goes on from layers, each for itself, to a walk through the pruned network."""
        return self.cuts_channels and REFITS[self.refit].walks

    @property
    def folds(self) -> bool:
        """Whether the refit folds the coefficients that the method found."""
        return REFITS[self.refit].scales

    @property
    def level(self) -> str:
        """How layers are refitted each for itself: that is where a walk starts from."""
        return REFITS[self.refit].level

    @property
    def drops(self) -> bool:
        """Whether whole branches may go: where latency counts, unless something else was asked for."""
        return self.budget == "latency" if self.drop_branches is None else self.drop_branches

    @property
    def layers_may_go(self) -> bool:
        """Whether the budget chooses whole layers that go."""
        return self.drops or AUTO in self.drop_layers

    @property
    def sequential(self) -> bool:
        """Whether groups are cut one by one, from input to output, each seeing the cuts before it."""
        return self.cuts_channels and (METHODS[self.method].sequential or self.tolerance is not None)

    @property
    def reads_gradients(self) -> bool:
        """Whether selection looks at gradients of the network's outputs."""
        return self.cuts_channels and METHODS[self.method].gradients

    @property
    def units_of_attention(self) -> str:
        """What the channel graph takes for units of attention: of "rank" they are positions, turned first; where that
        was left open, heads."""
        return {"rank": "head-dim", AUTO: "heads"}.get(self.attention, self.attention)

    @property
    def reads_statistics(self) -> bool:
        """Whether selection, allocation or refit look at the statistics of layer inputs."""
        wanted = self.uniform is None or METHODS[self.method].statistics or self.refit != "none"
        return self.cuts_channels and wanted

    def with_options(self, **options: Unpack[Options]) -> PruneConfig:
        """A copy with single fields replaced, where those of `GOALS` also replace each other, and what says how long
        recovery takes."""
        others: dict[str, Any] = dict.fromkeys(GOALS) if options.keys() & set(GOALS) else {}
        if any(v is not None and v is not False for k, v in options.items() if k in _LENGTHS):
            others |= _LENGTHS
        return replace(self, **{**others, **options})

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data, for plans and reports."""
        return asdict(self)


class Options(TypedDict, total=False):
    """The fields of PruneConfig as keyword arguments of `prune`, so that editors and type checkers know them."""

    ratio: float | None
    budget: str
    batch: int
    threads: int
    uniform: float | None
    tolerance: float | None
    layer_tolerance: float | None
    method: str
    metric: str
    coefficients: str
    probes: int
    refit: str
    recover: int | None
    effort: int | None
    fast: bool
    round_to: int | str
    target: str
    attention: str
    untried_branches: str
    rotate: str
    ratio_of: tuple[str, ...]
    max_ratio: float | None
    same_widths: tuple[str, ...]
    min_channels: int
    drop_branches: bool | None
    drop_layers: tuple[str, ...]
    drop_experts: tuple[str, ...]
    then: str | None
    ranges: str
    reduce_range: str
    keep_float: tuple[str, ...]
    float_share: float
    keep_fused: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    state: tuple[str, ...]
    resize_io: tuple[str, ...]
    keep_tokens: tuple[int, ...]
    exclude_after: tuple[str, ...]
    seed: int
    samples: int | None
    labels: str | None
    memory: int
    force: bool
