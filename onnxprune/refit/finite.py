"""Fits that spoil the next tensor: where a fitted model gives NaN or infinity and the original does not.

Fits are judged by squared errors, which say nothing of what an operator behind them is defined for. So a candidate is
run on samples; where it is not finite, the first tensor that is not tells which layer is to blame: the nearest one in
front of it that was fitted. That layer gets the weights back that it had before the fit, and the model runs again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.calibration.layers import Layer
from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.graph import external, protobuf
from onnxprune.graph.bodies import captured_names
from onnxprune.graph.protobuf import Model
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime.session import Feeds, Session
from onnxprune.surgery import set_initializers

# Samples of each part that a candidate runs, and those of a batch.
_SAMPLES, _BATCH = 128, 16


def keep_finite(
    candidate: Model,
    before: Model,
    original: Model,
    layers: Sequence[Layer],
    parts: Sequence[Samples],
) -> list[Layer]:
    """Take back, in place, the fits that make `candidate` give numbers that are not finite; the layers that lost one.

    before: the same model without the fits. original: the normalised model, which may itself give such numbers, and
    then says nothing. parts: samples to run.
    """
    undone: list[Layer] = []
    left = {x.node.outputs[0]: x for x in layers}
    session: Session | None = None
    for part in parts:
        for feeds in part.part(0, part.whole_runs(min(len(part), _SAMPLES))).batches(_BATCH):
            while left:
                try:
                    session = session or Session(candidate)
                    tensor = _first_spoilt(session, candidate, original, feeds)
                except RunError:
                    break  # a candidate that does not run is a matter of the checks
                if not tensor:
                    break
                blamed = _in_front_of(tensor, candidate, left)
                if not blamed:
                    return undone
                undone += [x for x in blamed if _take_back(x, candidate, before)]
                session = None  # it has the weights that the candidate had
                for x in blamed:
                    del left[x.node.outputs[0]]
    return undone


def _first_spoilt(session: Session, candidate: Model, original: Model, feeds: Feeds) -> str:
    """The first tensor that is finite in `original` and not in `candidate`; "" where no output differs so.

    session: of the candidate. Raises RunError.
    """
    wrong = [k for k, v in session.run(feeds).items() if not _finite(v)]
    if not wrong:
        return ""
    expected = Session(original).run(feeds)
    wrong = [k for k in wrong if _finite(expected[k])]
    if not wrong:
        return ""
    in_original = {o for n in original.graph.node for o in n.output if o}
    names = [o for n in candidate.graph.node for o in n.output if o in in_original]
    values = Session(protobuf.submodel(candidate, {}, names), optimize=False).run(feeds)
    spoilt = [k for k in names if not _finite(values[k])]
    reference = Session(protobuf.submodel(original, {}, spoilt), optimize=False).run(feeds)
    return next((k for k in spoilt if _finite(reference[k])), wrong[0])


def _finite(value: object) -> bool:
    return not isinstance(value, np.ndarray) or not is_float(value.dtype) or bool(np.isfinite(value).all())


def _in_front_of(tensor: str, proto: Model, layers: Mapping[str, Layer]) -> list[Layer]:
    """The nearest layers, of those by their first output, that a tensor depends on."""
    producer = {o: n for n in proto.graph.node for o in n.output if o}
    nearest: list[Layer] = []
    seen: set[str] = set()
    stack = [tensor]
    while stack:
        node = producer.get(stack.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.output[0] in layers:
            nearest.append(layers[node.output[0]])
        else:
            stack.extend(i for i in (*node.input, *captured_names(node)) if i)
    return nearest


def _take_back(layer: Layer, candidate: Model, before: Model) -> bool:
    """Give a layer, in place, the weights that it has in `before`; whether that changed any."""
    old: dict[str, Array] = {t.name: external.array_of(t) for t in before.graph.initializer if t.name in layer.stored}
    now = {t.name: external.array_of(t) for t in candidate.graph.initializer if t.name in old}
    if all(np.array_equal(now[k], old[k]) for k in now):
        return False
    set_initializers(candidate, {k: old[k] for k in now})
    return True
