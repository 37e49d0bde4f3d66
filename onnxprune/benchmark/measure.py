"""Latency of one model, or of two in turns, on the same inputs.

What is compared runs round by round, one model after the other, so a machine that slows down slows both down: the
ratio is the median over the rounds of one's time over the other's. Its interval needs no distribution: of the sorted
ratios of n rounds, those between which the median lies with 95 % (the sign test's, by the binomial distribution).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from scipy.special import bdtr

from onnxprune.benchmark import profile, tensorrt_engine
from onnxprune.benchmark.cuda import Gpu
from onnxprune.benchmark.own_sizes import caches, fitted, largest_first
from onnxprune.benchmark.profile import NodeTime
from onnxprune.benchmark.settings import PRECISIONS, SECONDS, WARMUP
from onnxprune.data import stand_ins
from onnxprune.data.accepted import Data, Wanted
from onnxprune.data.inputs import InputSpec, input_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import given as read_data
from onnxprune.data.states import states_of
from onnxprune.errors import ModelError, RunError, UsageError
from onnxprune.graph.cache_layers import cache_layers
from onnxprune.intake import empty_caches, fed_back, first_run, model_file, ranks
from onnxprune.intake.model_file import ModelLike
from onnxprune.measures.gates import Gate
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.options import MOST, MOST_THREADS, check_most, typed
from onnxprune.process import spill
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.runtime.saturation import DEPLOYED
from onnxprune.runtime.session import CPU, Session, available_providers, fallbacks, half_precision, version
from onnxprune.runtime.timing import Times, paired

_LEAST_RUNS, _MOST_RUNS = 20, 20_000
_MOST_GIVEN, _MOST_SECONDS = 1_000_000, 86_400
_DOUBT = 0.05
# Two sessions of one model differ by up to half a percent.
_ALIKE = 0.01
_SEED = 0
_SHORT = "executionprovider"
_BLOCKING = "CUDA_LAUNCH_BLOCKING"


@dataclass(frozen=True)
class Latency:
    """One model: seconds of a run, samples per second, bytes with all weights, and seconds until it could run.

    throughput: the batch over the median, one run at a time. nodes: per node, where a profile was asked for.
    """

    model: str
    median: float
    p90: float
    throughput: float
    bytes: int
    start: float
    nodes: tuple[NodeTime, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The second model's time over the first's in the same round: median, quartiles, and the median's 95 % interval.

    interval: None with fewer than six rounds, which cannot bound it.
    """

    ratio: float
    quartiles: tuple[float, float]
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, first: Times, second: Times) -> Comparison:
        """Compare the rounds of two models from one call of `timing.paired`."""
        ratios: Doubles = second.seconds / first.seconds
        low, high = (float(q) for q in np.quantile(ratios, (0.25, 0.75)))
        return cls(float(np.median(ratios)), (low, high), median_interval(ratios))

    @property
    def clear(self) -> bool:
        """Whether the interval leaves no doubt about which model is faster.

        It cannot hold what differs between sessions of one model, such as where their memory lies: so far it has to
        stay from 1.
        """
        return self.interval is not None and not (self.interval[0] <= 1.0 + _ALIKE and self.interval[1] >= 1.0 - _ALIKE)


@dataclass(frozen=True)
class Bench:
    """What was measured, and how.

    provider: onnxruntime's name of it, or "tensorrt". library: name and version of what ran the models. precision: of
    config.PRECISIONS. device: where inputs and outputs lie. threads: 0 for onnxruntime's own choice. batch: samples per
    run. inputs: their shapes. rounds: that counted.
    """

    models: tuple[Latency, ...]
    comparison: Comparison | None
    provider: str
    library: str
    precision: str
    device: str
    threads: int
    batch: int
    inputs: Mapping[str, tuple[int, ...]]
    data: str
    rounds: int
    warmup: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The measurement as plain data, with the sums of the nodes' times per operator."""
        plain = asdict(self)
        for row, x in zip(plain["models"], self.models, strict=True):
            row["operators"] = [asdict(o) for o in profile.by_operator(x.nodes)]
        return plain

    def to_json(self, gates: Sequence[Gate] = ()) -> str:
        """The result as JSON text, with what became of limits."""
        return json.dumps(self.as_dict() | {"gates": [asdict(g) for g in gates]}, indent=1) + "\n"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model to be timed. path: its file, where it lies in one."""

    name: str
    proto: onnx.ModelProto
    bytes: int
    path: str | None = None


@dataclass(frozen=True)
class Settings:
    """How to measure. provider: as `provider_named` gives it. runs: rounds, or as many as `seconds` allows.

    Raises UsageError for a value out of range.
    """

    provider: str = CPU
    precision: str = "model"
    threads: int = 0
    seconds: float = SECONDS
    runs: int | None = None
    warmup: int = WARMUP
    profile: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, typed(f.name, getattr(self, f.name), str(f.type)))
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        for name, least in (("threads", 0), ("warmup", 0), ("runs", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise UsageError(f"{name} is {number}; it must be at least {least}")
            check_most(name, number, MOST_THREADS if name == "threads" else _MOST_GIVEN)
        if not 0.0 < self.seconds <= _MOST_SECONDS:
            raise UsageError(f"seconds is {self.seconds}; it must be above 0, and at most {_MOST_SECONDS} (a day)")
        if self.threads and self.provider == tensorrt_engine.NAME:
            raise UsageError("threads are onnxruntime's, and TensorRT computes on the GPU; leave them out")


def bench(
    model: ModelLike,
    other: ModelLike | None = None,
    *,
    data: Data | None = None,
    provider: str = "cpu",
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str = "model",
    threads: int = 0,
    seconds: float = SECONDS,
    runs: int | None = None,
    warmup: int = WARMUP,
    profile: bool = False,
    state: Sequence[str] = (),
    allow_links: bool = False,
    custom_ops: Libraries = (),
    watch: Callable[[str], None] = lambda _: None,
) -> Bench:
    """Time `model`, or `model` and `other` in turns; the ratio is that of `other` to `model`.

    data: as the calibration data of `prune`; None for seeded random inputs. provider: "cpu", "cuda", any other that
    onnxruntime lists, by its whole name or the part before ExecutionProvider; "tensorrt" builds an engine with the
    package tensorrt. batch: samples per run, 1 unless `shapes` say otherwise. shapes: of inputs whose dimensions are
    symbolic. precision: "model" for the types that the model has, "fp16" for a copy that computes in float16.
    threads: onnxruntime's, 0 for its own choice. seconds: of rounds; runs: so many rounds instead. warmup: rounds that
    do not count. profile: also the time of every node, in runs of their own. state, allow_links, custom_ops: as
    for
    `prune`. watch: called with what is being done.
    Raises InputError for models or data that do not fit each other, UsageError and RunError.
    """
    settings = Settings(provider_named(provider), precision, threads, seconds, runs, warmup, profile)
    with spill.spilling(), registering(checked_libraries(custom_ops)):
        candidates = [candidate(x, allow_links=allow_links) for x in (model, other) if x is not None]
        fed = feeds_for([c.proto for c in candidates], data, batch, shapes or {}, tuple(state))
        first = largest_first([c.proto for c in candidates])[0]
        if settings.provider == CPU:  # another one may know operators that the CPU does not
            for x in candidates:
                first_run.run(x.proto, fitted(fed.arrays, x.proto, first))
        return measure(candidates, fed, settings, watch)


def provider_named(name: str) -> str:
    """The provider that a user means. Raises UsageError, with those that there are, and RunError without tensorrt."""
    available = available_providers()
    wanted = str(typed("provider", name, "str")).strip().lower()
    if wanted == tensorrt_engine.NAME:
        tensorrt_engine.library()
        return tensorrt_engine.NAME
    for full in available:
        if wanted in (full.lower(), full.lower().removesuffix(_SHORT)):
            return full
    shown = [p if p.lower().removesuffix(_SHORT) == tensorrt_engine.NAME else _short(p) for p in available]
    raise UsageError(f"provider {name!r} is not among those of this onnxruntime: {', '.join(shown)}; or tensorrt")


def _short(provider: str) -> str:
    return provider.lower().removesuffix(_SHORT)


def candidate(model: ModelLike, *, allow_links: bool = False) -> Candidate:
    """Read a model. Raises ModelError, and RunError where onnx crashes on it."""
    proto, source = model_file.read(model, allow_links=allow_links)
    first_run.infer(proto)
    path = None if isinstance(model, onnx.ModelProto) else source.path
    return Candidate(source.path, proto, source.size, path)


# inputs


@dataclass(frozen=True, eq=False)
class Feeds:
    """One batch of inputs by name, how many samples it holds, where they come from, and what to say of it."""

    arrays: Mapping[str, Array]
    batch: int
    origin: str
    notes: tuple[str, ...] = ()


def feeds_for(
    models: Sequence[onnx.ModelProto],
    data: Data | None,
    batch: int | None,
    shapes: Mapping[str, Sequence[int]],
    state: tuple[str, ...] = (),
) -> Feeds:
    """What all of the models are fed. Raises ModelError, CalibrationError and UsageError."""
    batch = typed("batch", batch, "int | None")
    if batch is not None and batch < 1:
        raise UsageError(f"batch is {batch}; it must be at least 1")
    check_most("batch", batch, MOST["batch"])
    given = {k: tuple(typed(f"a size of {k!r}", d, "int") for d in v) for k, v in shapes.items()}
    if any(d < 1 for v in given.values() for d in v):
        raise UsageError("a shape holds a size below 1")
    models = largest_first(models)
    states = states_of(models[0], state) if data is not None else ()
    if not shapes:
        models = [ranks.declared(m, data, states) for m in models]
    specs = common_inputs(models)
    if data is not None:
        if shapes:
            raise UsageError("the data has its own shapes: leave out either it or the shapes")
        samples = (
            fed_back.read(models[0], data, states, batch or 1)
            if states
            else read_data(data, empty_caches.fillable(models[0], specs), Wanted(batch or 1))
        )
        return _from_data(samples, batch)
    return _random(models[0], specs, batch, given)


def common_inputs(models: Sequence[onnx.ModelProto]) -> tuple[InputSpec, ...]:
    """The inputs that all models read, each axis as fixed as the strictest of them wants it. Raises ModelError.

    Caches are those of the first model: another one may have fewer, and of other sizes.
    """
    every = [input_specs(p) for p in models]
    common, apart = every[0], caches(models[0])
    for other, proto in zip(every[1:], models[1:], strict=True):
        own = caches(proto)
        names = cache_layers(proto, models[0]).names
        other, own = tuple(_renamed(s, names) for s in other), {names.get(k, k): s for k, s in own.items()}
        by_name = {s.name: apart[s.name] if _another(s, own, apart) else s for s in other}
        by_name |= {name: s for name, s in apart.items() if name not in by_name}
        if by_name.keys() != {s.name for s in common} or any(not _fits(s, by_name[s.name]) for s in common):
            first, second = ("; ".join(_shown(s) for s in specs) for specs in (common, other))
            raise ModelError(f"the two models read different inputs: {first} against {second}")
        common = tuple(
            replace(s, dims=tuple(b if a is None else a for a, b in zip(s.dims, by_name[s.name].dims, strict=True)))
            for s in common
        )
    return common


def _renamed(s: InputSpec, names: Mapping[str, str]) -> InputSpec:
    return replace(s, name=names[s.name]) if s.name in names else s


def _another(s: InputSpec, own: Mapping[str, InputSpec], first: Mapping[str, InputSpec]) -> bool:
    """Whether an input is a cache of both models, and differs in its sizes alone."""
    like = first.get(s.name) if s.name in own else None
    return like is not None and (like.dtype, len(like.dims)) == (s.dtype, len(s.dims)) and not _fits(s, like)


def _fits(a: InputSpec, b: InputSpec) -> bool:
    alike = a.dtype == b.dtype and len(a.dims) == len(b.dims)
    return alike and all(None in (x, y) or x == y for x, y in zip(a.dims, b.dims, strict=True))


def _shown(s: InputSpec) -> str:
    return f"{s.name} {s.dtype} {'x'.join('N' if d is None else str(d) for d in s.dims)}".rstrip()


def _from_data(samples: Samples, batch: int | None) -> Feeds:
    if samples.per_run is not None and batch not in (None, samples.per_run):
        raise UsageError(f"the model takes {samples.per_run} samples at a time, not {batch}; leave the batch out")
    wanted = samples.run_size(batch or 1)
    if samples.sampled:
        notes: tuple[str, ...] = ()
        if wanted > len(samples):
            notes = (f"the data holds {len(samples)} samples, and they are repeated for a batch of {wanted}",)
        return Feeds(samples.repeated(wanted), wanted, samples.origin, notes)
    return Feeds(samples.slice(0, wanted), wanted, samples.origin)


def _batch_of(specs: Sequence[InputSpec], batch: int | None) -> int:
    """The samples in a run. Raises UsageError where a model fixes another number of them than is asked for."""
    if any(s.batched and s.dims[0] is None for s in specs):
        return batch or 1
    sizes = {s.dims[0] for s in specs if s.dims}
    fixed = next(iter(sizes)) if len(sizes) == 1 else None
    count = 1 if fixed is None or any(s.batched for s in specs) else fixed
    if batch not in (None, count):
        raise UsageError(f"the model takes {count} samples at a time, not {batch}; leave the batch out")
    return count


def _random(
    model: onnx.ModelProto, specs: tuple[InputSpec, ...], batch: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> Feeds:
    unknown = shapes.keys() - {s.name for s in specs}
    if unknown:
        names = ", ".join(repr(s.name) for s in specs)
        raise UsageError(f"a shape is given for {min(unknown)!r}, which is no input: the model reads {names}")
    for s in specs:
        given = shapes.get(s.name)
        if given is not None and not _fits(s, replace(s, dims=given)):
            raise UsageError(f"the shape {'x'.join(map(str, given))} does not fit the input {_shown(s)}")
    counts = {shapes[s.name][0] for s in specs if s.name in shapes and s.batched}
    if len(counts | ({batch} if batch else set())) > 1:
        raise UsageError("shapes and batch do not agree in the number of samples: leave the batch out, or make it fit")
    if counts:
        batch = counts.pop()
    count = _batch_of(specs, batch)
    bound = tuple(replace(s, dims=shapes.get(s.name, s.dims)) for s in specs)
    advice = "name their sizes with --shape, or give --data"
    trial = first_run.Trial(model)
    samples = stand_ins.random(model, bound, count, _SEED, trial, advice, trial.shapes)
    return Feeds(samples.slice(0, count), count, samples.origin)


# measuring


@dataclass(frozen=True, eq=False)
class Ready:
    """A model that can run: by `run`, and node by node by `nodes`, given how many runs count and how many do not."""

    run: Callable[[], object]
    nodes: Callable[[int, int], tuple[NodeTime, ...]]
    seconds: float
    device: str
    notes: tuple[str, ...] = ()


def measure(
    models: Sequence[Candidate], feeds: Feeds, settings: Settings, watch: Callable[[str], None] = lambda _: None
) -> Bench:
    """Time models that are read already. Raises RunError."""
    with ExitStack() as stack:
        start, library = _backend(feeds.arrays, largest_first([x.proto for x in models])[0], settings, stack)
        ready: list[Ready] = []
        for x in models:
            watch(f"start {x.name}")
            ready.append(start(_in_precision(x, settings.precision)))
        watch("run")
        times = paired(
            [r.run for r in ready],
            warmup=settings.warmup,
            least_runs=settings.runs or _LEAST_RUNS,
            most_runs=settings.runs or _MOST_RUNS,
            budget=settings.seconds,
        )
        nodes: list[tuple[NodeTime, ...]] = [() for _ in ready]
        if settings.profile:
            watch("profile")
            nodes = [r.nodes(settings.runs or profile.RUNS, profile.WARMUP) for r in ready]
        return Bench(
            tuple(
                Latency(x.name, t.median, t.p90, feeds.batch / t.median, x.bytes, r.seconds, n)
                for x, t, r, n in zip(models, times, ready, nodes, strict=True)
            ),
            Comparison.of(times[0], times[1]) if len(times) == 2 else None,
            settings.provider,
            library,
            settings.precision,
            ready[0].device,
            settings.threads,
            feeds.batch,
            {k: v.shape for k, v in feeds.arrays.items()},
            feeds.origin,
            len(times[0].seconds),
            settings.warmup,
            (*feeds.notes, *_about_nodes(settings), *dict.fromkeys(n for r in ready for n in r.notes)),
        )


def median_interval(values: Doubles) -> tuple[float, float] | None:
    """The order statistics that hold the median of the distribution with 95 % at least; None for too few values."""
    n = len(values)
    below = int(np.count_nonzero(bdtr(np.arange(n), n, 0.5) <= _DOUBT / 2.0))
    if below == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[below - 1]), float(ordered[n - below])


def _about_nodes(settings: Settings) -> tuple[str, ...]:
    if not settings.profile or settings.provider in (CPU, tensorrt_engine.NAME):
        return ()
    if os.environ.get(_BLOCKING) == "1":
        return (f"{_BLOCKING} is set: operators wait for each other, in the latencies too",)
    return (
        f"{settings.provider} may only queue its operators: their times are then those of queueing; with CUDA, set "
        f"{_BLOCKING}=1 to have each wait for its end",
    )


def _in_precision(x: Candidate, precision: str) -> Candidate:
    if precision == "model":
        return x
    return replace(x, proto=half_precision(x.proto), path=None)


def _backend(
    feeds: Mapping[str, Array], first: onnx.ModelProto, settings: Settings, stack: ExitStack
) -> tuple[Callable[[Candidate], Ready], str]:
    """What makes a model ready, and the name and version of the library that runs it. first: whose the feeds are."""
    if settings.provider != tensorrt_engine.NAME:
        return lambda x: _session(x, fitted(feeds, x.proto, first), settings), f"onnxruntime {version()}"
    library = f"TensorRT {tensorrt_engine.version()}"
    gpu = stack.enter_context(closing(Gpu()))
    return lambda x: _engine(x, fitted(feeds, x.proto, first), settings, gpu, stack), f"{library}, {gpu.name}"


def _session(x: Candidate, feeds: Mapping[str, Array], settings: Settings) -> Ready:
    providers = fallbacks(settings.provider)
    start = perf_counter()
    session = Session(
        x.proto, spin=True, in_turns=True, threads=settings.threads, providers=providers, kernels=DEPLOYED
    )
    seconds = perf_counter() - start

    def nodes(runs: int, warmup: int) -> tuple[NodeTime, ...]:
        return profile.profiled(x.proto, feeds, runs=runs, warmup=warmup, threads=settings.threads, providers=providers)

    return Ready(session.bound(feeds), nodes, seconds, session.device, tuple(_about(x, session, settings)))


def _about(x: Candidate, session: Session, settings: Settings) -> Iterator[str]:
    """What a reader of the figures has to know. Raises RunError where the provider runs nothing of the model."""
    if session.stands_in:
        yield f"{x.name} ran as its float32 twin, as onnxruntime lacks operators in its own type"
    if settings.provider == CPU:
        return
    placed = session.placement()
    elsewhere = {p: n for p, n in placed.items() if p != settings.provider}
    if placed and len(elsewhere) == len(placed):
        raise RunError(f"{settings.provider} runs no operator of {x.name}: its latency would be that of the CPU")
    for provider, n in elsewhere.items():
        yield f"{n} of the {sum(placed.values())} nodes of {x.name} ran on {provider}"
    if session.device == "cpu":
        yield f"inputs and outputs lay in the CPU's memory: times hold what {settings.provider} copies of them"


def _engine(x: Candidate, feeds: Mapping[str, Array], settings: Settings, gpu: Gpu, stack: ExitStack) -> Ready:
    engine = tensorrt_engine.Engine(x.path or x.proto, feeds, gpu, layers=settings.profile)
    stack.callback(engine.close)
    return Ready(engine.run, engine.node_times, engine.seconds, gpu.name)
