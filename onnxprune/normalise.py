"""Bring any ONNX graph into the one form that the other stages read.

- Local functions are inlined; initializers that are also graph inputs become plain weights.
- Constants are folded, `Identity` of a weight is looked through.
- A tensor that is computed from shapes alone and does not change with the symbolic dimensions becomes a constant;
  a Reshape target with one changing entry becomes a constant with -1 (or 0 where the entry is copied). What remains
  of run-time shape arithmetic reads the *original* sizes of the fixed axes, so that nothing downstream depends on
  how many channels are kept.
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
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from onnxprune import bodies, measuring, storage
from onnxprune import model as m
from onnxprune.errors import ModelError, RunError
from onnxprune.graph import Array, Shape
from onnxprune.runtime import Feeds, Session

_FOLD_LIMIT_BYTES = 16 << 20
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_QUANTIZED = {"DequantizeLinear", "QuantizeLinear"}
_SHAPE_OPS = {"Shape", "Size"}
# What these give is no tensor, and so no constant.
_NO_TENSORS = {"Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence"}


@dataclass(frozen=True)
class Normalised:
    """The normalised model, shapes at `binding`, and what is known of run-time shape values (see graph.Graph).

    added_biases: zero biases that the original does not have. clones: copy → the shared weight that it was.
    outside: weights that the original stores in its main graph; the others belong into the bodies that use them.
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


def normalise(original: onnx.ModelProto, example: Feeds) -> Normalised:
    """Normalise a model; `example` is one small batch of inputs that fixes the symbolic dimensions.

    The result computes what the original computes; `verify` checks that it does.
    """
    notes: list[str] = []
    proto = onnx.inliner.inline_local_functions(original) if original.functions else _copy(original)
    weights = {t.name for t in proto.graph.initializer}
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
    _see_through_identities(proto)
    proto = _fold_constants(proto)
    runs = [dict(example), *resized(example, proto, _Runner(original))]
    known: dict[str, tuple[int | None, ...]] = {}
    _fold_shapes(proto, runs, frozenset(), known, set())
    if bodies.replace_ifs(proto.graph, _constant_condition({t.name: t for t in proto.graph.initializer})):
        proto = _fold_constants(proto)
    clones = _clone_shared_vectors(proto)
    added = _give_biases(proto)
    proto = _clean(proto)
    binding = {k: tuple(np.shape(v)) for k, v in example.items()}
    shapes, types = _all_shapes(proto, binding, example)
    replaced = Counter[str]()
    proto = bodies.rewritten(proto, lambda part: _with_gathers(part, shapes, replaced))
    if replaced["shuffles"]:
        proto = _clean(proto)
    return Normalised(proto, shapes, types, known, binding, tuple(notes), added, clones, outside)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _clean(proto: onnx.ModelProto) -> onnx.ModelProto:
    def clean(part: onnx.ModelProto) -> onnx.ModelProto:
        graph = m.to_gs(part)
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
        return m.from_gs(graph, part)

    return bodies.rewritten(proto, clean)


def _fold_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    return bodies.rewritten(proto, _with_folded_constants)


def _with_folded_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = m.to_gs(proto)
    graph.toposort()
    kept = {*_QUANTIZED, *_RANDOM, *_NO_TENSORS}
    whole = {bodies.main_output(n) for n in proto.graph.node if bodies.bodies_of(n)}
    apart = _apart(proto)

    def excluded(n: Any) -> bool:
        return n.op in kept or any(o.name in whole for o in n.outputs) or any(i.name in apart for i in n.inputs)

    try:
        graph.fold_constants(
            fold_shapes=False,
            error_ok=False,
            size_threshold=None,
            should_exclude_node=excluded,
            flatten_subgraphs=False,
        )
    except Exception as e:  # onnx-graphsurgeon passes on whatever onnxruntime raises
        raise ModelError(f"a constant part of the model cannot be evaluated: {' '.join(str(e).split())[:200]}") from e
    graph.cleanup(remove_unused_graph_inputs=False)
    folded = m.from_gs(graph, proto)
    _fold_apart(folded)
    return folded


def _apart(proto: onnx.ModelProto) -> set[str]:
    """Constants that onnx-graphsurgeon cannot fold with: those that lie in files, and bfloat16."""
    held = [(t.name, t) for t in proto.graph.initializer]
    held += [(n.output[0], a.t) for n in proto.graph.node if n.op_type == "Constant" for a in n.attribute]
    return {name for name, t in held if storage.is_external(t) or t.data_type == onnx.TensorProto.BFLOAT16}


def _fold_apart(proto: onnx.ModelProto) -> None:
    """Fold, in place and node by node, what reads such constants: a result that is large goes to a file as well."""
    weights = {t.name: t for t in proto.graph.initializer}
    apart = _apart(proto)
    outputs = {o.name for o in proto.graph.output}
    folded: set[str] = set()
    for n in proto.graph.node:
        sources = {i: weights.get(i) for i in n.input if i}
        skipped = n.op_type in _QUANTIZED or n.op_type in _RANDOM or outputs & set(n.output)
        if skipped or not apart & sources.keys() or bodies.bodies_of(n):
            continue
        known = [t for t in sources.values() if t is not None]
        names = [o for o in n.output if o]
        if len(known) < len(sources) or not names:
            continue
        ports = [helper.make_empty_tensor_value_info(o) for o in names]
        part = helper.make_model(
            helper.make_graph([n], "part", [], ports, known),
            opset_imports=proto.opset_import,
            ir_version=max(proto.ir_version, 4),
        )
        try:
            values = Session(part, optimize=False).run({})
        except RunError as e:
            raise ModelError(f"a constant part of the model cannot be evaluated: {e}") from e
        outside = any(storage.is_external(t) for t in known)
        for o in names:
            weights[o] = storage.tensor_of(values[o], o, outside=outside)
            proto.graph.initializer.append(weights[o])
        apart.update(names)
        folded.update(names)
    kept = [_copy_node(n) for n in proto.graph.node if not folded & set(n.output)]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def _see_through_identities(proto: onnx.ModelProto) -> None:
    """Identity of an initializer is the initializer: shared matrices stay shared."""
    alias: dict[str, str] = {}
    weights = {t.name for t in proto.graph.initializer}
    outputs = _returned(proto)
    for n in bodies.every_node(proto.graph):
        for i, name in enumerate(n.input):
            n.input[i] = alias.get(name, name)
        if n.op_type == "Identity" and n.input[0] in weights and n.output[0] not in outputs:
            alias[n.output[0]] = n.input[0]


def _returned(proto: onnx.ModelProto) -> set[str]:
    """The outputs of the graph and of every body."""
    return {o.name for g in (proto.graph, *bodies.every_body(proto.graph)) for o in g.output}


def _constant_condition(weights: Mapping[str, onnx.TensorProto]) -> Callable[[onnx.NodeProto], bool | None]:
    """Which branch an If with a constant condition takes."""

    def taken(node: onnx.NodeProto) -> bool | None:
        condition = weights.get(node.input[0])
        return None if condition is None else bool(onnx.numpy_helper.to_array(condition).ravel()[0])

    return taken


def _shape_only(proto: onnx.ModelProto, given: Collection[str] = ()) -> set[str]:
    """Tensors that depend on constants, on shapes, and on what of the inputs is `given` to be so, alone."""
    found = {t.name for t in proto.graph.initializer} | set(given)
    for n in proto.graph.node:
        if n.op_type in _RANDOM or n.op_type in _QUANTIZED:
            continue
        if bodies.bodies_of(n):
            continue
        if n.op_type in _SHAPE_OPS or all(i in found for i in n.input if i):
            found.update(o for o in n.output if o)
    return found


def resized(example: Feeds, proto: onnx.ModelProto, runs: Callable[[Feeds], bool]) -> list[dict[str, Array]]:
    """`example` with each symbolic dimension changed in turn: one more for the first axis, twice the size for others.

    Where `runs` says that the model does not take twice the size (more words than it has positions for, say), a smaller
    one that it takes stands in for it.
    """
    symbols: dict[str, list[tuple[str, int]]] = {}
    for v in proto.graph.input:
        if not v.type.HasField("tensor_type") or v.name not in example:
            continue
        for axis, d in enumerate(v.type.tensor_type.shape.dim):
            if not d.HasField("dim_value"):
                symbols.setdefault(d.dim_param or f"{v.name}:{axis}", []).append((v.name, axis))
    variants: list[dict[str, Array]] = []
    for places in symbols.values():
        name, axis = places[0]
        size = example[name].shape[axis]
        first, *others = [size + 1] if axis == 0 else [2 * size, size // 2, size + 1, size - 1]
        variant = _at_size(example, places, first)
        if any(new > 0 for new in others) and not runs(variant):
            smaller = (_at_size(example, places, new) for new in others if new > 0)
            variant = next((v for v in smaller if runs(v)), variant)
        variants.append(variant)
    return variants


def _at_size(example: Feeds, places: Sequence[tuple[str, int]], size: int) -> dict[str, Array]:
    """`example` with all these axes cut or repeated to a size."""
    feeds = dict(example)
    for name, axis in places:
        feeds[name] = np.take(feeds[name], np.arange(size) % feeds[name].shape[axis], axis=axis)
    return feeds


class _Runner:
    """Whether a model runs on some inputs; its session is started at the first question."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._session: Session | None = None

    def __call__(self, feeds: Feeds) -> bool:
        self._session = self._session or Session(self._proto)
        return accepts(self._session, feeds)


def accepts(session: Session, feeds: Feeds) -> bool:
    """Whether a run succeeds."""
    try:
        session.run(feeds)
    except RunError:
        return False
    return True


def _fold_shapes(
    proto: onnx.ModelProto,
    runs: Sequence[Feeds],
    given: Collection[str],
    known: dict[str, tuple[int | None, ...]],
    open_: set[str],
) -> None:
    """Fold shape arithmetic, in place, in a model and its bodies; what stays but is known goes to `known`.

    runs: inputs at several sizes. given: the inputs that depend on shapes alone. open_: decisions on changing sizes.
    """
    static = _shape_only(proto, given)
    known.update(_fold_shape_arithmetic(proto, runs, static - set(given), open_))
    holders = [n for n in proto.graph.node if bodies.bodies_of(n)]
    read = measuring.read_by_bodies(proto, runs) if holders else None
    for node in holders:
        for _, body in bodies.bodies_of(node):
            inside = None if read is None else measuring.inside(proto, node, body, read)
            if inside is None or not inside.iterates:
                continue
            found: dict[str, tuple[int | None, ...]] = {}
            try:
                _fold_shapes(
                    inside.model, inside.runs, static & {v.name for v in inside.model.graph.input}, found, open_
                )
            except RunError:
                continue  # a branch that does not fit these inputs stays as it is
            bodies.put_back(proto, body, inside.model)
            known.update(found)


def _fold_shape_arithmetic(
    proto: onnx.ModelProto, feeds: Sequence[Feeds], static: Collection[str], open_: set[str]
) -> dict[str, tuple[int | None, ...]]:
    weights = {t.name for t in proto.graph.initializer}
    states = _initial_states(proto)
    stored = {t.name: storage.array_of(t) for t in proto.graph.initializer if t.name in states}
    _drop_zero_states(proto, {name for name, values in stored.items() if not values.any()})
    produced = [o for n in proto.graph.node for o in n.output if o in static and o not in weights]
    if not produced:
        return {}
    runs, complete = _evaluate(proto, produced, feeds)
    if complete:
        _drop_zero_states(proto, {name for name in states & set(produced) if not any(r[name].any() for r in runs)})
    known: dict[str, tuple[int | None, ...]] = {}
    constant: dict[str, Array] = {}
    open_ |= _decisions(proto, {**{k: [f[k] for f in feeds] for k in feeds[0]}, **_by_name(runs)}, open_)
    for name in produced:
        values = [r[name] for r in runs]
        first = values[0]
        if name in open_ or not all(isinstance(v, np.ndarray) for v in values):
            continue
        if complete and all(v.shape == first.shape and np.array_equal(v, first) for v in values[1:]):
            if first.nbytes <= _FOLD_LIMIT_BYTES:
                constant[name] = first
            continue
        vector = first.ndim == 1 and np.issubdtype(first.dtype, np.integer)
        if complete and vector and all(v.shape == first.shape for v in values):
            same = np.all(np.stack(values) == first, axis=0)
            known[name] = tuple(int(x) if s else None for x, s in zip(first, same, strict=True))
    _replace_by_constants(proto, constant)
    _fold_reshape_targets(proto, known, runs if complete else [], feeds)
    _bake_shapes(proto, known)
    return known


def _recurrent(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in proto.graph.node if n.op_type in ("LSTM", "GRU", "RNN") and n.domain in ("", "ai.onnx")]


def _initial_states(proto: onnx.ModelProto) -> set[str]:
    """The tensors that recurrent nets start from: inputs 5 and 6."""
    return {name for n in _recurrent(proto) for name in n.input[5:7] if name}


def _drop_zero_states(proto: onnx.ModelProto, zeros: Set[str]) -> None:
    """Leave out the initial states of recurrent nets that are among `zeros`."""
    for n in _recurrent(proto):
        for slot in (5, 6):
            if slot < len(n.input) and n.input[slot] in zeros:
                n.input[slot] = ""
        while not n.input[-1]:
            del n.input[-1]


def _by_name(runs: Sequence[Feeds]) -> dict[str, list[Array]]:
    return {k: [r[k] for r in runs] for k in runs[0]}


def _decisions(proto: onnx.ModelProto, values: Mapping[str, Sequence[Array]], known: Collection[str]) -> set[str]:
    """Single truth values that compare sizes which change, and what follows from them.

    That they came out the same at the sizes that were measured does not say that they always do: "is the batch 1?"
    """
    changing = {k for k, v in values.items() if any(not np.array_equal(x, v[0]) for x in v[1:])}
    found = set(known)
    for n in proto.graph.node:
        for o in n.output:
            first = values[o][0] if o in values else None
            if not isinstance(first, np.ndarray) or first.size != 1:
                continue
            if found & set(n.input) or (first.dtype == np.bool_ and changing & set(n.input)):
                found.add(o)
    return found


def _evaluate(proto: onnx.ModelProto, names: list[str], feeds: Sequence[Feeds]) -> tuple[list[dict[str, Array]], bool]:
    """Values of `names` for each of several inputs; False where one behind the first did not run."""
    session = Session(m.submodel(proto, {}, names), optimize=False)
    runs = [session.run(feeds[0])]
    for f in feeds[1:]:
        try:
            runs.append(session.run(f))
        except RunError:
            # The model does not in fact accept another size there. Nothing is known of what would change.
            return runs, False
    return runs, True


def _replace_by_constants(proto: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    outputs = {o.name for o in proto.graph.output}
    kept: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        if n.output and all(o in values or not o for o in n.output) and not outputs & set(n.output):
            proto.graph.initializer.extend(onnx.numpy_helper.from_array(values[o], o) for o in n.output if o)
        else:
            kept.append(n)
    copies = [_copy_node(n) for n in kept]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _fold_reshape_targets(
    proto: onnx.ModelProto,
    known: Mapping[str, tuple[int | None, ...]],
    runs: list[dict[str, Array]],
    feeds: Sequence[Feeds],
) -> None:
    """A target with changing entries becomes a constant: 0 where the entry copies the input's, -1 for one other."""
    targets = [n for n in proto.graph.node if n.op_type == "Reshape" and n.input[1] in known]
    targets = [n for n in targets if not m.int_attribute(n, "allowzero", 0)]
    if not targets or not runs:
        return
    shape_of = {n.input[0]: f"{n.input[0]}__shape" for n in targets}
    probe = _copy(proto)
    probe.graph.node.extend(helper.make_node("Shape", [k], [v]) for k, v in shape_of.items())
    shapes, _ = _evaluate(probe, list(shape_of.values()), feeds)
    for n in targets:
        values = known[n.input[1]]
        measured = [s[shape_of[n.input[0]]] for s in shapes]
        entries: list[int] = []
        for i, v in enumerate(values):
            if v is not None:
                entries.append(v)
            elif i < len(measured[0]) and all(r[n.input[1]][i] == s[i] for r, s in zip(runs, measured, strict=True)):
                entries.append(0)
            else:
                entries.append(-1)
        copies = [i for i, e in enumerate(entries) if e == 0]
        if entries.count(-1) == 0 and copies:
            entries[copies[0]] = -1 if len(copies) == 1 else 0
        if entries.count(-1) <= 1:
            name = f"{n.output[0]}__target"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(entries, np.int64), name))
            n.input[1] = name


def _bake_shapes(proto: onnx.ModelProto, known: dict[str, tuple[int | None, ...]]) -> None:
    """Each remaining Shape reads the original size of every fixed axis: Where(fixed, original sizes, Shape(x))."""
    nodes: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        values = known.get(n.output[0]) if n.op_type == "Shape" else None
        if values is None or all(v is None for v in values):
            nodes.append(_copy_node(n))
            continue
        out = n.output[0]
        raw = _copy_node(n)
        raw.output[0] = f"{out}__runtime"
        fixed = np.array([v is not None for v in values])
        sizes = np.array([v or 0 for v in values], np.int64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(fixed, f"{out}__fixed"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(sizes, f"{out}__sizes"))
        # Named for the tensor: in a model that was pruned before, the Shape's own name is taken.
        where = helper.make_node(
            "Where", [f"{out}__fixed", f"{out}__sizes", raw.output[0]], [out], name=f"{out}__original_sizes"
        )
        known[raw.output[0]] = values
        nodes += [raw, where]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _clone_shared_vectors(proto: onnx.ModelProto) -> dict[str, str]:
    """Give every use its own copy of a weight with at most one axis above 1: sharing those is an exporter's economy."""
    small = {t.name: t for t in proto.graph.initializer if sum(d > 1 for d in t.dims) <= 1}
    seen: set[str] = set()
    clones: dict[str, str] = {}
    pinned = _returned(proto)
    for n in bodies.every_node(proto.graph):
        for i, name in enumerate(n.input):
            if name not in small or name in pinned:
                continue
            if name in seen:
                clone = onnx.TensorProto()
                clone.CopyFrom(small[name])
                clone.name = f"{name}__use{bodies.main_output(n)}_{i}"
                proto.graph.initializer.append(clone)
                n.input[i] = clone.name
                clones[clone.name] = name
            seen.add(name)
    return clones


def _give_biases(proto: onnx.ModelProto) -> frozenset[str]:
    """A zero bias for every layer that has room for one and none yet: the refit may need it.

    `rewrite.drop_zero_biases` takes back those that stay zero.
    """
    weights = {t.name: t for t in proto.graph.initializer}
    added: list[str] = []
    for n in proto.graph.node:
        if n.op_type not in ("Conv", "ConvTranspose", "Gemm") or n.domain not in ("", "ai.onnx"):
            continue
        w = weights.get(n.input[1])
        if w is None or (len(n.input) > 2 and n.input[2]):
            continue
        if n.op_type == "ConvTranspose":
            width = w.dims[1] * m.int_attribute(n, "group", 1)
        else:
            width = w.dims[1] if n.op_type == "Gemm" and not m.int_attribute(n, "transB", 0) else w.dims[0]
        name = f"{n.output[0]}__bias"
        zeros = np.zeros(width, helper.tensor_dtype_to_np_dtype(w.data_type))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(zeros, name))
        del n.input[2:]
        n.input.append(name)
        added.append(name)
    return frozenset(added)


def _all_shapes(
    proto: onnx.ModelProto, binding: Mapping[str, Shape], example: Feeds
) -> tuple[dict[str, Shape], dict[str, int]]:
    shapes, types = m.inferred_shapes(m.bind_inputs(proto, binding))
    missing = [o for n in proto.graph.node for o in n.output if o and o not in shapes]
    if missing:
        measuring.add_shapes(Session(m.submodel(proto, {}, missing), optimize=False).run(example), shapes, types)
    measuring.add_shapes_of_bodies(proto, example, shapes, types)
    return shapes, types


def _with_gathers(part: onnx.ModelProto, shapes: Mapping[str, Shape], replaced: Counter[str]) -> onnx.ModelProto:
    """`part` with its shuffles replaced; counts them."""
    replaced["shuffles"] += _shuffles_to_gathers(part, shapes)
    return part


def _shuffles_to_gathers(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> int:
    """Replace each Reshape → Transpose → Reshape that permutes a single axis by a Gather; the number replaced."""
    uses = Counter(i for n in proto.graph.node for i in (*n.input, *bodies.captured_names(n)))
    uses.update(o.name for o in proto.graph.output)
    producer = {o: n for n in proto.graph.node for o in n.output}
    done = 0
    for last in proto.graph.node:
        chain = _chain_back(last, producer, uses)
        if chain is None:
            continue
        first, middle = chain
        found = _axis_permutation(
            shapes.get(first.input[0]), shapes.get(first.output[0]), _permutation(middle), shapes.get(last.output[0])
        )
        if found is None:
            continue
        axis, order = found
        name = f"{last.output[0]}__order"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(order.astype(np.int64), name))
        gather = helper.make_node("Gather", [first.input[0], name], [last.output[0]], name=last.name, axis=axis)
        last.CopyFrom(gather)
        done += 1
    return done


def _permutation(node: onnx.NodeProto) -> tuple[int, ...]:
    return next((tuple(int(i) for i in a.ints) for a in node.attribute if a.name == "perm"), ())


def _chain_back(
    last: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto], uses: Mapping[str, int]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The Reshape and the Transpose before the Reshape `last`, where nothing else reads what is between them."""
    if last.op_type != "Reshape":
        return None
    middle = producer.get(last.input[0])
    if middle is None or middle.op_type != "Transpose" or uses[middle.output[0]] != 1:
        return None
    first = producer.get(middle.input[0])
    if first is None or first.op_type != "Reshape" or uses[first.output[0]] != 1:
        return None
    return first, middle


def _axis_permutation(
    before: Shape | None, split: Shape | None, perm: tuple[int, ...], after: Shape | None
) -> tuple[int, Array] | None:
    """(axis, order) such that the chain equals take(x, order, axis); None where it does anything else."""
    if before is None or split is None or before != after or len(perm) != len(split) or len(split) <= len(before):
        return None
    extra = len(split) - len(before)
    for axis in range(len(before)):
        inner = split[axis : axis + extra + 1]
        if split[:axis] != before[:axis] or split[axis + extra + 1 :] != before[axis + 1 :]:
            continue
        if int(np.prod(inner)) != before[axis]:
            continue
        moved = perm[axis : axis + extra + 1]
        outside = (*perm[:axis], *perm[axis + extra + 1 :])
        if outside != (*range(axis), *range(axis + extra + 1, len(split))):
            continue
        order = np.arange(before[axis]).reshape(inner).transpose([p - axis for p in moved]).ravel()
        return axis, order
    return None
