"""Batches that come one after the other: from an iterable, a generator function, a loader or a reader.

Whatever gives them, a batch is a dict by input name, one array, or a tuple in the order of the inputs; labels may stand
behind the inputs in a tuple. A batch may hold any number of samples, or a single one without the axis that counts them.
Each batch is read once, and goes to disk where all of them are more than memory should hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from onnxprune.data import parts
from onnxprune.data.accepted import BatchReader, Indexed, NumpyIterable, Wanted
from onnxprune.data.arrangement import Arrangement
from onnxprune.data.given import Given, Part
from onnxprune.data.inputs import InputSpec
from onnxprune.data.spool import FOLDER_BYTES, Spool, joined
from onnxprune.errors import CalibrationError, OnnxPruneError
from onnxprune.numerics.arrays import Array
from onnxprune.regular_files import shown

# The key of labels that stand behind the inputs in a tuple.
LABEL = "label"
# What stands for a batch in memory besides its values is small, but not nothing.
_MOST_BATCHES = 1_000_000


def by_function(make: Callable[[], object], specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
    """The batches that a function gives. Raises CalibrationError."""
    name = getattr(make, "__name__", type(make).__name__)
    try:
        batches = make()
    except Exception as e:
        raise CalibrationError(f"the data: {name}() raised {_said(e)}") from e
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        kind = "nothing" if batches is None else f"a {type(batches).__name__}"
        raise CalibrationError(f"the data: {name}() gave {kind}; it has to yield batches, each a dict by input name")
    return of(batches, f"batches from {name}()", specs, wanted)


def by_reader(reader: BatchReader, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
    """The batches of a CalibrationDataReader, up to the None in the end. Raises CalibrationError."""
    return of(iter(reader.get_next, None), f"batches from a {type(reader).__name__}", specs, wanted)


def by_numpy_iterator(data: NumpyIterable, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
    """The batches of a tf.data set. Raises CalibrationError."""
    return of(data.as_numpy_iterator(), f"batches from a {type(data).__name__}", specs, wanted)


def by_index(data: Indexed, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
    """The samples of a data set that gives them by their index, as those of torch do. Raises CalibrationError."""
    chosen = (data[int(i)] for i in wanted.chosen(len(data)))
    return of(chosen, f"samples from a {type(data).__name__}", specs, wanted)


def by_iterable(data: Iterable[object], specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
    """The batches of an iterable, such as a list or a DataLoader of torch. Raises CalibrationError."""
    return of(data, f"batches from a {type(data).__name__}", specs, wanted)


def of(batches: Iterable[object], origin: str, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
    """What batches hold for a model with these inputs. origin: what to call them. Raises CalibrationError."""
    notes: list[str] = []
    spool, extras = Spool("the data"), list[dict[str, Array]]()
    for part, count in _checked(batches, specs, wanted, notes):
        for name, a in part.inputs.items():
            spool.add(name, a[:])
        extras.append({k: np.array(v) if k != LABEL else _by_sample(v, count) for k, v in part.extras.items()})
        _check_extras(extras)
    if not extras:
        raise CalibrationError(f"the data is empty: there are no {origin}; at least one sample is needed")
    pieces = {s.name: spool.pieces(s.name) for s in specs}
    labelled = _with_labels(extras)
    made = tuple(
        Part({k: own[i] for k, own in pieces.items()}, labelled[i], f"batch {i + 1} of the data")
        for i in range(len(extras))
    )
    offered = frozenset([LABEL] if LABEL in labelled[0] else [])
    return Given(specs, _regrouped(made, specs), origin, tuple(dict.fromkeys(notes)), offered=offered)


def _checked(
    batches: Iterable[object], specs: tuple[InputSpec, ...], wanted: Wanted, notes: list[str]
) -> Iterator[tuple[Part, int]]:
    """Every batch, checked, with its number of samples, until there are as many as are wanted."""
    declared, count = Arrangement.declared(specs), 0
    arrangement = Arrangement({**declared.axes, **{s.name: 0 for s in specs if _fixed(s)}})
    most = None if wanted.most is None else max(wanted.most, *(n for s in specs if (n := _fixed(s))), 1)
    for number, batch in enumerate(_guarded(batches), 1):
        if number > _MOST_BATCHES:
            raise CalibrationError(
                f"the data has more than {_MOST_BATCHES:,} batches; put more samples into each, or say how many "
                "samples to take (--samples)"
            )
        where, said = f"batch {number} of the data", list[str]()
        arrays = {parts.key(k): parts.as_array(k, v) for k, v in _keyed(batch, specs, where).items()}
        part = parts.checked(_with_samples_axis(arrays, specs), specs, where, said)
        notes += [n.replace(where, "the data", 1) for n in said]
        own = arrangement.samples_in({k: a.shape for k, a in part.inputs.items()})
        yield part, own
        count += own
        wanted.told(count if most is None else min(count, most), most or 0)
        if most is not None and count >= most:
            return


def _guarded(batches: Iterable[object]) -> Iterator[object]:
    """The batches; an error of whoever makes them is told in one line, and stays the cause."""
    given = 0
    try:
        for batch in batches:
            yield batch
            given += 1
    except (OnnxPruneError, GeneratorExit):
        raise
    except Exception as e:
        raise CalibrationError(f"the data: reading batch {given + 1} raised {_said(e)}") from e


def _said(e: Exception) -> str:
    text = " ".join(str(e).split())[:200]
    return f"{type(e).__name__}: {text}" if text else type(e).__name__


def _keyed(batch: object, specs: tuple[InputSpec, ...], where: str) -> Mapping[object, object]:
    """The arrays of a batch by input name, and labels behind them by theirs."""
    if isinstance(batch, Mapping):
        return batch
    names = [s.name for s in specs]
    if not isinstance(batch, (tuple, list)) or not batch or not _is_several(batch):
        if len(names) == 1:
            return {names[0]: batch}
        raise CalibrationError(
            f"{where} is one {type(batch).__name__}, and the model has the inputs {', '.join(map(repr, names))}: give "
            "a dict by name, or a tuple in this order"
        )
    first = batch[0]
    label: dict[object, object] = dict(zip([LABEL], batch[1:], strict=False))
    if isinstance(first, Mapping) and len(batch) <= 2:
        return {**first, **label}
    if isinstance(first, (tuple, list)) and len(first) == len(names) and len(batch) <= 2:
        return {**dict(zip(names, first, strict=True)), **label}
    if len(names) <= len(batch) <= len(names) + 1:
        return dict(zip((*names, LABEL), batch, strict=False))
    raise CalibrationError(
        f"{where} is a {type(batch).__name__} of {len(batch)}, and the model has {len(names)} input"
        f"{'s' * (len(names) != 1)} ({', '.join(map(repr, names))}): give a dict by name, or a tuple in this order"
    )


def _is_several(batch: Sequence[object]) -> bool:
    """Whether a sequence is several arrays, rather than the rows of one."""
    first = batch[0]
    if isinstance(first, (tuple, list)):
        return bool(first) and hasattr(first[0], "shape")
    return isinstance(first, Mapping) or hasattr(first, "shape")


def _fixed(s: InputSpec) -> int:
    """The samples that every run takes as the input is declared; 0 where it takes one, or any number."""
    return 0 if s.whole or not s.dims or s.dims[0] in (None, 1) else s.dims[0] or 0


def _with_samples_axis(arrays: Mapping[str, Array], specs: tuple[InputSpec, ...]) -> dict[str, Array]:
    """The arrays; single samples of a model that takes several in every run get an axis for them."""
    inner = {s.name: s.dims[1:] for s in specs if _fixed(s)}
    return {
        k: a[None]
        if k in inner
        and a.ndim == len(inner[k])
        and all(d in (None, n) for d, n in zip(inner[k], a.shape, strict=True))
        else a
        for k, a in arrays.items()
    }


def _regrouped(own: tuple[Part, ...], specs: tuple[InputSpec, ...]) -> tuple[Part, ...]:
    """The batches, as one where they do not have the size of the runs that the model takes."""
    fixed = [s for s in specs if _fixed(s)]
    apart = any(p.inputs[s.name].shape[:1] != (s.dims[0],) for s in fixed for p in own)
    fits = all(len({p.inputs[s.name].shape[1:] for p in own}) == 1 and own[0].inputs[s.name].ndim for s in specs)
    if not apart or not fits or len(own) == 1:
        return own
    inputs = {s.name: joined([p.inputs[s.name] for p in own], "the data") for s in specs}
    extras = {k: np.concatenate([np.atleast_1d(p.extras[k]) for p in own]) for k in _shared([p.extras for p in own])}
    return (Part(inputs, extras, "the data"),)


def _with_labels(extras: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """The extra keys of every batch; labels that are no numbers of one shape, as boxes are, are left out."""
    kept = _shared(extras)
    return [{k: v for k, v in e.items() if k != LABEL or LABEL in kept} for e in extras]


def _by_sample(labels: Array, count: int) -> Array:
    """Labels with an axis that counts so many samples, copied; an object, which is no label, where they have none."""
    own = np.array(labels)
    if count == 1 and own.shape[:1] != (1,):
        own = own[None]
    return own if own.shape[:1] == (count,) else np.array(None)


def _shared(extras: Sequence[Mapping[str, Array]]) -> list[str]:
    """The keys that all batches have, with numbers of one kind and the same sizes but for the first."""
    shapes = {
        k: {(np.atleast_1d(e[k]).shape[1:], e[k].dtype.kind) if k in e else None for e in extras} for k in extras[0]
    }
    return [k for k, own in shapes.items() if len(own) == 1 and None not in own and extras[0][k].dtype.kind in "biufU"]


def _check_extras(extras: Sequence[Mapping[str, Array]]) -> None:
    """Raises CalibrationError where keys that the model does not read take more memory than they may."""
    if len(extras) % 64:
        return
    held = sum(v.nbytes for e in extras for v in e.values())
    if held > FOLDER_BYTES:
        keys = ", ".join(map(repr, extras[0]))
        raise CalibrationError(
            f"the data holds {shown(held)} under keys that the model does not read ({keys}); leave them out"
        )
