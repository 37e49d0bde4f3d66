"""Which tensors stand for each output of a model when models are compared, selected for, fitted and judged.

A floating-point output stands for itself, unless a small change of what is computed can make it jump: behind a ranking
(TopK, NonMaxSuppression, ArgMax), a comparison, or a conversion to integers, the floating-point tensors in front of
that stand for it. Where an output joins tensors (a Concat with nothing behind it but what moves entries about), these
stand for it one by one, so that scores in 0..1 do not vanish beside boxes in pixels.

Only the *tail* is looked at, from an output back to the layers that nothing but element-wise and layout operators
separate from it: a ranking or a comparison with layers behind it (proposals, routed experts, activations written with
Where) is part of the network, and what those layers make of it can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import helper

from onnxprune.data.layouts import Layouts
from onnxprune.graph import protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Graph, Node, depth_first
from onnxprune.numerics.arrays import is_float

# Layers: what they give is measured by what comes behind them.
_LAYERS = frozenset(
    "Attention Conv ConvInteger ConvTranspose DeformConv Einsum GRU Gemm LSTM MatMul MatMulInteger QLinearConv "
    "QLinearMatMul RNN".split()
)
# A step in what they read, however small, may be a jump in what they give, even where that is floating point. What
# turns floating-point numbers into any other type counts too.
_JUMPS = frozenset("ArgMax ArgMin Ceil Compress Floor Hardmax NonMaxSuppression Round Sign TopK Unique".split())
_CHOICES = frozenset("ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual".split())
# Choices that are added up make a count, which is no class. A Scatter may add, too.
_COUNTING = frozenset(
    "AveragePool CumSum GlobalAveragePool Mean ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd "
    "ReduceSum ReduceSumSquare Sum".split()
)
_ADDING = frozenset("Add Sub".split())
# Of these only the sizes are read, or what hardly ever changes.
_STILL = frozenset("IsInf IsNaN Shape Size".split())
# What one model gives may have other sizes than what another gives on the same sample.
_SIZED_BY_VALUES = frozenset("Compress NonMaxSuppression NonZero StringSplit Unique".split())
_RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
_LAYOUT = frozenset("Cast Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
_SCALING = frozenset("Add Div Mul Sub".split())
_NORMALISED = frozenset("LogSoftmax Softmax".split())
_MOST_JOINED = 16


@dataclass(frozen=True)
class Whole:
    """Tensors that stand for some outputs: several where they are joined in one, in that order.

    columns: whether the scales of single channels say something; those of probabilities, which add up to 1, do not.
    """

    tensors: tuple[str, ...]
    outputs: tuple[str, ...]
    columns: bool = True


@dataclass(frozen=True)
class Observed:
    """What stands for each output of a model.

    outputs: of the model, in their order. wholes: what stands for them.

    still: outputs that do not depend on any layer. missing: those that depend on layers and have no floating-point
    tensor in front. ranked: those that others stand for because they jump. sized_by_values: those whose sizes depend on
    what the model computes. random: those that differ from run to run. layouts: of the tensors whose samples do not lie
    along axis 0, once that is measured. choices: those of the jumping ones that are a choice among classes, no count.
    states: those that stand for nothing, as entries of them are zero that were not, and only the next step reads them.
    """

    outputs: tuple[str, ...]
    wholes: tuple[Whole, ...]
    still: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    ranked: frozenset[str] = frozenset()
    sized_by_values: frozenset[str] = frozenset()
    random: frozenset[str] = frozenset()
    choices: frozenset[str] = frozenset()
    states: frozenset[str] = frozenset()
    layouts: Layouts = field(default_factory=dict)

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """All tensors that stand for outputs, each once."""
        return tuple(dict.fromkeys(t for w in self.wholes for t in w.tensors))

    @property
    def plain(self) -> bool:
        """Whether no tensor is needed beside the outputs."""
        return set(self.tensors) <= set(self.outputs)


def observed_in(
    graph: Graph,
    types: Mapping[str, int],
    free: Callable[[str], bool] = lambda _: False,
    states: Set[str] = frozenset(),
) -> Observed:
    """What stands for the outputs of a model.

    types: ONNX element type by tensor; shapes may be missing. free: whether channels of a tensor may go, so that it
    cannot be compared. states: outputs that are left out where there are others.
    """
    draft = _Draft()
    layers = {n.index for n in graph.nodes if _is_layer(n, graph)}
    for o in graph.outputs:
        if o not in states:
            _Tail(graph, types, free, layers, o).judge(draft)
    if states and not draft.wholes:
        return observed_in(graph, types, free)
    wholes: list[Whole] = []
    taken: set[str] = set()
    for tensors, columns in draft.wholes.items():
        rest = tuple(t for t in tensors if t not in taken)
        taken.update(rest)
        if rest:
            spoken_for = tuple(o for o in graph.outputs if tensors in draft.by_output.get(o, ()))
            wholes.append(Whole(rest, spoken_for, columns))
    return Observed(
        graph.outputs,
        tuple(wholes),
        still=frozenset(draft.still),
        missing=frozenset(draft.missing),
        ranked=frozenset(draft.ranked),
        sized_by_values=frozenset(draft.sized),
        random=frozenset(draft.random),
        choices=frozenset(draft.choices),
        states=frozenset(states & {*graph.outputs}),
    )


def tensors_of(proto: onnx.ModelProto) -> set[str]:
    """What a run of a model can give out: what its main graph computes."""
    return {o for n in proto.graph.node for o in n.output if o} | {o.name for o in proto.graph.output}


def observing(proto: onnx.ModelProto, outputs: Iterable[str], types: Mapping[str, int]) -> onnx.ModelProto:
    """A copy that gives out these tensors instead of its outputs; the nodes stay, in their order."""
    result = copied(proto)
    declared = {v.name: v for v in proto.graph.output}
    del result.graph.output[:]
    for o in outputs:
        if o in declared:
            result.graph.output.append(declared[o])
        elif types.get(o) == onnx.TensorProto.BFLOAT16:  # which runs as something else, and is given out as what it is
            result.graph.output.append(helper.make_tensor_value_info(o, onnx.TensorProto.BFLOAT16, None))
        else:
            result.graph.output.append(helper.make_empty_tensor_value_info(o))
    return result


@dataclass
class _Draft:
    wholes: dict[tuple[str, ...], bool] = field(default_factory=dict)
    by_output: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    still: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    ranked: set[str] = field(default_factory=set)
    sized: set[str] = field(default_factory=set)
    random: set[str] = field(default_factory=set)
    choices: set[str] = field(default_factory=set)


class _Tail:
    """What lies between an output and the layers before it."""

    def __init__(
        self, graph: Graph, types: Mapping[str, int], free: Callable[[str], bool], layers: Set[int], output: str
    ) -> None:
        self.graph, self.types, self.free, self.output = graph, types, free, output
        self.layers = {o for n in graph.nodes if n.index in layers for o in n.outputs if o}
        self.nodes = self._between(layers)
        # Tensors that depend on a layer; of those, the ones that jump; what has sizes or values of its own each run.
        self.moving, self.jumping, self.sized, self.random = set(self.layers), set[str](), set[str](), set[str]()
        for n in self.nodes:
            self._visit(n)

    def judge(self, draft: _Draft) -> None:
        """Note in the draft what stands for the output, and what kind of output it is."""
        o = self.output
        if o in self.random:
            draft.random.add(o)
        if o in self.sized:
            draft.sized.add(o)
        if o not in self.moving:
            draft.still.add(o)
            return
        if self._is_float(o) and o not in self.jumping and o not in self.random:
            fronts = [o]
        else:
            fronts = self._fronts()
            (draft.ranked if fronts else draft.missing).add(o)
            if self._chooses():
                draft.choices.add(o)
        for t in fronts:
            tensors = self._joined(t)
            draft.wholes.setdefault(tensors, not self._normalised(t))
            draft.by_output.setdefault(o, set()).add(tensors)

    # the walk

    def _between(self, layers: Set[int]) -> list[Node]:
        graph = self.graph
        nodes: dict[int, Node] = {}
        stack = [self.output]
        while stack:
            n = graph.producer.get(stack.pop())
            if n is None or n.index in nodes or n.index in layers or n.index in graph.inside:
                continue
            nodes[n.index] = n
            stack += [i for i in (*n.inputs, *n.captures) if i]
        return [n for n in graph.nodes if n.index in nodes]

    def _visit(self, n: Node) -> None:
        read = [i for i in (*n.inputs, *n.captures) if i]
        moving = [i for i in read if i in self.moving]
        outputs = [o for o in n.outputs if o]
        if any(x.op in _RANDOM for x in _within(n)) or any(i in self.random for i in read):
            self.random.update(outputs)
        if n.op in _STILL and n.domain == "":
            moving = [i for i in moving if i in self.sized]
        if not moving:
            return
        self.moving.update(outputs)
        if any(x.op in _SIZED_BY_VALUES for x in _within(n)) or any(i in self.sized for i in read):
            self.sized.update(outputs)
        if any(i in self.jumping for i in read) or self._jumps(n, moving):
            self.jumping.update(outputs)

    def _jumps(self, n: Node, moving: Sequence[str]) -> bool:
        if n.domain == "" and any(x.op in _JUMPS or x.op in _SIZED_BY_VALUES for x in _within(n)):
            return True
        if n.op.endswith("QuantizeLinear"):  # codes that are numbers again behind the next operator
            return False
        floats = any(self._is_float(i) for i in moving)
        return floats and any(o in self.types and not self._is_float(o) for o in n.outputs)

    def _chooses(self) -> bool:
        """Whether the output is a choice among classes: picked or compared, and not counted since."""
        moving = [n for n in self.nodes if any(o in self.moving for o in n.outputs)]
        kinds = {n.op for n in moving}
        if not kinds & _CHOICES or kinds & (_SIZED_BY_VALUES | {"OneHot", "TopK"}):
            return False
        chosen: set[str] = set()
        for n in moving:
            read = [i for i in (*n.inputs, *n.captures) if i in chosen]
            if read and any(_counts(x, len(read)) for x in _within(n)):
                return False
            if read or any(x.op in _CHOICES for x in _within(n)):
                chosen.update(o for o in n.outputs if o)
        return True

    def _fronts(self) -> list[str]:
        """The floating-point tensors that what jumps, or is random, reads; without those computed from the others."""
        behind = self.jumping | self.random
        read = dict.fromkeys(
            i
            for n in self.nodes
            if any(o in behind or (o in self.moving and not self._is_float(o)) for o in n.outputs)
            for i in (*n.inputs, *n.captures)
            if i in self.moving and i not in behind and self._is_float(i)
        )
        usable = [t for t in read if self._has_rows(t)]
        return [t for t in usable if not self._derived(t, set(usable) - {t})]

    def _derived(self, tensor: str, others: set[str]) -> bool:
        """Whether nothing that moves reaches a tensor but through others."""
        seen, stack = {tensor}, [tensor]
        while stack:
            t = stack.pop()
            n = self.graph.producer.get(t)
            if t in self.layers or n is None:
                return False
            for i in (*n.inputs, *n.captures):
                if i in self.moving and i not in others and i not in seen:
                    seen.add(i)
                    stack.append(i)
        return True

    # what is joined

    def _joined(self, tensor: str) -> tuple[str, ...]:
        operands = self._operands(tensor)
        usable = all(self._is_float(t) and self._has_rows(t) for t in operands)
        return tuple(dict.fromkeys(operands)) if usable and 0 < len(operands) <= _MOST_JOINED else (tensor,)

    def _operands(self, tensor: str) -> list[str]:
        """The tensors that are joined in one; itself where none are."""
        upstream = tensor
        while True:
            n = self._source(upstream)
            if n is None:
                return [tensor]
            if n.op == "Concat":
                rank = len(self.graph.shape(upstream) or ())
                axis = int(n.attrs.get("axis", 1))
                if axis in (0, -rank):
                    return [tensor]
                own = [i for i in n.inputs if i in self.moving]
                return [t for i in own for t in self._operands(i)]
            upstream = next(i for i in n.inputs if i in self.moving)

    def _source(self, tensor: str) -> Node | None:
        """What made a tensor, where that is a Concat, or leaves its numbers as they are but for place and scale."""
        n = self.graph.producer.get(tensor)
        if n is None or n.domain or n.index in self.graph.inside or tensor in self.layers:
            return None
        moving = [i for i in n.inputs if i in self.moving]
        if n.op == "Concat":
            return n if moving else None
        if len(moving) != 1 or not self._is_float(moving[0]):
            return None
        if n.op in _LAYOUT and moving[0] == n.inputs[0]:
            return n
        others = [self.graph.constants.get(i) for i in n.inputs if i not in moving]
        return n if n.op in _SCALING and all(c is not None and c.size == 1 for c in others) else None

    def _normalised(self, tensor: str) -> bool:
        n = self.graph.producer.get(tensor)
        while n is not None and n.domain == "" and n.op in _LAYOUT:
            n = self.graph.producer.get(n.inputs[0])
        return n is not None and n.domain == "" and n.op in _NORMALISED

    # types and sizes

    def _is_float(self, tensor: str) -> bool:
        kind = self.types.get(tensor)
        return kind is None or (bool(kind) and is_float(helper.tensor_dtype_to_np_dtype(kind)))

    def _has_rows(self, tensor: str) -> bool:
        """Whether a tensor has the same rows in every model, as many for each sample, as far as its shape is known."""
        shape, batch = self.graph.shape(tensor), self.graph.batch
        if tensor in self.sized or self.free(tensor):
            return False
        if shape is None:
            return True
        return batch == 1 or any(size % batch == 0 for size in shape)


def _is_layer(n: Node, graph: Graph) -> bool:
    return any(
        x.domain not in ("", "ai.onnx.ml")
        or x.op in _LAYERS
        or (x.op == "Gather" and x.inputs[0] in graph.constants and is_float(graph.constants[x.inputs[0]].dtype))
        for x in _within(n)
    )


def _counts(n: Node, choices: int) -> bool:
    """Whether a node that reads so many choices adds them up."""
    if n.op.startswith("Scatter"):
        return str(n.attrs.get("reduction", "none")) in ("add", "mul")
    return n.op in _COUNTING or (n.op in _ADDING and choices > 1)


def _within(n: Node) -> Iterator[Node]:
    """A node, and what is inside its bodies."""
    return depth_first((n,))


def observed_of_model(
    proto: onnx.ModelProto, other: onnx.ModelProto, lost: Set[str] = frozenset(), states: Set[str] = frozenset()
) -> Observed:
    """What stands for the outputs of a model as it lies in its file, where another model has these tensors too.

    lost: those that it has with other shapes. states: as for `observed_in`.
    """
    shapes, types = protobuf.inferred_shapes(proto)
    shared = tensors_of(other) - lost
    return observed_in(protobuf.view(proto, shapes, {}, {}), types, lambda t: t not in shared, states)
