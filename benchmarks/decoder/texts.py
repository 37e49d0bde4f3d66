"""Text that every machine has: the sources of Python's standard library, as tokens of a small byte-level BPE.

Which files are held out follows from their names alone, so that the split is the same in each run; tests of the library
and tables of encodings are left out, as they repeat themselves.
"""

from __future__ import annotations

import importlib
import sysconfig
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

VOCABULARY = 1024
LENGTH = 128
_HELD_OUT = 10  # one file in so many
_LEFT_OUT = {"test", "tests", "encodings", "idlelib", "pydoc_data", "site-packages", "__pycache__"}
_MARGIN = "\n\n\n"


def sources(folder: Path | None = None) -> tuple[list[str], list[str]]:
    """(texts to learn from, texts held out), files of the standard library in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    files = sorted(root.rglob("*.py"), key=lambda f: f.relative_to(root).as_posix())
    learnt: list[str] = []
    held: list[str] = []
    for file in files:
        name = file.relative_to(root).as_posix()
        if not _LEFT_OUT.intersection(name.split("/")):
            text = file.read_text(encoding="utf-8", errors="replace")
            (held if zlib.crc32(name.encode()) % _HELD_OUT == 0 else learnt).append(text)
    return learnt, held


def tokenizer_of(texts: Sequence[str], vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE of these texts."""
    tokenizers = importlib.import_module("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return bpe


def stream(texts: Sequence[str], tokenizer: Any) -> Ints:
    """The tokens of all texts, one behind the other."""
    return np.concatenate([np.asarray(e.ids, np.int64) for e in tokenizer.encode_batch([t + _MARGIN for t in texts])])


def sequences(tokens: Ints, count: int, seed: int, length: int = LENGTH) -> Ints:
    """(count, length) of pieces that do not overlap, a seeded choice; fewer where there are no more."""
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    return rows[np.random.default_rng(seed).permutation(len(rows))[:count]]
