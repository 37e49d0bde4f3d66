"""Texts as data: tokenized as the model reads them, one sample for each line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from onnxprune.data import parts, text_files
from onnxprune.data.accepted import Wanted
from onnxprune.data.given import Given
from onnxprune.data.inputs import InputSpec
from onnxprune.data.spool import Spool, joined
from onnxprune.data.text_files import LABEL, Line
from onnxprune.data.tokenizer import Encoded, Tokenizer
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array, cast

LONGEST = "longest"
_MOST_LENGTH = 1 << 20
_AT_ONCE = 256
# What an input is, by the names that exporters give it.
IDS = ("input_ids", "input_word_ids", "ids", "tokens")
MASKS = ("attention_mask", "input_mask")
_NAMES = {
    "ids": IDS,
    "mask": MASKS,
    "types": ("token_type_ids", "segment_ids", "input_type_ids"),
    "positions": ("position_ids",),
}


@dataclass(frozen=True)
class Texts:
    """A file with a text in each line (`text_files`), and the tokenizer.json of the model.

    length: tokens of every sample, by cutting and filling up; "longest" fills up to the longest text; None for the
    length that the model fixes, else "longest". text: the key or column of the text, two with a comma between them for
    pairs. Raises UsageError for a length or a key that is none.
    """

    path: str | os.PathLike[str]
    tokenizer: str | os.PathLike[str]
    length: int | str | None = None
    text: str = "text"

    def __post_init__(self) -> None:
        fits = self.length in (None, LONGEST) or (type(self.length) is int and 0 < self.length <= _MOST_LENGTH)
        if not fits:
            raise UsageError(f"length is {self.length!r}; it is a number of tokens from 1 on, or {LONGEST!r}")
        if not 1 <= len(self._keys) <= 2 or not all(self._keys):
            raise UsageError(f"text is {self.text!r}; it is the key of the text, or two with a comma between them")

    @property
    def _keys(self) -> list[str]:
        return self.text.split(",")

    def given(self, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
        """The texts as tokens for a model with these inputs. Raises CalibrationError."""
        path = Path(self.path)
        roles = _roles(specs, path)
        length = self._length(roles, path)
        tokenizer = Tokenizer(self.tokenizer, length)
        chosen = self._chosen(path, wanted, max((s.dims[0] or 1 for s in specs if s.dims), default=1))
        encoded = [e for some in _some(chosen) for e in tokenizer.encoded([line.text for line in some])]
        length = length or max((len(e.ids) for e in encoded), default=0)
        if not length:
            raise CalibrationError(f"{path}: the texts have no tokens; is {self.tokenizer} that of the model?")
        spool = Spool(str(path))
        for some in _some(encoded):
            for name, a in _filled(some, length, roles, tokenizer).items():
                spool.add(name, a)
        arrays = {s.name: joined(spool.pieces(s.name), str(path)) for s in specs}
        labels = [line.label for line in chosen]
        extras = {} if None in labels else {LABEL: np.array(labels, np.int64)}
        part = parts.checked({**arrays, **extras}, specs, path, [])
        cut = sum(len(e.ids) == tokenizer.most for e in encoded)
        said = f"; {cut} of {len(encoded)} texts reach it" if cut and tokenizer.most else ""
        prepared = f"texts: {Path(self.tokenizer).name}, {length} tokens{said}, filled up with {tokenizer.pad}" + (
            " on the left" if tokenizer.left else ""
        )
        return Given(specs, (part,), str(path), (), prepared, frozenset(extras))

    def _length(self, roles: Mapping[str, tuple[str, InputSpec]], path: Path) -> int | None:
        """The tokens of every sample; None where the longest text decides."""
        fixed = {s.dims[-1] for _, s in roles.values() if s.dims} - {None}
        if len(fixed) > 1 or (isinstance(self.length, int) and fixed - {self.length}):
            raise CalibrationError(f"{path}: the model wants {', '.join(map(str, fixed))} tokens, not {self.length}")
        if fixed:
            return next(iter(fixed))
        return self.length if isinstance(self.length, int) else None

    def _chosen(self, path: Path, wanted: Wanted, least: int) -> list[Line]:
        """The lines to use; the file is gone through twice where only some are wanted."""
        if wanted.most is None:
            every = list(text_files.lines(path, self._keys))
        else:
            count = sum(1 for _ in text_files.lines(path, self._keys))
            own = Wanted(max(wanted.most, least), wanted.seed).chosen(count)
            kept = set(own.tolist())
            every = [x for i, x in enumerate(text_files.lines(path, self._keys)) if i in kept]
        if not every:
            raise CalibrationError(f"{path} holds no text")
        return every


def _some(items: Sequence[object]) -> Iterator[list]:  # type: ignore[type-arg]  # of whatever they are
    left = iter(items)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _roles(specs: tuple[InputSpec, ...], path: Path) -> dict[str, tuple[str, InputSpec]]:
    """Each input by name, with what it is. Raises CalibrationError for one that tokens do not fill."""
    known = {name: role for role, names in _NAMES.items() for name in names}
    found = {s.name: (known[s.name.partition(":")[0]], s) for s in specs if s.name.partition(":")[0] in known}
    integers = [s for s in specs if s.dtype.kind in "iu"]
    if not found and len(specs) == len(integers) == 1:
        found = {specs[0].name: ("ids", specs[0])}
    other = next((s for s in specs if s.name not in found or len(s.dims) not in (1, 2)), None)
    if other is not None or "ids" not in {role for role, _ in found.values()}:
        names = ", ".join(repr(s.name) for s in specs)
        raise CalibrationError(
            f"{path}: a tokenizer fills input_ids, attention_mask, token_type_ids and position_ids, and the model has "
            f"the inputs {names}; write a function that gives the samples (--data-script)"
        )
    return found


def _filled(
    some: Sequence[Encoded], length: int, roles: Mapping[str, tuple[str, InputSpec]], tokenizer: Tokenizer
) -> dict[str, Array]:
    """Arrays (some, length) by input, filled up at the end that the tokenizer says."""
    shape = (len(some), length)
    made = {"ids": np.full(shape, tokenizer.pad, np.int64)}
    made |= {role: np.zeros(shape, np.int64) for role in ("mask", "types")}
    for i, e in enumerate(some):
        place = slice(length - len(e.ids), None) if tokenizer.left else slice(None, len(e.ids))
        made["ids"][i, place], made["types"][i, place], made["mask"][i, place] = e.ids, e.types, 1
    made["positions"] = np.maximum(np.cumsum(made["mask"], axis=1) - 1, 0)
    return {name: cast(made[role], s.dtype) for name, (role, s) in roles.items()}
