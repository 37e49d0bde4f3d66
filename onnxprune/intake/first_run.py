"""What is asked of the child process (`child`) about a model, before this process opens it in onnx or onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from onnxprune.data.inputs import entries_of
from onnxprune.errors import RunError
from onnxprune.graph import bodies, external, tensor_files
from onnxprune.graph.view import Shape
from onnxprune.normalise import Normalised
from onnxprune.numerics.arrays import Array
from onnxprune.runtime import overdue
from onnxprune.runtime.child import Late, NotLoaded, Stopped, ask

# What one run holds at a time, in sizes of its inputs: generous, for images whose first layers have many channels.
_TIMES_THE_INPUTS = 13
_ALLOCATION = "alloc"


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array], *, seconds: float = 0.0) -> float:
    """Run a model once, optimized and as written; seconds. Raises RunError where it is refused, crashes or hangs.

    seconds: what another honest run has taken.
    """
    what = "this model's first run"
    size, parts = _size(proto, feeds), _parts(proto)
    taken = float(ask("run", _content(proto), dict(feeds), what=what, size=size, honest=seconds, parts=parts))
    overdue.expect(taken, _bytes_of(feeds))
    return taken


def opens(proto: onnx.ModelProto) -> str:
    """What onnx's checker has against a model that onnxruntime opens; "" where that has nothing against it either.

    Raises RunError where onnxruntime does not open it, crashes or hangs.
    """
    what = "opening this model"
    return str(ask("open", _content(proto), what=what, size=external.model_bytes(proto), parts=_parts(proto)))


def output_types(proto: onnx.ModelProto) -> dict[str, tuple[str, tuple[int | str | None, ...]]]:
    """What onnxruntime says of each output: (its type in its own words, its sizes; none where it does not know them).

    Raises RunError where it does not open the model, crashes or hangs.
    """
    what = "opening this model"
    size, parts = external.model_bytes(proto), _parts(proto)
    types: dict[str, tuple[str, tuple[int | str | None, ...]]] = ask(
        "output types", _content(proto), what=what, size=size, parts=parts
    )
    return types


def run_all(proto: onnx.ModelProto, batches: Iterable[Mapping[str, Array]], *, seconds: float) -> None:
    """Run what the calibration will run: some crash, hang or explode only in a larger batch or at a later sample.

    seconds: of a first run, which these batches are many times as large as. Raises RunError for a crash, a hang and
    want of memory; a batch that onnxruntime refuses for anything else is left to whoever needs it.
    """
    what = "a run of this model with the data"
    content, size, parts = _content(proto), external.model_bytes(proto), _parts(proto)
    for feeds in batches:
        most, honest = size + _TIMES_THE_INPUTS * _bytes_of(feeds), seconds * _samples_of(feeds)
        try:
            ask("run again", content, dict(feeds), what=what, size=most, honest=honest, parts=parts)
        except Stopped:
            raise
        except RunError as e:
            if _ALLOCATION in str(e):  # failed: onnxruntime has its own words for its arena, and those of C++
                raise
            return


class Trial:
    """Whether a model runs with some inputs; `why` it last did not."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._seconds = 0.0
        self.why: str = ""

    def __call__(self, feeds: Mapping[str, Array]) -> bool:
        """Run it; a crash is a no. Raises RunError where onnxruntime does not load it, and where it hangs."""
        try:
            self._seconds = max(self._seconds, run(self._proto, feeds, seconds=self._seconds))
        except (NotLoaded, Late):
            raise
        except RunError as e:
            self.why = str(e)
            return False
        return True

    def shapes(self, sizes: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """What inference knows of the tensors inside where the inputs have these sizes; nothing where it crashes."""
        what, size, parts = "shape inference of this model", external.model_bytes(self._proto), _parts(self._proto)
        try:
            found: Mapping[str, Shape] = ask(
                "shapes", _content(self._proto), dict(sizes), what=what, size=size, parts=parts
            )
        except RunError:
            return {}
        return found


def infer(proto: onnx.ModelProto) -> None:
    """Shape inference, which is tried, not trusted. Raises RunError where it crashes or hangs."""
    what = "shape inference of this model"
    ask("infer", _content(proto), what=what, size=external.model_bytes(proto), parts=_parts(proto))


def normalised(proto: onnx.ModelProto, example: Mapping[str, Array], *, seconds: float) -> Normalised:
    """The normal form, as `normalise.normalise` makes it, after a first run that took so many seconds.

    That evaluates parts of the model: constants, bodies that may never run, the model at further sizes; so it is done
    in the child too. Raises ModelError and RunError.
    """
    what = "bringing this model into normal form"
    size, parts = _size(proto, example), _parts(proto)
    result: Normalised = ask(
        "normalise", _content(proto), dict(example), what=what, size=size, honest=seconds, parts=parts
    )
    return result


def _content(proto: onnx.ModelProto) -> bytes:
    if external.embedded_bytes(proto) >= external.LARGE_BYTES:
        proto = tensor_files.outside(proto)
    if external.embedded_bytes(proto) >= external.MOST_BYTES:
        raise RunError("the model's weights exceed the 2 GiB of one message; store them as external data")
    content: bytes = proto.SerializeToString()
    return content


def _size(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> int:
    return external.model_bytes(proto) + _TIMES_THE_INPUTS * _bytes_of(feeds)


def _parts(proto: onnx.ModelProto) -> int:
    return len(proto.graph.initializer) + sum(1 for _ in bodies.every_node(proto.graph))


def _samples_of(feeds: Mapping[str, Array]) -> int:
    return max((len(a) for name, v in feeds.items() for a in entries_of(name, v).values() if a.ndim), default=1)


def _bytes_of(feeds: Mapping[str, Array]) -> int:
    return sum(entry.nbytes for name, v in feeds.items() for entry in entries_of(name, v).values())
