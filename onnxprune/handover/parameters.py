"""The slim model's weights as parameters of the network: named, in the parameters' axes, normalisations taken out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from onnxprune.graph.protobuf import int_attribute
from onnxprune.handover.batch_norm import Folded, folded_into, scales_between, unfolded
from onnxprune.handover.kept import Heads, Positions, kept_shape, positions
from onnxprune.handover.layout import Axes, in_layout
from onnxprune.handover.naming import Named, Names, layout_of
from onnxprune.handover.readings import Reading
from onnxprune.handover.scopes import generated, module_of, named
from onnxprune.handover.state_dict import StateDict
from onnxprune.numerics.arrays import Array, Mask

# Which axis of a layer's weight makes its outputs, as PyTorch stores it, where there are no groups.
_OUTPUTS = {"Conv": 0, "Gemm": 0, "ConvTranspose": 1}
_NO_NAME = "nothing tells which parameter it is"
_FOLDED = "a BatchNormalization is folded into it"
_OTHER_VALUES = "the state dict has no parameter with its values"


@dataclass(eq=False)
class Parameters:
    """What a network gets back.

    values: by parameter. kept: by parameter and axis which positions stay; axes of which all do are left out. shapes:
    of the parameters that lose positions, before. groups: by module, of convolutions with several. heads: by parameter.
    tied: names of what another parameter is too → that. added: parameters that the network's own module has not.
    unfolded: normalisation → the layer that it had been folded into. gone: parameters of which nothing stays. missing:
    weights that could not be named → why. unread: parameters of the state dict that the model does not have.
    """

    values: dict[str, Array] = field(default_factory=dict)
    kept: dict[str, dict[int, Positions]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    heads: dict[str, Heads] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    unfolded: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def parameters(
    every: Sequence[Reading], state: StateDict | None, heads: Mapping[str, Sequence[tuple[int, int, int, int]]]
) -> Parameters:
    """The parameters that these weights are. state: the network's own. heads: as `kept.heads_of` gives them."""
    return _Handing(every, state, heads).done()


class _Handing:
    """One network being handed back, node by node."""

    def __init__(
        self,
        every: Sequence[Reading],
        state: StateDict | None,
        heads: Mapping[str, Sequence[tuple[int, int, int, int]]],
    ) -> None:
        self._every, self._state, self._heads = every, state, heads
        self._names = Names(every, state)
        self._found = Parameters()
        self._roots: dict[str, str] = {}

    def done(self) -> Parameters:
        for readings in _by_node(self._every):
            folded = self._unfold(readings)
            for r in readings:
                if not folded or r.slot not in (1, 2):
                    self._take(r, readings)
        found = self._found
        if self._state is not None:
            self._give_zero_biases(self._state)
            known = {*found.values, *found.tied, *found.gone}
            known |= {n for n, kept in self._state.shared.items() if kept in known}
            found.unread = sorted(n for n in self._state.values if n not in known and not _counts_batches(n))
        return found

    def _give_zero_biases(self, state: StateDict) -> None:
        """The biases of zeros that an exporter left out, as wide as what makes the outputs they are added to."""
        for name, values in state.values.items():
            weight = named(module_of(name), "weight")
            fits = weight in self._found.values and values.ndim == 1 and not values.any()
            if not name.endswith("bias") or name in self._found.values or not fits:
                continue
            width = self._found.values[weight].shape[0]
            kept = self._found.kept.get(weight, {}).get(0)
            if len(values) == self._found.shapes.get(weight, (len(values),))[0]:
                self._found.values[name] = values[:width]
                if kept is not None:
                    self._found.kept[name], self._found.shapes[name] = {0: kept}, values.shape

    def _take(self, r: Reading, node: Sequence[Reading]) -> None:
        if r.before is None and r.after is None and not (r.gone or r.masks):
            return  # a bias that only the refit could have used
        if r.before is None and r.slot == 2:
            self._add_bias(r, node)
            return
        who = self._names.of(r, self._found.values)
        matters = r.changed or bool(r.masks)
        if not matters and (who is None or (self._state is None and not self._names.certain(r))):
            return  # a constant of the computation, most likely
        if who is None:
            self._found.missing[r.place] = self._why_not(r)
        elif self._state is None and _is_folded(r, node):
            self._found.missing[r.place] = _FOLDED
        elif r.gone:
            self._found.gone.append(who.name)
        else:
            self._store(r, who)

    def _why_not(self, r: Reading) -> str:
        if self._state is None:
            return _NO_NAME
        return _OTHER_VALUES if self._names.candidates(r) else f"{_NO_NAME}, and {_OTHER_VALUES}"

    def _store(self, r: Reading, who: Named) -> None:
        values = None if r.after is None else in_layout(r.after, who.axes)
        before = in_layout(r.original, who.axes)
        if values is not None and who.rows:
            self._store_rows(r, who, values)
            return
        if values is None or before is None:
            self._found.missing[r.place] = "the slim model does not have it"
            return
        name, found = who.name, self._found
        holder = self._holder(r, name)
        if name in found.values:
            if not np.array_equal(found.values[name], values):
                found.missing[r.place] = f"{name} has other values where another node reads it"
            return
        if holder is not None and np.array_equal(found.values[holder], values):
            found.tied[name] = holder
        else:
            found.values[name] = values
        self._describe(name, r, who.axes, before.shape)
        if r.node.op_type in ("Conv", "ConvTranspose") and r.slot == 1:
            self._count_groups(module_of(name), r)

    def _store_rows(self, r: Reading, who: Named, values: Array) -> None:
        """Some rows of a table; the others, which the model does not have, stay as they were, as narrow as these."""
        table = self._names.values_of(who.name)
        if table is None:
            return
        kept = positions(r.masks, who.axes)
        columns = kept.get(1, list(range(table.shape[1])))
        whole = self._found.values.get(who.name, table[:, np.array(columns, int)]).copy()
        whole[list(who.rows)] = values
        self._found.values[who.name] = whole
        if 1 in kept:
            self._found.kept[who.name], self._found.shapes[who.name] = {1: kept[1]}, table.shape

    def _holder(self, r: Reading, name: str) -> str | None:
        """Another parameter that is the same tensor, and has been stored."""
        if self._state is not None:
            shared = self._state.shared
            one = shared.get(name, name)
            return next((n for n in self._found.values if n != name and shared.get(n, n) == one), None)
        if r.before is None or r.before.values.ndim < 2:  # exporters store equal vectors once
            return None
        holder = self._roots.setdefault(r.before.root, name)
        return holder if holder != name and holder in self._found.values else None

    def _describe(self, name: str, r: Reading, axes: Axes, shape: tuple[int, ...]) -> None:
        kept = positions(r.masks, axes)
        if kept:
            self._found.kept[name], self._found.shapes[name] = kept, tuple(shape)
        for axis, before, after, size in self._heads.get(r.tensor, ()):
            if axis in axes:
                self._found.heads.setdefault(name, Heads(axes.index(axis), before, after, size))

    def _count_groups(self, module: str, r: Reading) -> None:
        if r.groups > 1 or int_attribute(r.node, "group", 1) > 1:
            self._found.groups[module] = r.groups

    def _add_bias(self, r: Reading, node: Sequence[Reading]) -> None:
        """The bias that the refit gave a layer without one."""
        if r.after is None or not r.after.any():
            return
        weight = next((x for x in node if x.slot == 1), None)
        who = None if weight is None else self._names.of(weight, ())
        if who is None:
            self._found.missing[r.place] = _NO_NAME
            return
        name = named(module_of(who.name), "bias")
        self._found.values[name] = r.after
        self._found.added.append(name)
        self._describe(name, r, (0,), r.shape)

    def _unfold(self, node: Sequence[Reading]) -> bool:
        """Whether the node is a layer with a normalisation in it, which is taken out then."""
        weight, bias = (next((x for x in node if x.slot == s), None) for s in (1, 2))
        outputs = None if weight is None else _OUTPUTS.get(weight.node.op_type)
        if self._state is None or outputs is None or weight is None or bias is None:
            return False
        if weight.before is None or weight.after is None:
            return False
        if outputs == 1 and int_attribute(weight.node, "group", 1) > 1:
            return False
        if self._names.of(weight, self._found.values) is not None:
            return False
        told = ((w, self._folded(w, weight, bias, outputs)) for w in self._layers(weight))
        first = next(((w, f) for w, f in told if f is not None), None)
        if first is None:
            return False
        who, (found, trained_bias) = first
        mask = next((m.ravel() for m in bias.masks), np.ones(bias.shape, bool))
        values = in_layout(weight.after, who.axes)
        before = in_layout(weight.before.values, who.axes)
        if values is None or before is None or mask.shape != bias.shape:
            return False
        self._put(who, weight, bias, found, trained_bias, values, before.shape, outputs, mask)
        return True

    def _layers(self, weight: Reading) -> Iterator[Named]:
        """What the weight may be: by name, and else every parameter of its shape."""
        yield from self._names.spellings(weight)
        if weight.before is not None and self._state is not None:
            axes = layout_of(weight)
            shape = None if (turned := in_layout(weight.before.values, axes)) is None else turned.shape
            yield from (Named(n, axes) for n, v in self._state.values.items() if v.shape == shape)

    def _folded(self, who: Named, weight: Reading, bias: Reading, outputs: int) -> tuple[Folded, Array | float] | None:
        trained, state = self._names.values_of(who.name), self._state
        if weight.before is None or trained is None or state is None:
            return None
        values = in_layout(weight.before.values, who.axes)
        if values is None or values.shape != trained.shape:
            return None
        scale = scales_between(values, trained, outputs)
        if scale is None:
            return None
        own = self._names.values_of(named(module_of(who.name), "bias"))
        shift = 0.0 if own is None else np.asarray(own, np.float64)
        found = folded_into(module_of(who.name), scale, bias.normal, shift, state.values)
        return None if found is None else (found, shift)

    def _put(
        self,
        who: Named,
        weight: Reading,
        bias: Reading,
        found: Folded,
        trained_bias: Array | float,
        values: Array,
        before: tuple[int, ...],
        outputs: int,
        mask: Mask,
    ) -> None:
        state, layer = self._state, module_of(who.name)
        if state is None:
            return
        own = named(layer, "bias")
        has_bias = not isinstance(trained_bias, float)
        if weight.gone:
            ends = ("weight", "bias", "running_mean", "running_var")
            names = [who.name, *([own] if has_bias else []), *(named(found.module, e) for e in ends)]
            self._found.gone += [n for n in names if n in state.values]
            return
        staying = trained_bias[mask] if isinstance(trained_bias, np.ndarray) else trained_bias
        first = np.moveaxis(values, outputs, 0)
        # Where all shifts are zero, which an untrained network has, the exporter gives the layer no bias.
        fitted = np.zeros(len(first), values.dtype) if bias.after is None else bias.after
        apart = unfolded(first, fitted, staying, found, state.values, mask)
        self._found.values[who.name] = np.moveaxis(apart.weight, 0, outputs)
        self._describe(who.name, weight, who.axes, before)
        self._found.unfolded[found.module] = layer
        given = {named(found.module, k): v for k, v in apart.normalisation.items()}
        if isinstance(staying, np.ndarray):
            given[own] = staying.astype(values.dtype)
        for name, v in given.items():
            self._found.values[name] = v
            self._describe(name, bias, (0,), bias.shape)
        self._count_groups(layer, weight)


def _by_node(every: Sequence[Reading]) -> Iterator[list[Reading]]:
    for _, readings in groupby(every, key=lambda r: r.node.output[0]):
        yield list(readings)


def _is_folded(r: Reading, node: Sequence[Reading]) -> bool:
    """Whether the exporter seems to have folded a normalisation into the layer that a weight belongs to.

    PyTorch's exporters give a convolution's weight another name only then, or its bias one made of the weight's.
    """
    if r.node.op_type not in ("Conv", "ConvTranspose") or r.slot not in (1, 2):
        return False
    if not r.node.name.startswith("/") and not r.node.metadata_props:
        return False  # another exporter's
    roots = {x.slot: x.before.root for x in node if x.before is not None}
    return generated(roots.get(1, "")) or roots.get(2) == f"{roots.get(1)}_bias"


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def misfits(every: Sequence[Reading]) -> list[str]:
    """The weights of the slim model that have another shape than the plan says."""
    wrong = [(r, r.after.shape) for r in every if r.after is not None and not r.fits]
    return [f"{r.tensor} {shape}, not {kept_shape(r.shape, r.masks)}" for r, shape in wrong]
