"""Rotary embeddings: pairs of numbers of every head, turned by an angle that grows with the position.

    (a, b) → (a cos φ - b sin φ, a sin φ + b cos φ)

The numbers of a pair are half a head apart, or next to each other.
"""

from __future__ import annotations

from onnxprune.normalise.unfused.site import Refusal, Rows, Site

_INTERLEAVED_OPSET = 13


def _rotary_embedding(site: Site) -> Refusal | None:
    """Of (batch, positions, heads · size) or (batch, heads, positions, size); the rest of a head stays as it is."""
    x, places, cosines, sines = (site.input(k) for k in range(4))
    if site.opset < _INTERLEAVED_OPSET:
        return Refusal(f"opset {site.opset} takes the axes of what is cut in another way")
    if site.attribute("is_packed_batching", 0):
        return Refusal("it packs samples of different lengths")
    if float(site.attribute("scale", 1.0)) != 1.0:
        return Refusal("it scales what it turns")
    shape, table = site.shape_of(x), site.shape_of(cosines)
    if len(shape) not in (3, 4) or len(table) != 2:
        return Refusal("it reads tensors of other ranks than 3 and 4")
    part, heads = int(site.attribute("rotary_embedding_dim", 0)), int(site.attribute("num_heads", 0))
    turned = 2 * table[1]
    if part and (not heads or part != turned):
        return Refusal("its attributes do not say how long a head is")
    if len(shape) == 3:
        size = shape[-1] // heads if part else turned
        if size == 0 or shape[-1] % size:
            return Refusal("its heads do not fill what it reads")
        heads = shape[-1] // size
        split = site.op("Reshape", x, site.integers([0, 0, heads, size], "heads"))
    else:
        split, size = x, shape[-1]
    if turned > size:
        return Refusal("it turns more than a head")
    if site.rank_of(places) == 1:  # one offset for all samples
        length = site.op("Gather", site.op("Shape", x), site.integers([1 if len(shape) == 3 else 2], "axis"), axis=0)
        bounds = [site.op("Squeeze", v, site.integers([0], "axes")) for v in (places, length)]
        steps = site.op("Range", site.number(0, "zero"), bounds[1], site.number(1, "one"))
        places = site.unsqueezed(site.op("Add", steps, bounds[0]), [0])
    beside = [2] if len(shape) == 3 else [1]
    cosine, sine = (site.unsqueezed(site.op("Gather", t, places, axis=0), beside) for t in (cosines, sines))
    head, rest = split, ""
    if turned < size:
        head = _cut(site, split, 0, turned)
        rest = _cut(site, split, turned, size)
    interleaved = bool(site.attribute("interleaved", 0))
    if interleaved:
        a, b = (_cut(site, head, k, turned, step=2) for k in (0, 1))
    else:
        a, b = _cut(site, head, 0, turned // 2), _cut(site, head, turned // 2, turned)
    real = site.op("Sub", site.op("Mul", a, cosine), site.op("Mul", b, sine))
    other = site.op("Add", site.op("Mul", a, sine), site.op("Mul", b, cosine))
    last = site.output()
    if interleaved:
        pairs = [site.unsqueezed(v, [4]) for v in (real, other)]
        joined = site.op("Reshape", site.op("Concat", *pairs, axis=4), site.integers([0, 0, 0, turned], "turned"))
    else:
        joined = site.op("Concat", real, other, axis=-1)
    whole = site.op("Concat", joined, rest, axis=-1) if rest else joined
    if len(shape) == 3:
        site.op("Reshape", whole, site.integers([0, 0, shape[-1]], "together"), to=last)
    else:
        site.op("Identity", whole, to=last)
    return None


def _cut(site: Site, name: str, start: int, end: int, *, step: int = 1) -> str:
    """A part of the last axis."""
    bounds = [site.integers([v], what) for v, what in ((start, "from"), (end, "until"), (-1, "axis"), (step, "step"))]
    return site.op("Slice", name, *bounds)


TABLE: Rows = {"com.microsoft.RotaryEmbedding": _rotary_embedding}
