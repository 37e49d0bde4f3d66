"""At which sizes MACs are counted: those of the data, or of random inputs, where the model leaves them open."""

from __future__ import annotations

from onnxprune.graph.protobuf import declared_sizes
from onnxprune.options import first_of
from onnxprune.stages.load import Loaded

_SHOWN = 4


def open_sizes(loaded: Loaded) -> dict[str, int]:
    """What each size that the inputs leave open is, by its symbol, or by input and axis. Numbers of samples are none:
    MACs are those of one."""
    axes, binding = loaded.fit.arrangement.axes, loaded.normalised.binding
    declared = {v.name: declared_sizes(v) for v in loaded.original.graph.input if v.name in binding}
    of_samples = {
        sizes[axis] for name, sizes in declared.items() if (axis := axes.get(name)) is not None and axis < len(sizes)
    }
    found: dict[str, int] = {}
    for name, sizes in declared.items():
        for axis, (size, real) in enumerate(zip(sizes, binding[name], strict=False)):
            named = isinstance(size, str)
            if isinstance(size, int) or axis == axes.get(name) or (named and size in of_samples):
                continue
            found.setdefault(str(size) if named else f"{name}[{axis}]", real)
    return found


def counted_at(loaded: Loaded) -> tuple[str, ...]:
    """For reports: the sizes of one sample that its MACs are counted at; nothing where the model fixes them."""
    sizes = [f"{name} = {size}" for name, size in open_sizes(loaded).items()]
    if not sizes:
        return ()
    where = "as random inputs have it; data (--calib) say what is usual" if loaded.fit.synthetic else "as in the data"
    return (f"MACs are those of one sample at {first_of(sizes, _SHOWN)}, {where}",)
