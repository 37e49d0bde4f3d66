"""Tokens that a user lists: ids in a .npy or .npz, or texts whose tokens they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from onnxprune.data import array_files, text_files
from onnxprune.data.texts import IDS
from onnxprune.data.tokenizer import Text, Tokenizer
from onnxprune.errors import CalibrationError, UsageError

_ARRAYS = (".npy", ".npz")
# No text is cut where its tokens are listed.
_LONGEST = 1 << 30
_AT_ONCE = 256
_MOST_ID = 2**31 - 1


def tokens_of(
    path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None, text: str = "text"
) -> tuple[int, ...]:
    """The ids that a file lists, each once, first the one that stands in for those that are not listed: the tokenizer's
    unknown token, else its padding, and without a tokenizer the smallest; the others ascend.

    path: arrays of integers, of which all values count (where some of an archive are called like inputs of token ids,
    of these alone), or texts as `text_files` reads them. tokenizer: a tokenizer.json, whose special tokens are listed
    too; texts need it. text: the key or column of the text, two with a comma between them for pairs.
    Raises CalibrationError, and UsageError for texts without a tokenizer.
    """
    file = Path(path)
    own = None if tokenizer is None else Tokenizer(tokenizer, _LONGEST)
    if file.suffix in _ARRAYS:
        ids = _stored(file)
    elif own is None:
        raise UsageError(
            f"{file} lists tokens as texts, which need the model's tokenizer.json: give it with --tokenizer"
        )
    else:
        ids = _of_texts(file, own, text.split(","))
    if own is not None:
        ids |= own.special
    if not ids:
        raise CalibrationError(f"{file} lists no token")
    first = min(ids) if own is None else own.pad if own.unknown is None else own.unknown
    return (first, *sorted(ids - {first}))


def _stored(path: Path) -> set[int]:
    read = array_files.read(path)
    found: set[int] = set()
    arrays = read if isinstance(read, dict) else {"": read}
    for array in {k: v for k, v in arrays.items() if k in IDS}.values() or arrays.values():
        if array.dtype.kind not in "iu":
            raise CalibrationError(f"{path} lists tokens as {array.dtype}; store their ids, as integers")
        for some in array_files.chunks(array):
            found.update(np.unique(some).tolist())
    if found and not 0 <= min(found) <= max(found) <= _MOST_ID:
        raise CalibrationError(f"{path} lists tokens from {min(found)} to {max(found)}; ids are from 0 on")
    return found


def _of_texts(path: Path, tokenizer: Tokenizer, keys: Sequence[str]) -> set[int]:
    lines, found = text_files.lines(path, keys), set[int]()
    while some := list(islice(lines, _AT_ONCE)):
        texts: list[Text] = [line.text for line in some]
        for e in tokenizer.encoded(texts):
            found.update(e.ids.tolist())
    if not found:
        raise CalibrationError(f"{path} holds no text")
    return found
