"""The only user of onnxruntime: sessions over in-memory models, with quiet logs and one-line errors."""

from __future__ import annotations

import json
import mmap
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import RunError, UsageError
from onnxprune.graph import external
from onnxprune.graph.protobuf import copied
from onnxprune.runtime import custom_ops, faults, few_bits, overdue, saturation, single_precision
from onnxprune.runtime.builds import Builds
from onnxprune.runtime.instalments import Instalments, too_large
from onnxprune.runtime.saturation import AS_WRITTEN, DEPLOYED, JUDGED, Kernels
from onnxprune.threads import limit

# Releases from 1.29 on send names and hashes of the models that they load to their maker, keep files in the user's
# folder, and complain where there is none. What this says when they are loaded decides; the user may say otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
Builds.found().check()  # an import of what another build has left behind gives a module without anything in it
import onnxruntime as ort  # noqa: E402

from onnxprune.numerics.arrays import Array, cast, is_float  # noqa: E402
from onnxprune.process import spill  # noqa: E402

Feeds = Mapping[str, Array]

_ERROR = 3
_FATAL = 4
_LINE = 300
_PREPACK_BYTES = 512 << 20
_NO_COPIES = "session.disable_prepacking"
# A process that has more sees to it that sessions keep nothing between runs.
_LARGE_BYTES = 1 << 30
_AS_REQUESTED = 1
_ADVICE = "; install what it needs, or choose another provider"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# Where inputs and outputs can stay between runs; with the other providers they lie in the memory of the CPU.
_DEVICES = {
    CUDA: "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}
# A name, or a name and options.
Provider = str | tuple[str, Mapping[str, str]]
# Where statistics are computed: without TensorFloat-32, the default on newer GPUs, whose products have 10 bits. The CPU
# computes shapes, and what has no kernel on the GPU.
PROVIDERS: Mapping[str, Sequence[Provider]] = {"cpu": (CPU,), "cuda": ((CUDA, {"use_tf32": "0"}), CPU)}

_RELEASE = tuple(int(n) for n in ort.__version__.split(".")[:2])

# What it has to say is in its exceptions. onnx-graphsurgeon opens sessions of its own, too.
ort.set_default_logger_severity(_FATAL)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_LINE]
    return text if "bad_alloc" not in text else f"{text}: out of memory; use a smaller --batch, or smaller inputs"


def private_bytes() -> int:
    """What this process has in memory of its own; 0 where the system does not tell."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * mmap.PAGESIZE


class Session:
    """An onnxruntime session on the CPU, or on the first of `providers`, which has to start.

    model: a ModelProto or a path. Weights that a ModelProto refers to in files are mapped by onnxruntime itself: they
    are neither read nor copied here, and where they are many the model runs in `instalments`, but for other devices
    and for what is timed by `profile` and `bound`; the files have to stay as long as the session. A ModelProto with
    bfloat16 is run as its twin in float32 (`single_precision`), and so is one in float64 that onnxruntime refuses, and
    one in float16 where `single` is set; feeds may then have any floating-point type, and outputs have the type of the
    model, with `single` float32. Inputs and outputs in float8 or of fewer than 8 bits are converted at the ports
    (`few_bits`).
    optimize=False keeps every intermediate tensor as the graph defines it. spin: let idle workers spin, onnxruntime's
    own default; that takes the cores from numpy's BLAS between two runs. in_turns: they spin only while this session
    runs, so that it does not slow down the others. pooled: its activations share one memory with those of other such
    sessions, which the next one takes over: a walk through hundreds of short-lived sessions takes half the time, as the
    system has no new pages to clear. threads: that compute one operator; 0: as many as `threads.limited` says, else
    onnxruntime's own choice.
    kernels: for what is quantized; None: those that models are judged by, or as written where this processor's
    `saturates`. profile: start of the path of a JSON file that `end_profile` closes. Raises RunError where onnxruntime
    refuses the model or a run.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        *,
        optimize: bool = True,
        spin: bool = False,
        single: bool = False,
        in_turns: bool = False,
        pooled: bool = False,
        threads: int = 0,
        providers: Sequence[Provider] = (CPU,),
        kernels: Kernels | None = None,
        profile: str | None = None,
    ) -> None:
        def start(source: onnx.ModelProto | str | os.PathLike[str]) -> Any:
            on_cpu = _name(providers[0]) == CPU  # a device would copy the weights anew for every run
            if isinstance(source, onnx.ModelProto) and on_cpu and profile is None and too_large(source):
                return Instalments(source, partial(whole, mapped=True))
            return whole(source)

        def whole(source: onnx.ModelProto | str | os.PathLike[str], *, mapped: bool = False) -> Any:
            chosen = kernels or (AS_WRITTEN if saturates() else JUDGED)
            try:
                return opened(source, chosen, mapped=mapped)
            except RunError:
                if not chosen.exact:
                    raise
                # It looks for kernels of int8 by uint8, and there are none of QLinearConv and QLinearMatMul.
                return opened(source, replace(chosen, exact=False), mapped=mapped)

        def opened(source: onnx.ModelProto | str | os.PathLike[str], chosen: Kernels, *, mapped: bool) -> Any:
            options = _options()
            if mapped:
                options.add_session_config_entry(_NO_COPIES, "1")
            options.log_severity_level = _FATAL
            options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
            for key, value in chosen.entries.items():
                options.add_session_config_entry(key, value)
            if in_turns:
                options.add_session_config_entry("session.force_spinning_stop", "1")
            options.intra_op_num_threads = threads or limit()
            if pooled:
                _pool()
                options.add_session_config_entry("session.use_env_allocators", "1")
                options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
            if profile is not None:
                options.enable_profiling = True
                options.profile_file_prefix = profile
            level = ort.GraphOptimizationLevel
            options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
            if chosen.exact and isinstance(source, onnx.ModelProto):
                source = faults.with_zero_points(source)
            if isinstance(source, onnx.ModelProto):
                source = faults.without_sizes_of_pasts(source)
            return _opened(source, options, providers)

        self._declared: dict[str, np.dtype[Any]] = {}
        self._twin = False
        narrow = few_bits.carried(model) if isinstance(model, onnx.ModelProto) else None
        if isinstance(model, onnx.ModelProto):
            self._session = self._started(model if narrow is None else narrow.proto, start, single=single)
        else:
            self._session = start(model)
        self.overridable: frozenset[str] = frozenset(i.name for i in self._session.get_overridable_initializers())
        self._narrow_inputs = {} if narrow is None else narrow.inputs
        self._narrow_outputs = {} if narrow is None else narrow.outputs
        self.inputs: tuple[str, ...] = _as_named(self._session.get_inputs(), self._narrow_inputs)
        self.outputs: tuple[str, ...] = _as_named(self._session.get_outputs(), self._narrow_outputs)
        self.output_types: dict[str, tuple[str, tuple[int | str | None, ...]]] = {
            o.name: (str(o.type), tuple(o.shape)) for o in self._session.get_outputs()
        }
        ports = (*self._session.get_inputs(), *self._session.get_overridable_initializers())
        self._singles = frozenset(i.name for i in ports if i.type == "tensor(float)")
        self.device: str = _DEVICES.get(_name(providers[0]), "cpu")

    def _started(self, model: onnx.ModelProto, start: Callable[[onnx.ModelProto], Any], *, single: bool) -> Any:
        """A session of the model, or of its twin where onnxruntime runs only that."""
        types = single_precision.HALF if single else single_precision.BFLOAT16
        if not single_precision.uses(model, types):
            types = frozenset()
            try:
                return start(model)
            except RunError:
                if not single_precision.uses(model, single_precision.DOUBLE):
                    raise
        if single_precision.uses(model, single_precision.DOUBLE):
            types |= single_precision.DOUBLE
        self._twin = True
        self._declared = {} if single else single_precision.declared_types(model, types)
        with spill.spilling() as files:
            files.last_as_long_as(self)
            return start(single_precision.single_precision(model, types))

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name; feeds that the model does not read are ignored.

        A session keeps what its largest run took, for the next one. In a process that is large already it gives that
        back after each run, since several sessions live at once; onnxruntime holds on to the block that it took first.
        """
        names = list(self.outputs if outputs is None else outputs)
        fed, options = self._fed(feeds), ort.RunOptions()
        if private_bytes() > _LARGE_BYTES:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        seconds = overdue.allowed(sum(v.nbytes for v in fed.values() if isinstance(v, np.ndarray)))
        try:
            with overdue.ended_after(options, seconds):
                values = self._session.run(self._ports(names), fed, options)
        except Exception as e:  # as above
            if options.terminate:
                raise RunError(overdue.why(seconds)) from e
            raise RunError(f"onnxruntime cannot run the model: {_one_line(e)}") from e
        values_by_name = dict(zip(names, values, strict=True))
        types = self._declared | {k: dtype for k, (_, dtype) in self._narrow_outputs.items()}
        for k in types.keys() & values_by_name.keys():
            values_by_name[k] = cast(values_by_name[k], types[k])
        return values_by_name

    def _ports(self, outputs: Sequence[str]) -> list[str]:
        """The names that onnxruntime knows these outputs by."""
        return [self._narrow_outputs[k][0] if k in self._narrow_outputs else k for k in outputs]

    def _fed(self, feeds: Feeds) -> dict[str, Array]:
        inputs = set(self.inputs)
        fed = {k: v for k, v in feeds.items() if k in inputs or k in self.overridable}
        if self._twin:
            fed = {k: v.astype(np.float32) if is_float(v.dtype) and k in self._singles else v for k, v in fed.items()}
        for name in self._narrow_inputs.keys() & fed.keys():
            port, dtype = self._narrow_inputs[name]
            fed[port] = fed.pop(name).astype(dtype)
        return fed

    def bound(self, feeds: Feeds) -> Bound:
        """The model on these feeds, ready to be run again and again."""
        whole = self._session.whole() if isinstance(self._session, Instalments) else self._session
        return Bound(whole, self._fed(feeds), self._ports(self.outputs), self.device)

    @property
    def stands_in(self) -> bool:
        """Whether the float32 twin runs instead of the model."""
        return self._twin

    def placement(self) -> dict[str, int]:
        """Nodes by the provider that runs them; empty where onnxruntime does not tell."""
        try:
            parts = self._session.get_provider_graph_assignment_info()
        except Exception:  # noqa: BLE001  it is new, and says nothing of a session on the CPU alone
            return {}
        counts: Counter[str] = Counter()
        for part in parts:
            counts[part.ep_name] += len(part.get_nodes())
        return dict(counts)

    def end_profile(self) -> list[dict[str, Any]]:
        """The events since the start. Raises RunError where they cannot be read."""
        try:
            events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"), strict=False)
        except (OSError, ValueError) as e:
            raise RunError(f"onnxruntime's profile cannot be read: {_one_line(e)}") from e
        return [e for e in events if isinstance(e, dict)]


class Bound:
    """Runs of one session on the same inputs: these and the outputs stay on `device`, so no run copies them.

    Raises RunError where onnxruntime refuses the inputs or a run.
    """

    def __init__(self, session: Any, feeds: Feeds, outputs: Sequence[str], device: str) -> None:
        self._session, self._device, self._binding = session, device, session.io_binding()
        try:
            # A value on the CPU is the array itself, which has to live as long as the binding.
            self._values = {
                k: ort.OrtValue.ortvalue_from_numpy(np.asarray(v, order="C"), device, 0) for k, v in feeds.items()
            }
            for k, v in self._values.items():
                self._binding.bind_ortvalue_input(k, v)
            for name in outputs:
                self._binding.bind_output(name, device)
        except Exception as e:  # onnxruntime's exceptions share no base class below Exception
            raise RunError(f"onnxruntime cannot take the inputs: {_one_line(e)}") from e

    def __call__(self) -> None:
        """One run, to its end."""
        try:
            self._session.run_with_iobinding(self._binding)
            if self._device != "cpu":
                self._binding.synchronize_outputs()
        except Exception as e:  # as above
            raise RunError(f"onnxruntime cannot run the model: {_one_line(e)}") from e

    def outputs(self) -> list[Array]:
        """What the last run gave, in the order of the model's outputs."""
        return list(self._binding.copy_outputs_to_cpu())


def _as_named(ports: Sequence[Any], narrow: Mapping[str, tuple[str, Any]]) -> tuple[str, ...]:
    """The names that the model gives these ports."""
    names = {port: name for name, (port, _) in narrow.items()}
    return tuple(names.get(p.name, p.name) for p in ports)


def _options() -> Any:
    """Options of a session, with the libraries of custom operators. Raises RunError for one that cannot be loaded."""
    options = ort.SessionOptions()
    for path in custom_ops.libraries():
        try:
            options.register_custom_ops_library(path)
        except Exception as e:  # onnxruntime's exceptions share no base class below Exception
            raise RunError(f"onnxruntime cannot register the library {path}: {_one_line(e)}") from e
    return options


@cache
def known_operators() -> frozenset[tuple[str, str]]:
    """(domain, operator) of all that onnxruntime has itself, "" for the standard one; empty where it does not tell."""
    from onnxruntime.capi import onnxruntime_pybind11_state as own

    listed = getattr(own, "get_all_operator_schema", list)  # a build of onnxruntime may leave it out
    return frozenset((s.domain, s.name) for s in listed())


def check_types(model: onnx.ModelProto) -> None:
    """Raises RunError for a model whose types do not fit each other, which a twin would hide.

    onnxruntime looks for kernels once it has accepted the model with all of its types.
    """
    options = _options()
    options.log_severity_level = _FATAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        _opened(model, options, (CPU,))
    except RunError as e:
        if "NOT_IMPLEMENTED" not in str(e.__cause__):
            raise


def timing_on(provider: str | None, otherwise: str) -> tuple[str, ...]:
    """The providers that time a model: what a user named of PROVIDERS, else `otherwise`, each with its `fallbacks`."""
    return fallbacks(otherwise if provider is None else _name(PROVIDERS[provider][0]))


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _opened(source: onnx.ModelProto | str | os.PathLike[str], options: Any, providers: Sequence[Provider]) -> Any:
    if not isinstance(source, onnx.ModelProto):
        return _started(os.fspath(source), options, providers)
    without = faults.optimizers_left_out(source, _RELEASE)
    return _started(_content(source, options), options, providers, without=without)


def _started(
    content: bytes | str,
    options: Any,
    providers: Sequence[Provider],
    *,
    without: Sequence[str] = (),
    probing: bool = False,
) -> Any:
    """A session on the first provider. Raises RunError where that does not start, instead of using another one.

    without: the names of optimizers that are left out. probing: the model is one that every provider runs.
    """
    first = _name(providers[0])
    if first != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with _native_errors(first != CPU) as log:
        if _DEVICES.get(first) == "cuda":
            _find_cuda()
        try:
            session = ort.InferenceSession(
                content, options, providers=list(providers), enable_fallback=0, disabled_optimizers=list(without)
            )
        except Exception as e:  # noqa: BLE001  they share no base class below it; raised again once the log is read
            failure: Exception | None = e
        else:
            failure = None
    why = _reason(log)
    if failure is not None:
        why = why or _one_line(failure)
        if probing:
            raise RunError(f"{first} did not start: {why}{_ADVICE}") from failure
        if first != CPU:
            check_starts(providers)  # else the model has the blame for a library that is not there
        advice = f"; {custom_ops.ADVICE}" if "is not a registered function/op" in why else ""
        raise RunError(f"onnxruntime cannot load the model: {why}{advice}") from failure
    if first not in session.get_providers():
        raise RunError(
            f"{first} did not start, and onnxruntime would have used the CPU: {why or 'it gives no reason'}{_ADVICE}"
        )
    return session


def check_starts(providers: Sequence[Provider]) -> None:
    """Raises RunError where the first of these does not start, be it on a model that anything runs."""
    options = _options()
    options.log_severity_level = _FATAL
    _started(_probe(), options, providers, probing=True)


@cache
def _probe() -> bytes:
    """A model that every provider runs, if it runs any."""
    port = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [port("x", onnx.TensorProto.FLOAT, [1])],
        [port("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


@cache
def _pool() -> None:
    """The memory that sessions share."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with suppress(RuntimeError):  # another thread, or another library, has made one: it serves as well
        ort.create_and_register_allocator(place, ort.OrtArenaCfg({"arena_extend_strategy": _AS_REQUESTED}))


@contextmanager
def _native_errors(wanted: bool) -> Iterator[list[str]]:
    """Lines that compiled code writes to stderr: nothing else says why a provider did not start."""
    lines: list[str] = []
    if not wanted:
        yield lines
        return
    with tempfile.TemporaryFile() as caught:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        ort.set_default_logger_severity(_ERROR)
        try:
            yield lines
        finally:
            ort.set_default_logger_severity(_FATAL)
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            lines += caught.read().decode("utf-8", "replace").splitlines()


def _reason(log: Sequence[str]) -> str:
    """What the log of onnxruntime complains about first, without colours, times and places."""
    errors = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in log if "[E:onnxruntime" in line]
    if not errors:
        return ""
    _, separator, library = errors[0].partition("with error: ")
    text = library if separator else re.sub(r"^.*?\[E:onnxruntime[^\]]*\]\s*", "", errors[0])
    return " ".join(text.split())[:_LINE]


def _find_cuda() -> None:
    """Load CUDA and cuDNN from their Python packages, where these are installed; it prints of those that are not."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            preload()


def available_providers() -> tuple[str, ...]:
    """Execution providers of the installed onnxruntime; whether they start depends on the machine."""
    return tuple(ort.get_available_providers())


def fallbacks(provider: str) -> tuple[str, ...]:
    """The provider, and those that take the operators which it does not know."""
    between = (CUDA,) if provider == "TensorrtExecutionProvider" and CUDA in available_providers() else ()
    return (provider,) if provider == CPU else (provider, *between, CPU)


def profile_events(
    model: onnx.ModelProto,
    feeds: Feeds,
    runs: int,
    *,
    optimize: bool = True,
    threads: int = 0,
    providers: Sequence[str] = (CPU,),
) -> list[dict[str, Any]]:
    """What onnxruntime's profiler says of so many runs, in Chrome's trace format. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        start = str(Path(folder) / "profile")
        session = Session(
            model,
            optimize=optimize,
            spin=True,
            threads=threads,
            providers=providers,
            kernels=DEPLOYED,
            profile=start,
        )
        try:
            run = session.bound(feeds)
            for _ in range(runs):
                run()
        finally:  # the file is open until then
            events = session.end_profile()
        return events


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16, by onnxruntime's own converter; inputs and outputs keep their types.

    Raises RunError where the converter refuses the model.
    """
    paths = list(sys.path)
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with suppress(ImportError):  # of that folder, too, onnxruntime's quantization tools need this module later on
        import_module("onnxruntime.transformers.onnx_utils")
    sys.path[:] = paths  # it has added its own folder, which holds modules with common names
    copy = copied(external.embedded(model))
    try:
        converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    except Exception as e:  # it raises whatever comes
        raise RunError(f"the model cannot be converted to float16: {_one_line(e)}") from e
    return converted


@cache
def saturates(kernels: Kernels = DEPLOYED) -> bool:
    """Whether this processor's integer kernels overflow (see `runtime.saturation`); it is asked once."""

    def run(model: onnx.ModelProto, feeds: Feeds) -> Array:
        return Session(model, threads=1, kernels=kernels).run(feeds)["y"]

    return saturation.saturate(run)


def notes_on(proto: onnx.ModelProto) -> tuple[str, ...]:
    """What to say of what this processor makes of a quantized model."""
    return saturation.notes_on(proto, remedied=not saturates(AS_WRITTEN)) if saturates() else ()


def check_provider(provider: str) -> None:
    """Raises UsageError for one that is not in PROVIDERS, and RunError where onnxruntime cannot compute there."""
    if provider not in PROVIDERS:
        raise UsageError(f"provider {provider!r} is unknown; choose one of {', '.join(PROVIDERS)}")
    if PROVIDERS[provider] == (CPU,):
        return
    check_starts(PROVIDERS[provider])


def _content(model: onnx.ModelProto, options: Any) -> bytes:
    """The model as bytes, with `options` saying where the weights lie that it refers to in files."""
    if external.has_external(model):
        model, root = external.below(model)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", root)
        if external.external_bytes(model) >= _PREPACK_BYTES:
            # Else onnxruntime keeps a second copy of every matrix, in the order that its kernels like best.
            options.add_session_config_entry(_NO_COPIES, "1")
    if external.embedded_bytes(model) >= external.MOST_BYTES:
        raise RunError("the model's weights exceed the 2 GiB of one message; store them as external data")
    content: bytes = model.SerializeToString()
    return content


def concatenated(parts: Sequence[Mapping[str, Any]], *, strict: bool = True, padded: bool = False) -> dict[str, Array]:
    """The outputs that are arrays in each of several runs, joined along the axis in which they differ, or the first.

    strict: raise RunError where an output cannot be joined; else it is left out. padded: each run holds one sample, of
    a size of its own; those of other sizes than the largest are filled up with infinity, which is no measure of
    anything (`measures.masked`), so that floating-point outputs can be joined along the samples.
    """
    arrays = [k for k in parts[0] if all(isinstance(p[k], np.ndarray) for p in parts)]
    joined: dict[str, Array] = {}
    for k in arrays:
        try:
            values = [np.atleast_1d(p[k]) for p in parts]
            joined[k] = _joined(k, _filled_up(values) if padded else values)
        except RunError:
            if strict:
                raise
    return joined


def _filled_up(values: Sequence[Array]) -> Sequence[Array]:
    """Arrays of one rank and floating-point type at the size of the largest along all axes but the first."""
    ranks, types = {v.ndim for v in values}, {v.dtype for v in values}
    if len(ranks) > 1 or len(types) > 1 or not is_float(values[0].dtype):
        return values
    most = tuple(max(sizes) for sizes in zip(*(v.shape[1:] for v in values), strict=True))
    if all(v.shape[1:] == most for v in values):
        return values
    filled = [np.full((len(v), *most), np.inf, v.dtype) for v in values]
    for whole, v in zip(filled, values, strict=True):
        whole[tuple(slice(n) for n in v.shape)] = v
    return filled


def _joined(name: str, values: Sequence[Array]) -> Array:
    shapes = {v.shape for v in values}
    if len({len(s) for s in shapes}) > 1:
        raise RunError(f"output {name!r} has another rank in each batch; give samples that are alike")
    varying = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1] or [0]
    if len(varying) > 1:
        raise RunError(f"output {name!r} has sizes that depend on the samples; its batches cannot be joined")
    joined: Array = np.concatenate(values, axis=varying[0])
    return joined


def operators(domain: str) -> frozenset[str]:
    """The operators of a domain that the installed onnxruntime registers, with kernels on this machine or without."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return frozenset(str(s.name) for s in get_all_operator_schema() if s.domain == domain)


def version() -> str:
    """The version of onnxruntime."""
    return str(ort.__version__)
