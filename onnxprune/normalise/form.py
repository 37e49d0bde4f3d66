"""Bring any ONNX graph into the one form that the other stages read.

- Local functions are inlined. Operators that onnxruntime fuses are written in standard ones (`unfused/`), also in the
  result.
- Initializers that are also graph inputs become plain weights.
- Constants are folded, `Identity` of a weight is looked through.
- A tensor that is computed from shapes alone and does not change with the symbolic dimensions becomes a constant;
  a Reshape target with one changing entry becomes a constant with -1 (or 0 where the entry is copied). What remains
  of run-time shape arithmetic reads the *original* sizes of the fixed axes, so that nothing downstream depends on
  how many channels are kept.
- A Gather that gives a flattened tensor back in its own order and shape (a view by strides) is looked through.
- Initial states of recurrent nets that are zero at every size are left out: zero is what an absent one means, and one
  tensor of zeros that serves several layers would couple their hidden units.
- Convolutions and Gemms without a bias get one of zeros, for the refit to use.
- One-dimensional weights that several nodes share are cloned per use (exporters de-duplicate equal biases).
- Reshape → Transpose → Reshape that only permutes one axis (channel shuffle) becomes a Gather: any subset of the
  channels can then be kept, where the reshape would demand equal numbers in every row.

- In the bodies of If, Loop and Scan the same is done, each as a model of its own on what it captures; every tensor of
  the model gets a name of its own, the weights of bodies move to the main graph until the end, and an If whose
  condition is constant is replaced by its branch.

Which values change is *measured*: onnxruntime evaluates them at several sizes of every symbolic dimension. That covers
any operator that an exporter may use in its shape arithmetic, without a second implementation of it here. A body of
Loop or Scan is measured over two iterations, so that what grows with the iterations is not taken for constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx.inliner

from onnxprune.errors import RunError
from onnxprune.graph import bodies, protobuf, surgeon
from onnxprune.graph.protobuf import copied, int_attribute
from onnxprune.graph.view import Shape, StateGather
from onnxprune.normalise import body_values
from onnxprune.normalise.constants import constant_condition, fold_constants, see_through_identities
from onnxprune.normalise.data_sizes import sizes_by_data
from onnxprune.normalise.limits import limited
from onnxprune.normalise.measured import Shapes
from onnxprune.normalise.resizing import Runner, distinct, resized, together
from onnxprune.normalise.shuffles import with_gathers
from onnxprune.normalise.sizes import fold_shapes, shape_only
from onnxprune.normalise.tables import Table, tables_of
from onnxprune.normalise.unfused import EXPERTS, PACKED, RESTORED, Fused, operator_of, unfuse
from onnxprune.normalise.unfused.experts import BIAS, DOWN, GATED, INNER, UP
from onnxprune.normalise.unfused.integers import real_products
from onnxprune.normalise.weights import clone_shared_vectors, give_biases
from onnxprune.normalise.windows import longer_shapes, reach, windows
from onnxprune.runtime.session import Feeds, Session


@dataclass(frozen=True)
class Normalised:
    """The normalised model, shapes at `binding`, and what is known of run-time shape values (see graph.Graph).

    added_biases: zero biases that the original does not have. clones: copy → the shared weight that it was.
    outside: weights that the original stores in its main graph; the others belong into the bodies that use them.
    free: the axes of each tensor whose size changes with the symbolic dimensions, or may at sizes that were not tried.
    tables: constants that the original computes from fewer bytes, by name.
    fused: operators that are written in standard ones and can be put back; for_good: whether others cannot.
    packed, experts: operators on weights in packed codes, and on those of experts, which are put back always.
    reached: inputs of larger sizes, at which more axes change than at those that are measured anyway.
    samples: in inputs of the shapes of `binding`, once those who know the data have counted them.
    states: the Gathers between states and nodes, where it is said which outputs are states (`states.py`).
    """

    proto: onnx.ModelProto
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    known_values: Mapping[str, tuple[int | None, ...]]
    binding: Mapping[str, Shape]
    notes: tuple[str, ...]
    added_biases: frozenset[str]
    clones: Mapping[str, str]
    outside: frozenset[str] = frozenset()
    free: Mapping[str, frozenset[int]] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    reached: Sequence[Feeds] = ()
    fused: Sequence[Fused] = ()
    for_good: bool = False
    samples: int | None = None
    states: Sequence[StateGather] = ()
    packed: Sequence[Fused] = ()
    experts: Sequence[Fused] = ()

    @property
    def balanced(self) -> Sequence[tuple[str, ...]]:
        """Tensors whose last axes keep equally many channels: what the experts of one node compute inside."""
        return [f.roles[INNER] for f in self.experts]

    @property
    def alike(self) -> Sequence[tuple[str, str]]:
        """Pairs of tensors that keep the same channels: what a mixture reads and gives, which are of one width."""
        return [(f.node.input[0], f.node.output[0]) for f in self.experts]

    @property
    def computed(self) -> dict[str, float]:
        """By weight, the share of positions at which a mixture computes with it: k of its experts at each.

        Biases, which a product of shares adds here, multiply nothing.
        """
        found: dict[str, float] = {}
        for f in self.experts:
            share = int_attribute(f.node, "k", 1) / len(f.roles[INNER])
            found |= {name: share for role in (UP, GATED, DOWN) for name in f.roles.get(role, ())}
            found |= dict.fromkeys(f.roles.get(BIAS, ()), 0.0)
        return found


def normalise(original: onnx.ModelProto, example: Feeds) -> Normalised:
    """Normalise a model; `example` is one small batch of inputs that fixes the symbolic dimensions.

    The result computes what the original computes; `verify` checks that it does.
    """
    notes: list[str] = []
    proto = copied(onnx.inliner.inline_local_functions(original) if original.functions else original)
    weights = {t.name for t in proto.graph.initializer}
    replaceable = weights & {v.name for v in proto.graph.input}
    listed = [v for v in proto.graph.input if v.name in weights]
    if listed:
        notes.append(f"{len(listed)} initializers were also listed as graph inputs; they are treated as weights")
        kept = [v for v in proto.graph.input if v.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        # Version 3 demands the list; from 4 on an initializer may stand for itself.
        proto.ir_version = max(proto.ir_version, 4)
    bodies.name_uniquely(proto)
    outside = frozenset(t.name for t in proto.graph.initializer) | {o for n in proto.graph.node for o in n.output}
    bodies.hoist(proto)
    unfused = unfuse(proto, example, replaceable)
    notes += unfused.notes
    # Bodies that never run first: what follows looks at each that is left as at a model of its own.
    bodies.replace_ifs(proto.graph, constant_condition(bodies.weights_of(proto)))
    see_through_identities(proto)
    unfolded = proto
    proto = fold_constants(proto)
    products = real_products(proto, replaceable)
    notes += products
    runner = Runner(original)
    at_once = together(example, proto, runner)
    runs: list[Feeds] = [*distinct([dict(example), *resized(example, proto, runner, others=at_once), *at_once])]
    tried = len(runs)
    known_values: dict[str, tuple[int | None, ...]] = {}
    fold_shapes(proto, runs, frozenset(), known_values, set())
    if bodies.replace_ifs(proto.graph, constant_condition(bodies.weights_of(proto))):
        proto = fold_constants(proto)
    clones = clone_shared_vectors(proto)
    added = give_biases(proto)
    proto = _clean(proto)
    binding = _binding(example)
    shapes, types = all_shapes(proto, binding, example)
    replaced = Counter[str]()
    free, reached = free_axes(proto, shapes, [*(at_once or runs[1:tried]), *runs[tried:]], example)
    reached = [*runs[tried:], *reached]
    proto = bodies.rewritten(proto, lambda part: with_gathers(part, shapes, free, replaced))
    if replaced["shuffles"]:
        proto = _clean(proto)
    tables = tables_of(unfolded, proto)
    restored, packed, mixed = (
        tuple(f for f in unfused.fused if operator_of(f.node) in names) for names in (RESTORED, PACKED, EXPERTS)
    )
    # Their weights as they were are no part of what is put back: only the first are compared with what is left.
    packed, mixed = (tuple(replace(f, weights=()) for f in fused) for fused in (packed, mixed))
    return Normalised(
        proto,
        shapes,
        types,
        known_values,
        binding,
        tuple(notes),
        added,
        clones,
        outside,
        free,
        tables,
        tuple(reached),
        restored,
        len(unfused.fused) > len(restored) + len(packed) + len(mixed) or bool(products),
        packed=packed,
        experts=mixed,
    )


def _clean(proto: onnx.ModelProto) -> onnx.ModelProto:
    def clean(part: onnx.ModelProto) -> onnx.ModelProto:
        graph = surgeon.remove_unused(surgeon.to_gs(part))
        graph.toposort()
        return surgeon.from_gs(graph, part)

    return bodies.rewritten(proto, clean)


def all_shapes(
    proto: onnx.ModelProto, binding: Mapping[str, Shape], example: Feeds
) -> tuple[dict[str, Shape], dict[str, int]]:
    """(shapes, element types) of every tensor at the sizes of `binding`: inferred, or else measured on `example`."""
    return _EveryShape(proto).at(binding, example)


class _EveryShape:
    """The shapes of every tensor of a model at any sizes of its inputs; what is measured takes one session for all."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._session: Session | None = None

    def at(self, binding: Mapping[str, Shape], feeds: Feeds) -> tuple[dict[str, Shape], dict[str, int]]:
        """(shapes, element types) at the sizes of `binding`, which are those of `feeds`. Raises RunError."""
        shapes, types = protobuf.inferred_shapes(protobuf.bind_inputs(self._proto, binding))
        missing = [o for n in self._proto.graph.node for o in n.output if o and o not in shapes]
        if missing:
            body_values.add_shapes(self._measured(missing).run(feeds, missing), shapes, types)
        body_values.add_shapes_of_bodies(self._proto, feeds, shapes, types)
        return shapes, types

    def _measured(self, names: Sequence[str]) -> Session:
        """A session that gives these, and what the last one gave."""
        before = [] if self._session is None else list(self._session.outputs)
        if self._session is None or not {*names} <= {*before}:
            every = list(dict.fromkeys([*before, *names]))
            self._session = Session(protobuf.submodel(self._proto, {}, every), optimize=False)
        return self._session


def free_axes(
    proto: onnx.ModelProto, shapes: Mapping[str, Shape], others: Sequence[Feeds], example: Feeds
) -> tuple[dict[str, frozenset[int]], list[Feeds]]:
    """(axes of each tensor that have another size than in `shapes` at other sizes of the inputs, more such inputs).

    others: inputs of other sizes than `example`, which `shapes` are of. Where windows stand still at all of these, more
    inputs are made at which they do not; else what would follow if they did not counts too.
    """

    known = _EveryShape(proto)

    def shapes_at(feeds: Feeds) -> Shapes | None:
        try:
            return known.at(_binding(feeds), feeds)[0]
        except RunError:
            return None  # the model does not take that size

    runs: list[Feeds] = [example]
    seen: list[Shapes] = [shapes]
    for feeds in others:
        sizes = shapes_at(feeds)
        if sizes is not None:
            runs.append(feeds)
            seen.append(sizes)
    computed = [o for n in proto.graph.node for o in n.output if o]
    rounding = [*windows(proto), *sizes_by_data(proto, computed, shape_only(proto)), *limited(proto, computed)]
    tried = len(runs)
    reach(proto, rounding, runs, seen, shapes_at)
    free: dict[str, frozenset[int]] = {}
    for now in (*seen[1:], *longer_shapes(proto, _binding(example), rounding, seen)):
        for name, shape in shapes.items():
            new = now.get(name, shape)
            axes = {a for a, (was, is_) in enumerate(zip(shape, new, strict=False)) if was != is_}
            if axes or len(new) != len(shape):
                every = range(len(shape)) if len(new) != len(shape) else axes
                free[name] = free.get(name, frozenset()) | frozenset(every)
    for name, single in _single(proto, shapes, _binding(example), free).items():
        free[name] = free.get(name, frozenset()) | single
    return free, runs[tried:]


def _single(
    proto: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    binding: Mapping[str, Shape],
    free: Mapping[str, frozenset[int]],
) -> dict[str, frozenset[int]]:
    """Axes of one position, by tensor, that follow from symbolic axes of inputs which are 1 at every size that runs.

    1 fits any size that it meets, and what it meets is the one other size that the model takes there: a gate for all
    channels together, or for each. Found by inference with these axes unknown.
    """
    open_ = protobuf.bind_inputs(proto, binding)
    declared = {v.name: v.type.tensor_type.shape.dim for v in proto.graph.input}
    count = 0
    for v in open_.graph.input:
        for a, d in enumerate(v.type.tensor_type.shape.dim if v.name in binding else ()):
            stays = d.dim_value == 1 and a not in free.get(v.name, ())
            if stays and a < len(declared[v.name]) and not declared[v.name][a].HasField("dim_value"):
                d.dim_param = f"single_{count}"
                count += 1
    if not count:
        return {}
    inferred = protobuf.inferred(open_).graph
    single: dict[str, frozenset[int]] = {}
    for v in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = shapes.get(v.name)
        dims = v.type.tensor_type.shape.dim
        if shape is not None and len(dims) == len(shape):
            axes = frozenset(a for a, d in enumerate(dims) if shape[a] == 1 and not d.HasField("dim_value"))
            if axes:
                single[v.name] = axes
    return single


def _binding(feeds: Feeds) -> dict[str, Shape]:
    return {k: tuple(np.shape(v)) for k, v in feeds.items() if isinstance(v, np.ndarray)}
