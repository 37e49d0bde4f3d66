"""The only user of onnxruntime: sessions over in-memory models, with quiet logs and one-line errors."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxprune import storage, twin
from onnxprune.errors import RunError
from onnxprune.graph import cast, is_float

Array = NDArray[Any]
Feeds = Mapping[str, Array]

_ERROR = 3
_FATAL = 4
_LINE = 300
_PREPACK_BYTES = 512 << 20
# Before 1.22 only a model that comes from a file may refer to others, and does so absolutely; later ones may not.
_RELATIVE = tuple(int(n) for n in ort.__version__.split(".")[:2]) >= (1, 22)

# onnx-graphsurgeon opens sessions of its own to fold constants; their warnings speak of models that the user never saw.
ort.set_default_logger_severity(_ERROR)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LINE]


class Session:
    """An onnxruntime session on the CPU (or `providers`).

    model: a ModelProto or a path. Weights that a ModelProto refers to in files are mapped by onnxruntime itself: they
    are neither read nor copied here. A ModelProto with bfloat16 is run as its float32 twin (`twin`), and so is one in
    float64 that onnxruntime refuses, and one in float16 where `single` is set; feeds may then have any floating-point
    type, and outputs have the type of the model, with `single` float32. optimize=False keeps every intermediate tensor
    as the graph defines it. spin: let idle workers spin, onnxruntime's own default; that takes the cores from numpy's
    BLAS between two runs. in_turns: they do so during a run only, as they would take the cores from the session whose
    turn it is. threads: that compute one operator, 0 for onnxruntime's own choice. profile: where the file begins that
    onnxruntime's profiler writes (see `kernel_times`).
    Raises RunError where onnxruntime refuses the model or a run.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        *,
        optimize: bool = True,
        spin: bool = False,
        in_turns: bool = False,
        single: bool = False,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        profile: str | None = None,
    ) -> None:
        def start(source: onnx.ModelProto | str | os.PathLike[str]) -> Any:
            options = ort.SessionOptions()
            options.log_severity_level = _FATAL
            options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
            options.add_session_config_entry("session.force_spinning_stop", str(int(in_turns)))
            options.intra_op_num_threads = threads
            if profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = profile
            level = ort.GraphOptimizationLevel
            options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
            content = _content(source, options) if isinstance(source, onnx.ModelProto) else os.fspath(source)
            try:
                if isinstance(content, bytes) and not _RELATIVE:
                    with storage.as_file(content) as path:
                        return ort.InferenceSession(path, options, providers=list(providers))
                return ort.InferenceSession(content, options, providers=list(providers))
            except Exception as e:  # onnxruntime's exceptions share no base class below Exception
                raise RunError(f"onnxruntime cannot load the model: {_one_line(e)}") from e

        self._declared: dict[str, np.dtype[Any]] = {}
        self._twin = False
        if isinstance(model, onnx.ModelProto):
            self._session = self._started(model, start, single=single)
        else:
            self._session = start(model)
        self.overridable = frozenset(i.name for i in self._session.get_overridable_initializers())
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        ports = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._singles = frozenset(i.name for i in ports if i.type == "tensor(float)")

    def _started(self, model: onnx.ModelProto, start: Callable[[onnx.ModelProto], Any], *, single: bool) -> Any:
        """A session of the model, or of its twin where onnxruntime runs only that."""
        types = twin.HALF if single else twin.BFLOAT16
        if not twin.uses(model, types):
            types = frozenset()
            try:
                return start(model)
            except RunError:
                if not twin.uses(model, twin.DOUBLE):
                    raise
        if twin.uses(model, twin.DOUBLE):
            types |= twin.DOUBLE
        self._twin = True
        self._declared = {} if single else twin.declared_types(model, types)
        with storage.spilling():  # onnxruntime has mapped the twin's weights by then, or read them
            return start(twin.single_precision(model, types))

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name; feeds that the model does not read are ignored."""
        names = list(self.outputs if outputs is None else outputs)
        known = set(self.inputs)
        fed = {k: v for k, v in feeds.items() if k in known or k in self.overridable}
        if self._twin:
            fed = {k: v.astype(np.float32) if is_float(v.dtype) and k in self._singles else v for k, v in fed.items()}
        try:
            values = self._session.run(names, fed)
        except Exception as e:  # as above
            raise RunError(f"onnxruntime cannot run the model: {_one_line(e)}") from e
        found = dict(zip(names, values, strict=True))
        for k in self._declared.keys() & found.keys():
            found[k] = cast(found[k], self._declared[k])
        return found

    def end_profiling(self) -> Path:
        """Where the profile lies; only with `profile`."""
        return Path(self._session.end_profiling())


@dataclass(frozen=True)
class Kernel:
    """What onnxruntime ran as one: its name in the optimised graph, operator, seconds, shapes.

    shapes: types and sizes of inputs and outputs as the profiler writes them, weights in a packed form left out.
    """

    name: str
    op: str
    seconds: float
    shapes: str


def kernel_times(
    model: onnx.ModelProto | str | os.PathLike[str],
    feeds: Feeds,
    *,
    warmup: int = 2,
    least_runs: int = 4,
    most_runs: int = 60,
    budget: float = 0.2,
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> tuple[Kernel, ...]:
    """The kernels that one run executes, in their order, as onnxruntime's profiler times them.

    Of each kernel the mean of its quicker half of the runs counts: what disturbs a run only adds to it, and the mean is
    finer than the profiler's microseconds. Runs go on until `budget` seconds have passed, within `least_runs` and
    `most_runs`. A loop's kernels count all their iterations. Raises RunError.
    """
    with tempfile.TemporaryDirectory() as folder:
        profile = str(Path(folder) / "profile")
        session = Session(model, spin=True, threads=threads, providers=providers, profile=profile)
        start = time.perf_counter()
        for done in range(warmup + most_runs):
            if done == warmup:
                start = time.perf_counter()
            if done >= warmup + least_runs and time.perf_counter() - start >= budget:
                break
            session.run(feeds)
        events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
    return kernels_of(events, warmup)


_KERNEL = "_kernel_time"
# These hold other nodes, whose kernels are in the profile too.
_HOLDERS = ("If", "Loop", "Scan")


def kernels_of(events: Sequence[Mapping[str, Any]], warmup: int) -> tuple[Kernel, ...]:
    """The kernels of a profile (a list of Chrome trace events), the first `warmup` runs left out."""
    ran = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    ran = sorted((e for e in ran if e["args"]["op_name"] not in _HOLDERS), key=lambda e: int(e["ts"]))
    starts = sorted(int(e["ts"]) for e in events if e["name"] == "model_run")[warmup:]
    runs: list[dict[str, float]] = []
    for start, end in pairwise([*starts, 1 << 62]):
        seconds: dict[str, float] = {}
        for e in ran:
            if start <= int(e["ts"]) < end:
                name = e["name"].removesuffix(_KERNEL)
                seconds[name] = seconds.get(name, 0.0) + int(e["dur"]) / 1e6
        runs.append(seconds)
    known = {e["name"].removesuffix(_KERNEL): e["args"] for e in reversed(ran)}
    return tuple(
        Kernel(
            name,
            known[name]["op_name"],
            _quicker_half([r[name] for r in runs if name in r]),
            json.dumps([known[name].get(k) for k in ("input_type_shape", "output_type_shape")]),
        )
        for name in (runs[0] if runs else ())
    )


def _quicker_half(seconds: Sequence[float]) -> float:
    return float(np.mean(sorted(seconds)[: (len(seconds) + 1) // 2]))


def _content(model: onnx.ModelProto, options: Any) -> bytes:
    """The model as bytes, with `options` saying where the weights lie that it refers to in files."""
    if storage.has_external(model):
        if _RELATIVE:
            model, root = storage.below(model)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", root)
        if storage.external_bytes(model) >= _PREPACK_BYTES:
            # Else onnxruntime keeps a second copy of every matrix, in the order that its kernels like best.
            options.add_session_config_entry("session.disable_prepacking", "1")
    if storage.embedded_bytes(model) >= storage.MOST_BYTES:
        raise RunError("the model's weights exceed the 2 GiB of one message; store them as external data")
    content: bytes = model.SerializeToString()
    return content


def concatenated(parts: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The outputs that are arrays in each of several runs, joined along the axis in which they differ, or the first."""
    arrays = [k for k in parts[0] if all(isinstance(p[k], np.ndarray) for p in parts)]
    return {k: _joined(k, [np.atleast_1d(p[k]) for p in parts]) for k in arrays}


def _joined(name: str, values: Sequence[Array]) -> Array:
    shapes = {v.shape for v in values}
    if len({len(s) for s in shapes}) > 1:
        raise RunError(f"output {name!r} has another rank in each batch; give samples that are alike")
    varying = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1] or [0]
    if len(varying) > 1:
        raise RunError(f"output {name!r} has sizes that depend on the samples; its batches cannot be joined")
    found: Array = np.concatenate(values, axis=varying[0])
    return found


def version() -> str:
    """The version of onnxruntime."""
    return str(ort.__version__)
