"""The only user of onnxruntime: sessions over in-memory models, with quiet logs and one-line errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxprune import storage, twin
from onnxprune.errors import RunError, UsageError
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


# Threads of a session that does not ask for a number itself; 0: onnxruntime's own choice, all cores.
_THREADS: ContextVar[int] = ContextVar("_THREADS", default=0)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sessions that are opened while this lasts compute with so many threads, where they do not say another number."""
    token = _THREADS.set(count)
    try:
        yield
    finally:
        _THREADS.reset(token)


# Without TensorFloat-32, whose products have 10 bits; onnxruntime's default on newer GPUs.
_CUDA = {"use_tf32": "0"}
PROVIDERS: Mapping[str, Sequence[str | tuple[str, Mapping[str, str]]]] = {
    "cpu": ("CPUExecutionProvider",),
    # The CPU computes shapes, and what has no kernel on the GPU.
    "cuda": (("CUDAExecutionProvider", _CUDA), "CPUExecutionProvider"),
}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LINE]


class Session:
    """An onnxruntime session on the CPU (or another of PROVIDERS; RunError where onnxruntime falls back to the CPU).

    model: a ModelProto or a path. Weights that a ModelProto refers to in files are mapped by onnxruntime itself: they
    are neither read nor copied here. A ModelProto with bfloat16 is run as its float32 twin (`twin`), and so is one in
    float64 that onnxruntime refuses, and one in float16 where `single` is set; feeds may then have any floating-point
    type, and outputs have the type of the model, with `single` float32. optimize=False keeps every intermediate tensor
    as the graph defines it. spin: let idle workers spin, onnxruntime's own default; that takes the cores from numpy's
    BLAS between two runs. threads: that compute one operator, 0 for the choice of `threads`.
    Raises RunError where onnxruntime refuses the model or a run.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        *,
        optimize: bool = True,
        spin: bool = False,
        single: bool = False,
        threads: int = 0,
        provider: str = "cpu",
    ) -> None:
        def opened(content: str | bytes, options: Any) -> Any:
            session = ort.InferenceSession(content, options, providers=list(PROVIDERS[provider]))
            if not _computes_on(session, provider):
                raise RunError(_no_provider(provider))
            return session

        def start(source: onnx.ModelProto | str | os.PathLike[str]) -> Any:
            options = ort.SessionOptions()
            options.log_severity_level = _FATAL
            options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
            options.intra_op_num_threads = threads or _THREADS.get()
            level = ort.GraphOptimizationLevel
            options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
            content = _content(source, options) if isinstance(source, onnx.ModelProto) else os.fspath(source)
            try:
                if isinstance(content, bytes) and not _RELATIVE:
                    with storage.as_file(content) as path:
                        return opened(path, options)
                return opened(content, options)
            except RunError:
                raise
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


def _computes_on(session: Any, provider: str) -> bool:
    first = PROVIDERS[provider][0]
    return (first if isinstance(first, str) else first[0]) in session.get_providers()


def check_provider(provider: str) -> None:
    """Raises UsageError for an unknown one, and RunError where onnxruntime cannot compute there."""
    if provider not in PROVIDERS:
        raise UsageError(f"provider {provider!r} is unknown; choose one of {', '.join(PROVIDERS)}")
    port = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [port("x", onnx.TensorProto.FLOAT, [1])],
        [port("y", onnx.TensorProto.FLOAT, [1])],
    )
    if provider == "cpu":
        return
    ort.set_default_logger_severity(_FATAL)  # which library is missing is said once, below
    try:
        opset = onnx.helper.make_opsetid("", 13)
        Session(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), provider=provider)
    finally:
        ort.set_default_logger_severity(_ERROR)


def _no_provider(provider: str) -> str:
    return (
        f"onnxruntime {ort.__version__} cannot compute on {provider} here: that takes an NVIDIA GPU, onnxruntime-gpu "
        "and the CUDA and cuDNN libraries that it asks for; without, use --provider cpu"
    )


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
